"""Rules about images: the format of each is declared and never found out from its content (STO-02). Pure."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated
from xml.etree import ElementTree as ET

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from testbed.hosts.rules import UnseenError
from testbed.untrusted.text import line
from testbed.verify.devices.declared import file_of
from testbed.verify.storage import open_disks
from testbed.verify.storage.open_disks import OpenDisk

_MAGIC, _VERSION, _CLUSTER_BITS = b"QFI\xfb", 2, 16
_HEADER = ">4sIQIIQIIQQIIQ"  # of version 2 (QEMU, "QCow2 file format")
_TABLES = {"refcount": 1 << 16, "l1": 2 << 16}  # where they would begin
_FOREIGN_DATA = ("data-file", "data-file-raw")  # of qcow2: its data are in another file
_CAPACITY = re.compile(r"^Capacity:\s+(\d{1,18})$", re.MULTILINE)  # virsh(1), domblkinfo
_SHOWN = 6

Image = tuple[str, str]  # QEMU's driver and the path


class _Node(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    drv: str
    image: dict[str, object]


class Probed(BaseModel):
    """How a node's tools have treated hostile volumes: the answer of `testbed.payload.image_probe`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    opened: dict[str, int]
    pools: tuple[Annotated[str, Field(max_length=4096)], ...]
    texts: dict[str, str]


_NODES = TypeAdapter(list[_Node])


def hostile_header(path: str, size: int) -> bytes:
    """Return the beginning of a qcow2 image of a size (bytes) that names a file of the host as its base."""
    name = path.encode()
    at = struct.calcsize(_HEADER)
    fields = (at, len(name), _CLUSTER_BITS, size, 0, 1, _TABLES["l1"], _TABLES["refcount"], 1, 0, 0)
    return struct.pack(_HEADER, _MAGIC, _VERSION, *fields) + name


def declared(root: ET.Element) -> dict[str, tuple[Image, ...]]:
    """Return the chain of images of each disk of a domain, by its target: libvirt's format and the path.

    A format that is not named is the empty string; that of an encrypted disk is the encryption's.
    """
    found = {}
    for disk in root.iterfind("devices/disk"):
        driver, source, target = disk.find("driver"), disk.find("source"), disk.find("target")
        encryption = disk.find("source/encryption")
        form = _value(driver, "type")
        if form == "raw" and encryption is not None:
            form = _value(encryption, "format")
        chain = [(form, _value(source, "file"))]
        store = disk.find("backingStore")
        while store is not None and len(store):
            chain.append((_value(store.find("format"), "type"), _value(store.find("source"), "file")))
            store = store.find("backingStore")
        found[_value(target, "dev")] = tuple(chain)
    return found


def _value(element: ET.Element | None, name: str) -> str:
    return element.get(name, "") if element is not None else ""


def described(wanted: str, live: str) -> list[str]:
    """Return the disks of a domain whose formats or chains differ from the topology's.

    Args:
        wanted: the XML that it was started from.
        live: libvirt's XML of the running domain.
    """
    ours, theirs = declared(ET.fromstring(wanted)), declared(ET.fromstring(live))
    return [
        f"libvirt opens {target} as {_told(theirs.get(target, ()))}, and not as {_told(ours.get(target, ()))}"
        for target in sorted(ours.keys() | theirs.keys())
        if ours.get(target) != theirs.get(target)
    ]


def opened(wanted: str, disks: object, nodes: object) -> list[str]:
    """Return the images that a QEMU has open in another way than the topology says.

    Args:
        wanted: the XML that its domain was started from.
        disks: the answer to query-block.
        nodes: the answer to query-named-block-nodes.

    Raises:
        UnseenError: an answer has another form, or shows no disk.
    """
    try:
        parts = _NODES.validate_python(nodes)
    except ValidationError as error:
        raise UnseenError(f"QEMU's images: {line(error.errors(include_url=False)[0]['msg'])}") from error
    chains = [*declared(ET.fromstring(wanted)).values()]
    if not parts:
        raise UnseenError("QEMU shows no image")
    seen = Counter((node.drv, file_of(str(node.image.get("filename", "")))) for node in parts)
    layers = Counter(layer for chain in chains for image in chain for layer in _layers(image))
    found = [f"QEMU has {path} open as {driver}, which is not declared" for driver, path in (seen - layers)]
    found += [f"QEMU does not have {path} open as {driver}" for driver, path in (layers - seen)]
    for device, disk in open_disks.parsed(disks, "the guest"):
        found += _of_disk(device, disk, chains)
    return found


def _layers(image: Image) -> list[Image]:
    """Return the drivers with which QEMU opens an image: raw ones are files and nothing else."""
    form, path = image
    return [("file", path)] if form == "raw" else [("file", path), (form, path)]


def _of_disk(device: str, shown: OpenDisk, chains: Sequence[tuple[Image, ...]]) -> list[str]:
    chain = next((chain for chain in chains if chain[0][1] == file_of(shown.file)), ())
    base = chain[1] if len(chain) > 1 else ("", "")
    elsewhere = sorted({*shown.image.specific.data} & {*_FOREIGN_DATA})
    recorded = (shown.image.backing_format, shown.backing_file)
    found = [f"{shown.file} has its data in another file: {', '.join(elsewhere)}"] if elsewhere else []
    if not chain or not device:
        found.append(f"QEMU has {shown.file} open for no disk of the topology")
    elif recorded != base:
        found.append(f"{shown.file} rests on {_told((recorded,))}, and not on {_told((base,))}")
    return found


def probed(answer: object, named: str, volumes: Sequence[str], sizes: Mapping[str, int]) -> list[str]:
    """Return which tools of a node believed the headers that guests had written.

    Args:
        answer: of `testbed.payload.image_probe`.
        named: the file that the headers name.
        volumes: paths of the hostile volumes.
        sizes: their sizes in bytes.

    Raises:
        UnseenError: the look is not complete, or would not have seen that the file is opened.
    """
    try:
        found = Probed.model_validate(answer)
    except ValidationError as error:
        raise UnseenError(f"the look at hostile volumes: {error.error_count()} mistakes in it") from error
    controls = ["control", *(f"probing {volume}" for volume in volumes)]
    blind = [name for name in controls if not found.opened.get(name)]
    if blind:
        raise UnseenError(f"not seen, although the file is opened: {', '.join(blind[:_SHOWN])}")
    tools = {name: count for name, count in found.opened.items() if name not in controls}
    faults = [
        f"libvirt has the pool {pool}, which reads each volume's format from it" for pool in found.pools
    ]
    faults += [f"{named} was opened for: {name}" for name, count in tools.items() if count]
    shown = [int(size) for size in _CAPACITY.findall(found.texts.get("sizes", ""))]
    if shown != [sizes[volume] for volume in volumes]:
        raise UnseenError(
            f"libvirt shows volumes of {shown} octets: {line(found.texts.get('sizes', ''))[:200]}"
        )
    for volume in volumes:
        profile = found.texts.get(f"profile {volume}", "")
        if f'"{volume}"' not in profile:
            raise UnseenError(f"the profile that is made for {volume}: {line(profile)[:200]}")
        if named in profile:
            faults.append(f"a profile that is made for {volume} would allow {named}")
    return faults


def _told(chain: Sequence[Image]) -> str:
    return " on ".join(f"{form or 'any format'} {path}".strip() for form, path in chain) or "nothing"
