"""Rules about storage that is used again: nothing of its former owner is in it (STO-04). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated
from xml.etree import ElementTree as ET

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from testbed.hosts.rules import UnseenError
from testbed.model.topology import LUKS_HEADER, POOLS, Guest
from testbed.untrusted.answers import formed, mistakes
from testbed.untrusted.text import line
from testbed.verify.storage import open_disks

OWN = ""  # name of the text that a search writes itself
_KINDS = frozenset({"ext4"})  # file systems that overwrite blocks in place
_LEAST = 16  # octets of a text that is searched for
_Text = Annotated[str, Field(max_length=4096)]
_Hex = Annotated[str, Field(min_length=2 * _LEAST, max_length=4096, pattern="^([0-9a-f]{2})+$")]
_Count = Annotated[int, Field(ge=0)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Container(_Form):
    texts: Annotated[dict[_Text, _Hex], Field(max_length=32)]


class Device(_Form):
    """A search of `testbed.payload.residues.pool_residues`; sizes are octets, places of texts are offsets."""

    size: _Count
    chosen: _Count
    read: _Count
    found: dict[_Text, Annotated[list[_Count], Field(max_length=8)]]


class _File(_Form):
    size: _Count
    used: _Count
    content: _Count | None
    found: list[_Text]


class _Files(_Form):
    files: dict[_Text, _File]


class Disk(_Form):
    """A search of `testbed.payload.residues.guest_canaries`; sizes are octets."""

    size: _Count
    read: _Count
    found: dict[_Text, _Count]
    files: dict[_Text, _Count]


class _Mount(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    target: _Text
    fstype: _Text
    options: _Text


class _Mounts(_Form):
    filesystems: Annotated[list[_Mount], Field(min_length=1)]


def identity(answer: object) -> dict[str, str]:
    """Return what identifies a container and its keys, in hexadecimal by name.

    Raises:
        UnseenError: the answer has another form.
    """
    try:
        return formed(TypeAdapter(_Container), answer).texts
    except ValueError as error:
        raise UnseenError(f"the container: {error}") from error


def overwritten_in_place(answer: object) -> list[str]:
    """Return why blocks of the pools may keep what was overwritten (shred(1)).

    Args:
        answer: of "findmnt --json" for the pools.

    Raises:
        UnseenError: the answer has another form.
    """
    try:
        mount = _Mounts.model_validate(answer).filesystems[-1]
    except ValidationError as error:
        raise UnseenError(f"the file system of volumes: {mistakes(error)}") from error
    faults = [] if mount.target == POOLS else [f"{POOLS} is no file system of its own"]
    if mount.fstype not in _KINDS:
        faults.append(f"{line(mount.fstype)} does not overwrite in place")
    if "data=journal" in mount.options.split(","):
        faults.append("the journal of the file system has copies of what is written")
    return faults


def undeclared(listed: Iterable[str], guests: Iterable[Guest]) -> list[str]:
    """Return the files of the pools that no guest of the topology has, and those with a second name.

    Args:
        listed: number of links and path of each.

    Raises:
        UnseenError: a line has another form, or the disk of a guest is missing.
    """
    wanted, found, faults = {path for guest in guests for path in guest.disks}, set(), []
    for text in listed:
        links, _, path = text.partition(" ")
        if not (links.isdecimal() and path):
            raise UnseenError(f"{line(text)[:200]} describes no file")
        found.add(path)
        faults += [] if path in wanted else [f"{line(path)[:200]} is in no topology"]
        faults += [] if links == "1" else [f"{line(path)[:200]} has {links} names"]
    if missing := wanted - found:
        raise UnseenError(f"no file {sorted(missing)[0]} is seen")
    return faults


def kept_whole(domain: str, xml: str, disks: object) -> list[str]:
    """Return the disks of a running guest which have snapshots, or which give blocks back before they end.

    A block that a guest discards must stay in its file, since only files are overwritten.

    Args:
        xml: libvirt's live XML.
        disks: the answer to query-block.

    Raises:
        UnseenError: an answer has another form.
    """
    try:
        drivers = ET.fromstring(xml).findall("devices/disk/driver")
    except ET.ParseError as error:
        raise UnseenError(f"the disks of {domain}: {line(str(error))[:200]}") from error
    shown = [disk for _, disk in open_disks.parsed(disks, domain)]
    if not shown or not drivers:
        raise UnseenError(f"{domain} shows no disk")
    faults = []
    for driver in drivers:
        faults += [
            f"{name} is {line(given)} for a disk of {domain}"
            for name, unset in (("discard", "ignore"), ("detect_zeroes", "off"))
            if (given := driver.get(name, unset)) != unset
        ]
    for item in shown:
        if item.image.snapshots:
            faults.append(f"{line(item.image.filename)} has {len(item.image.snapshots)} snapshots")
        if item.detect_zeroes != "off":
            faults.append(f"QEMU looks for zeros that {domain} writes: {line(item.detect_zeroes)}")
    return faults


def of_disk(name: str, answer: object, size: int, texts: Collection[str]) -> Disk:
    """Return the search of a guest's disk, which was read whole.

    Raises:
        UnseenError: the answer has another form, or the disk has another size or was not read whole.
    """
    try:
        found = Disk.model_validate(answer)
    except ValidationError as error:
        raise UnseenError(f"the disk of {name}: {mistakes(error)}") from error
    if not found.size == found.read == size:
        raise UnseenError(f"{name} has read {found.read} of {found.size} octets, and has {size}")
    if {*found.found} != {*texts}:
        raise UnseenError(f"{name} has searched for other texts")
    return found


def of_device(answer: object, texts: Collection[str]) -> Device:
    """Return the search of a node's device, which has found its own text.

    Raises:
        UnseenError: the answer has another form, or the search was blind.
    """
    try:
        found = Device.model_validate(answer)
    except ValidationError as error:
        raise UnseenError(f"the device of the pools: {mistakes(error)}") from error
    if {*found.found} != {OWN, *texts}:
        raise UnseenError("the device was searched for other texts")
    if not found.found[OWN]:
        raise UnseenError(
            f"the search does not find what was written for it, after {found.read} of {found.chosen} octets"
        )
    return found


def require_found(found: Mapping[str, object], names: Iterable[str], place: str) -> None:
    """Require that a search has found texts which are there.

    Raises:
        UnseenError: one is not found, so the same search would show nothing later.
    """
    missing = [name for name in names if not found.get(name)]
    if missing:
        raise UnseenError(f"{place} does not show {', '.join(missing)} of the running guest")


def left(found: Device) -> list[str]:
    """Return what a search has found of a removed guest.

    Raises:
        UnseenError: it has not read everything that it has chosen.
    """
    if found.read < found.chosen:
        raise UnseenError(f"{found.read} of {found.chosen} octets of the device were read in time")
    return [
        f"{name} is on the device, at {', '.join(map(str, places[:2]))}"
        for name, places in found.found.items()
        if name != OWN and places
    ]


def handed_out(answer: object, guest: Guest) -> list[str]:
    """Return how the disks of a new guest are not clean, as its node sees their files.

    Args:
        answer: of `testbed.payload.residues.pool_residues.files`.

    Raises:
        UnseenError: the answer has another form, or a disk is missing.
    """
    try:
        found = _Files.model_validate(answer).files
    except ValidationError as error:
        raise UnseenError(f"the disks of {guest.label}: {mistakes(error)}") from error
    if {*found} != {*guest.disks}:
        raise UnseenError(f"{len(found)} of {len(guest.disks)} disks of {guest.label} were read")
    faults = [f"{path} holds {name}" for path, file in found.items() for name in file.found]
    for path in guest.disks[1:]:
        if found[path].content is not None:
            faults.append(f"{path} has content before its guest has written")
        elif found[path].used > LUKS_HEADER:
            faults.append(f"{path} has {found[path].used} octets of blocks, and is not sparse")
    return faults
