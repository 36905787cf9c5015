"""libvirt's XML of a node's storage pools and volumes: pure functions."""

from __future__ import annotations

from xml.etree import ElementTree as ET


def pool_xml(name: str, folder: str) -> str:
    """Return a pool that is a folder of root's."""
    pool = ET.Element("pool", type="dir")
    ET.SubElement(pool, "name").text = name
    target = ET.SubElement(pool, "target")
    ET.SubElement(target, "path").text = folder
    _permissions(target, "0700", "0")
    return ET.tostring(pool, encoding="unicode")


def volume_xml(file: str, *, size: int, owner: int, backing: str | None) -> str:
    """Return a volume, mode 0600, with an explicit format (STO-02): qcow2 on a raw base, or raw.

    Args:
        size: bytes.
        owner: uid and gid of the worker that will open it.
        backing: path of the read-only base image, or None.

    """
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = file
    ET.SubElement(volume, "capacity", unit="bytes").text = str(size)
    target = ET.SubElement(volume, "target")
    ET.SubElement(target, "format", type="qcow2" if backing else "raw")
    _permissions(target, "0600", str(owner))
    if backing:
        store = ET.SubElement(volume, "backingStore")
        ET.SubElement(store, "path").text = backing
        ET.SubElement(store, "format", type="raw")
    return ET.tostring(volume, encoding="unicode")


def _permissions(target: ET.Element, mode: str, account: str) -> None:
    permissions = ET.SubElement(target, "permissions")
    for tag, value in (("mode", mode), ("owner", account), ("group", account)):
        ET.SubElement(permissions, tag).text = value
