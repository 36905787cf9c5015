"""Rules about encrypted volumes: a tenant's key alone opens them, and no file has it (STO-06). Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated
from xml.etree import ElementTree as ET

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from testbed.hosts.rules import UnseenError
from testbed.model.topology import Guest, volume_secret
from testbed.untrusted.answers import mistakes
from testbed.untrusted.text import line
from testbed.verify.devices.declared import file_of
from testbed.verify.storage import open_disks
from testbed.verify.storage.open_disks import OpenDisk

OWN = "its tenant's key"
_KEYS = 2  # that are tried on each volume, at least: its own and another
_Text = Annotated[str, Field(max_length=100_000)]


class Searched(BaseModel):
    """The answer of `testbed.payload.volume_encryption`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    opened: dict[str, dict[str, tuple[bool, _Text]]]
    found: dict[str, list[_Text]]
    controls: list[_Text]


class _Slot(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    active: bool


class _Luks(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    slots: list[_Slot]


def forms(key: bytes) -> dict[str, bytes]:
    """Return the octets by which a key may appear in a file: its digits, its bits, and both in base64."""
    bits = bytes.fromhex(key.decode())
    return {
        "digits": key,
        "bits": bits,
        "base64": base64.b64encode(key).rstrip(b"="),
        "bits in base64": base64.b64encode(bits).rstrip(b"="),
    }


def graph(guest: Guest, xml: str, disks: object) -> list[str]:
    """Return the volumes of a running guest that its QEMU does not open with its tenant's key alone.

    Args:
        xml: libvirt's live XML.
        disks: the answer to query-block.

    Raises:
        UnseenError: an answer has another form.
    """
    try:
        root = ET.fromstring(xml)
    except ET.ParseError as error:
        raise UnseenError(f"the disks of {guest.domain}: {line(str(error))[:200]}") from error
    shown = [disk for _, disk in open_disks.parsed(disks, guest.domain)]
    faults = []
    for path in guest.disks[1:]:
        faults += [f"{path}: {text}" for text in (*_described(root, path, guest), *_opened(shown, path))]
    known = {*guest.disks}
    plain = [item for item in shown if item.drv != "luks" and item.file not in known]
    return faults + [f"{guest.domain} has {line(item.file)} open as {line(item.drv)}" for item in plain]


def _described(root: ET.Element, path: str, guest: Guest) -> list[str]:
    source = next((item for item in root.iterfind("devices/disk/source") if item.get("file") == path), None)
    if source is None:
        return ["libvirt's domain does not have it"]
    secret = source.find("encryption[@format='luks']/secret")
    if secret is None:
        return ["libvirt opens it without encryption"]
    return (
        [] if secret.get("uuid") == volume_secret(guest.tenant) else ["libvirt opens it with another secret"]
    )


def _opened(shown: Sequence[OpenDisk], path: str) -> list[str]:
    found = [item for item in shown if file_of(item.file) == path]
    if not found:
        return ["QEMU does not have it open"]
    if any(item.drv != "luks" for item in found):
        return ["QEMU opens it without encryption"]
    try:
        keys = [
            sum(slot.active for slot in _Luks.model_validate(item.image.specific.data).slots)
            for item in found
        ]
    except ValidationError as error:
        raise UnseenError(f"the slots of {path}: {mistakes(error)}") from error
    return [] if keys == [1] else [f"{', '.join(map(str, keys))} keys open it, and not one"]


def secrets(wanted: Sequence[str], held: Mapping[str, str], told: Mapping[str, bool]) -> list[str]:
    """Return the faults of a libvirt's secrets.

    Args:
        wanted: tenants with volumes.
        held: XML of each secret, by UUID.
        told: whether libvirt gives the value of each to a client.

    Raises:
        UnseenError: an answer has another form or is missing.
    """
    names = {volume_secret(tenant): tenant for tenant in wanted}
    faults = [f"there is no secret of {tenant}" for uuid, tenant in names.items() if uuid not in held]
    if told.keys() != held.keys():
        raise UnseenError(f"{len(told)} of {len(held)} secrets were asked for")
    for uuid, xml in held.items():
        try:
            root = ET.fromstring(xml)
        except ET.ParseError as error:
            raise UnseenError(f"a secret's XML: {error}") from error
        name = names.get(uuid, "")
        called = f"the secret of {name}" if name else f"the secret {line(uuid)}"
        faults += [] if name else [f"{called} belongs to no tenant"]
        faults += [] if root.get("ephemeral") == "yes" else [f"{called} is kept on disk"]
        if root.get("private") != "yes" or told[uuid]:
            faults.append(f"{called} can be read by clients of libvirt")
    return faults


def require_readable(answer: object, wanted: Mapping[str, str]) -> Searched:
    """Return the answer of `testbed.payload.volume_encryption`; volumes begin with what their guests wrote.

    Args:
        wanted: what each volume begins with through its tenant's key, in hexadecimal, by path.

    Raises:
        UnseenError: one does not open with its key, or begins with something else.
    """
    try:
        found = Searched.model_validate(answer)
    except ValidationError as error:
        raise UnseenError(f"the look at encrypted volumes: {mistakes(error)}") from error
    if found.opened.keys() != wanted.keys():
        raise UnseenError(f"{len(found.opened)} of {len(wanted)} volumes were opened")
    for path, keys in found.opened.items():
        opens, octets = keys.get(OWN, (False, "not tried"))
        if not opens:
            raise UnseenError(f"{path} does not open with its own key: {line(octets)[:200]}")
        if octets != wanted[path]:
            raise UnseenError(f"{path} does not begin with what its guest has written")
    return found


def searched(answer: object, wanted: Mapping[str, str], texts: Sequence[str], places: int) -> list[str]:
    """Return which keys open volumes that they must not, and which files hold a key or a guest's canary.

    Args:
        answer: of `testbed.payload.volume_encryption`.
        wanted: what each volume begins with through its tenant's key, in hexadecimal, by path.
        texts: names of what was searched for.
        places: number of folders that were searched.

    Raises:
        UnseenError: the look is not complete, or would not have found what is there.
    """
    found = require_readable(answer, wanted)
    if len(found.controls) != places or not {*found.controls} <= {*found.found.get("", ())}:
        raise UnseenError("the search does not find what was written for it")
    if {*found.found} != {"", *texts} or any(len(keys) < _KEYS for keys in found.opened.values()):
        raise UnseenError("the look at encrypted volumes has other answers than questions")
    faults = []
    for path, keys in found.opened.items():
        faults += [f"{path} opens with {name}" for name, (opens, _) in keys.items() if opens and name != OWN]
    for name in texts:
        faults += [f"{line(path)} holds {name}" for path in found.found[name]]
    return faults
