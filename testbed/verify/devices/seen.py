"""Reads libvirt's XML, QEMU's answers and a guest's into entries. Everything here is untrusted. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated
from xml.etree import ElementTree as ET

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from testbed.untrusted.answers import mistakes
from testbed.untrusted.text import line
from testbed.verify.devices import declared
from testbed.verify.devices.declared import Entries, Entry

_CHILD = re.compile(r"child<(.+)>")
_NETWORK = re.compile(r"(\S+): index=\d+,type=([\w-]+)")
_PLAIN_CHILDREN = ("irq", "memory-region")  # of QEMU's board: no devices
_PROCESSOR = re.compile(r"\S+-x86_64-cpu")
# Options with which libvirt starts every guest of ours (libvirt, src/qemu/qemu_command.c). "-device",
# "-object", "-blockdev", "-netdev" and "-chardev" are judged by what the monitor shows of them.
OPTIONS = frozenset(
    {
        "-name", "-S", "-object", "-machine", "-accel", "-cpu", "-bios", "-m", "-overcommit", "-smp", "-uuid",
        "-display", "-no-user-config", "-nodefaults", "-chardev", "-mon", "-rtc", "-no-shutdown", "-boot",
        "-kernel", "-initrd", "-append", "-device", "-blockdev", "-netdev", "-add-fd", "-audiodev", "-global",
        "-watchdog-action", "-sandbox", "-msg", "-incoming",
    }
)  # fmt: skip

_Short = Annotated[str, Field(max_length=4096)]


class _Lax(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _PciIdentity(_Lax):
    vendor: int
    device: int


class _PciDevice(_Lax):
    bus: int
    slot: int
    function: int
    id: _PciIdentity


class _PciBus(_Lax):
    devices: list[_PciDevice]


class _Property(_Lax):
    name: _Short
    type: _Short


class _Chardev(_Lax):
    label: _Short
    filename: _Short


class _Image(_Lax):
    filename: _Short


class _Inserted(_Lax):
    drv: _Short
    image: _Image


class _GuestAnswer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    pci: Annotated[list[tuple[_Short, _Short, _Short]], Field(max_length=256)]
    virtio: Annotated[list[int], Field(max_length=256)]
    ports: Annotated[list[_Short], Field(max_length=256)]
    smbios: Annotated[str, Field(max_length=30_000)]
    acpi: Annotated[dict[str, Annotated[str, Field(max_length=30_000)]], Field(max_length=64)]
    fw_cfg: Annotated[dict[str, Annotated[str, Field(max_length=30_000)]], Field(max_length=256)]
    command_line: Annotated[str, Field(max_length=30_000)]
    vsock: dict[str, object]


_BUSES, _PROPERTIES = TypeAdapter(list[_PciBus]), TypeAdapter(list[_Property])
_CHARDEVS, _INSERTED = TypeAdapter(list[_Chardev]), TypeAdapter(list[_Inserted])


def of_libvirt(xml: str) -> Entries:
    """Return the devices in a running domain's XML.

    Raises:
        ValueError: it is no XML.
    """
    try:
        return {declared.XML: declared.of_domain(ET.fromstring(xml))}
    except ET.ParseError as error:
        raise ValueError(f"the XML of a domain: {error}") from error


def of_qemu(answers: Mapping[str, object]) -> Entries:
    """Return the devices that a QEMU shows, given its answers by `QUESTIONS`.

    Raises:
        ValueError: an answer has another form.
    """
    try:
        buses = _BUSES.validate_python(answers["pci"])
        named, anonymous, board, objects = (
            _children(answers[name]) for name in ("peripheral", "peripheral-anon", "unattached", "objects")
        )
        chardevs = _CHARDEVS.validate_python(answers["chardevs"])
        images = _INSERTED.validate_python(answers["images"])
    except (ValidationError, KeyError) as error:
        raise ValueError(_told(error)) from error
    return {
        declared.PCI: Counter(_pci(device) for bus in buses for device in bus.devices),
        declared.PERIPHERALS: Counter(
            [*((kind, "") for kind, _ in named), *((kind, "without a name") for kind, _ in anonymous)]
        ),
        declared.CHIPS: Counter(_foreign_chips(board)),
        declared.OBJECTS: Counter(objects),
        declared.CHARDEVS: Counter(_chardev(item) for item in chardevs),
        declared.NETWORKS: Counter(_networks(str(answers["networks"]))),
        declared.IMAGES: Counter(
            ("file" if item.image.filename.startswith("/") else "other", item.image.filename)
            for item in images
            if item.drv == "file" or not declared.file_of(item.image.filename).startswith("/")
        ),
    }


def of_command_line(words: Sequence[str]) -> Entries:
    """Return the options of a QEMU that no guest of ours needs."""
    options = (word for word in words[1:] if word.startswith("-"))
    return {declared.OPTIONS: Counter((word, "") for word in options if word not in OPTIONS)}


class GuestView:
    """What a guest shows: devices, firmware tables by name, and its attempts over vsock.

    Args:
        answer: what `testbed.payload.guest_devices` has printed in it.

    Raises:
        ValueError: it has another form.
    """

    def __init__(self, answer: object) -> None:
        try:
            found = _GuestAnswer.model_validate(answer)
            tables = {"SMBIOS": found.smbios, **{f"ACPI {name}": text for name, text in found.acpi.items()}}
            tables["kernel command line"] = found.command_line
            tables |= {f"fw_cfg {name}": text for name, text in found.fw_cfg.items()}
            self.firmware = {name: base64.b64decode(text, validate=True) for name, text in tables.items()}
        except (ValidationError, binascii.Error) as error:
            raise ValueError(_told(error)) from error
        self.vsock = found.vsock
        self.entries: Entries = {
            declared.GUEST_PCI: Counter((f"{vendor}:{device}", slot) for slot, vendor, device in found.pci),
            declared.GUEST_VIRTIO: Counter((str(number), "") for number in found.virtio),
            declared.GUEST_PORTS: Counter((name, "") for name in found.ports),
        }


def _children(answer: object) -> list[Entry]:
    """Return type and name of each object in an answer to qom-list."""
    found = [(item, _CHILD.fullmatch(item.type)) for item in _PROPERTIES.validate_python(answer)]
    return [(match[1], item.name) for item, match in found if match]


def _foreign_chips(board: Iterable[Entry]) -> Iterable[Entry]:
    """Yield the parts of a board that q35 does not have, besides processors and plain objects."""
    for kind, _ in board:
        known = kind in declared.BOARD_CHIPS or kind in _PLAIN_CHILDREN or _PROCESSOR.fullmatch(kind)
        if not known:
            yield kind, ""


def _pci(device: _PciDevice) -> Entry:
    identity = f"{device.id.vendor:04x}:{device.id.device:04x}"
    return identity, f"{device.bus:02x}:{device.slot:02x}.{device.function}"


def _chardev(item: _Chardev) -> Entry:
    """Return kind and label of a character device; a socket of a channel has its own name as well."""
    kind, _, path = item.filename.removeprefix("disconnected:").partition(":")
    name = path.partition(",")[0].rpartition("/")[2] if item.label.startswith("charchannel") else ""
    return kind, f"{item.label} {name}".strip()


def _networks(text: str) -> list[Entry]:
    """Return kind and name of each backend in the answer to "info network"."""
    return [(kind, name) for name, kind in _NETWORK.findall(text) if kind != "nic"]


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return mistakes(error)
    return line(repr(error))
