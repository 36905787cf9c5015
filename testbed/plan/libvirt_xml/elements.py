"""Elements that domains of machines and of guests share: pure functions that build XML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from xml.etree import ElementTree as ET

NAMESPACE = "https://testbed.invalid/lab/1"
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
WAITING = "waits for its memory"  # title of a domain that starts only from saved memory
_QUIET = "quiet loglevel=3 systemd.show_status=no"
ET.register_namespace("testbed", NAMESPACE)
ET.register_namespace("qemu", QEMU)


def sub(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    """Add an element below another one, and return it."""
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def domain_of(kind: str, name: str, uuid: str, memory: int, vcpus: int) -> ET.Element:
    """Return a domain with its name, memory in bytes, and number of CPUs."""
    root = ET.Element("domain", type=kind)
    sub(root, "name", name)
    sub(root, "uuid", uuid)
    sub(root, "memory", str(memory), unit="b")
    sub(root, "vcpu", str(vcpus))
    return root


def add_mark(root: ET.Element, lab: str, name: str, properties: Mapping[str, object]) -> None:
    """Record in a domain's metadata its lab, its name and the properties that it was made from."""
    mark = sub(sub(root, "metadata"), f"{{{NAMESPACE}}}lab", name=lab, resource=name)
    mark.text = json.dumps(properties, sort_keys=True)


def mark_waiting(root: ET.Element) -> None:
    """Give a domain the title of domains that wait for saved memory."""
    root.insert(0, sub(ET.Element("none"), "title", WAITING))


def add_boot(root: ET.Element, kernel: str, initrd: str, words: Iterable[str], *, firmware: str = "") -> None:
    """Let a domain boot a kernel of its host, with further words on the command line."""
    boot = sub(root, "os")
    sub(boot, "type", "hvm", arch="x86_64", machine="q35")
    if firmware:
        sub(boot, "loader", firmware, type="rom")
    sub(boot, "kernel", kernel)
    sub(boot, "initrd", initrd)
    sub(boot, "cmdline", " ".join(("console=ttyS0 root=/dev/vda rw", _QUIET, *words)))


def add_disk(devices: ET.Element, path: str, target: str, form: str, **driver: str) -> ET.Element:
    """Add a virtio disk that is a file of the host, and return it."""
    disk = sub(devices, "disk", type="file", device="disk")
    sub(disk, "driver", name="qemu", type=form, **driver)
    sub(disk, "source", file=path)
    sub(disk, "target", dev=target, bus="virtio")
    return disk


def add_encryption(disk: ET.Element, secret: str) -> None:
    """Let QEMU open a disk's file as LUKS with the key in a libvirt secret, given by its UUID (STO-06)."""
    source = disk.find("source")
    assert source is not None
    sub(sub(source, "encryption", format="luks", engine="qemu"), "secret", type="passphrase", uuid=secret)


def add_common_devices(devices: ET.Element) -> None:
    """Add the devices that every domain has, and switch off libvirt's defaults that none needs."""
    sub(devices, "controller", type="usb", model="none")
    sub(devices, "memballoon", model="none")
    sub(sub(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")


def text_of(root: ET.Element) -> str:
    """Return a domain as libvirt reads it."""
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
