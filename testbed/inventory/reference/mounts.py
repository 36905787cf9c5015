"""Mounts of services and workers, which see parts of what the first namespace sees. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from testbed.inventory.records import Records

FIRST = "first"
_NAMESPACE = re.compile(
    r"(mnt of (?:machine\.slice/machine-qemu\\x2dN\\x2d\S+\.scope/libvirt/emulator|system\.slice/\S+)) (/.*)"
)
# Folders in memory that the manager and libvirt make for one service or worker; nothing is in them but nodes
# of devices, and mounts, which are records of their own.
_OWN = {
    ("tmpfs", "/dev"),
    ("tmpfs", "/run/credentials"),
    ("devpts", "/dev/pts"),
    # Of a service that has ended: the first namespace has this folder no more, others still have.
    ("ramfs", "/run/credentials/systemd-tmpfiles-clean.service"),
    ("tmpfs", "/run/credentials/systemd-tmpfiles-clean.service"),
}
_EMPTY = re.compile(r"/systemd/inaccessible/(dir|reg|chr|sock|fifo|blk)")  # below /run
_HANDED = re.compile(r"/systemd/propagate/[A-Za-z0-9@._-]+\.service")  # below /run, at /run/systemd/incoming


def parts(found: Records, wanted: Records) -> dict[tuple[str, str], Any]:
    """Return the mounts of namespaces that only show, at its own place, what the first namespace has.

    Args:
        found: what is on the machine; mounts of the first namespace are judged by themselves.
        wanted: what should be there: the mounts of the first namespace.

    """
    places = {
        key.removeprefix(f"{FIRST} "): value
        for (domain, key), value in wanted.items()
        if domain == "mount" and key.startswith(f"{FIRST} ")
    }
    granted = {}
    for (domain, key), stack in found.items():
        named = _NAMESPACE.fullmatch(key) if domain == "mount" else None
        if named and isinstance(stack, list) and all(_is_part(item, named[2], places) for item in stack):
            granted[domain, key] = stack
    return granted


def _is_part(mount: Any, place: str, places: Mapping[str, Iterable[Any]]) -> bool:  # noqa: ANN401 - JSON
    """Return whether a mount shows what is at the same place in the first namespace, or nothing at all."""
    if not isinstance(mount, dict):
        return False
    root, kind = str(mount.get("root")), mount.get("type")
    if kind == "tmpfs" and _EMPTY.fullmatch(root):
        return True
    if place == "/run/systemd/incoming" and kind == "tmpfs" and _HANDED.fullmatch(root):
        return True
    if root == "/" and (kind, place) in _OWN:
        return True
    return any(
        _same(mount, item) and place == _joined(above, root, str(item.get("root")))
        for above, stack in places.items()
        for item in stack
    )


def _same(mount: Mapping[str, Any], other: Any) -> bool:  # noqa: ANN401 - JSON
    """Return whether two mounts are of the same file system."""
    return isinstance(other, dict) and (mount.get("type"), mount.get("from")) == (
        other.get("type"),
        other.get("from"),
    )


def _joined(above: str, root: str, base: str) -> str:
    """Return where a folder of a file system is seen, which is mounted with its folder `base` at `above`."""
    inner = root.removeprefix(base) if base != "/" else root
    return (above.rstrip("/") + "/" + inner.strip("/")).rstrip("/") or "/"
