"""Rules about what stands behind guests: files, devices, sockets and memory have one owner each. Pure.

`testbed.payload.worker_objects` reads them on a node.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from testbed.hosts.rules import UnseenError
from testbed.untrusted.answers import formed
from testbed.untrusted.text import line

_CONTROL = 16  # pages that the program shares with its child
_PAGE = 4096
_SEEN = 0.9  # share of the resident memory of a worker whose frames must be seen
_KERNEL = "anon_inode:"  # objects of the kernel without a file, as those of KVM: each process has its own
# Devices without contents, or with new ones for each opener (Linux, admin-guide/devices.txt): null, zero,
# full, random, urandom, kvm, vhost-net.
_EMPTY = frozenset({"1:3", "1:5", "1:7", "1:8", "1:9", "10:232", "10:238"})


class Mapped(NamedTuple):
    """An object in the address space of a worker.

    Args:
        permissions: as in /proc/PID/maps (proc(5)); the last letter is "s" if it is shared.
        identity: device and inode.
        path: its name.
        fixed: whether only root can change it, under the same name in the node's own files.
    """

    permissions: str
    identity: str
    path: str
    fixed: bool


class Opened(NamedTuple):
    """An open object of a worker.

    Args:
        kind: "file", "folder", "pipe", "socket", "interface", "terminal", "device" or "block device".
        identity: device and inode; the number of a device or terminal; the name of an interface.
        access: "read" or "write".
        path: its name.
        fixed: as for `Mapped`.
    """

    kind: str
    identity: str
    access: str
    path: str
    fixed: bool


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Holdings:
    """What one worker holds.

    Args:
        anonymous: its resident memory that belongs to no file, in octets.
        pages: number of its pages whose frames of physical memory were seen.
    """

    objects: tuple[Opened, ...]
    mapped: tuple[Mapped, ...]
    anonymous: int
    pages: int


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Ownership:
    """What the workers of a node hold.

    Args:
        common: each two workers that have frames in common, how many, and how many of them KSM has merged.
        control: number of frames that the reading program has seen in common with its own child.
    """

    workers: dict[str, Holdings]
    common: tuple[tuple[str, str, int, int], ...]
    control: int


_ANSWER = TypeAdapter(Ownership)


def parsed(answer: object) -> Ownership:
    """Return what the workers of a node hold.

    Raises:
        ValueError: the answer has another form.
    """
    return formed(_ANSWER, answer)


def not_private(found: Ownership, common: Collection[str]) -> list[str]:
    """Return memory of workers that is not theirs alone (CMP-01).

    Args:
        common: folders whose fixed files every worker may map, without writing to them.

    Raises:
        UnseenError: the frames of a worker were not seen.
    """
    if found.control < _CONTROL:
        raise UnseenError(f"{found.control} of {_CONTROL} frames of a control were seen")
    faults = []
    for name, worker in found.workers.items():
        if worker.pages * _PAGE < worker.anonymous * _SEEN or not worker.anonymous:
            raise UnseenError(f"{worker.pages} pages of {name}, and {worker.anonymous} octets of memory")
        faults += [f"{name} {fault}" for mapped in worker.mapped if (fault := _not_its_own(mapped, common))]
    faults += [
        f"{one} and {other} have {count} frames in common{f', {merged} of them merged' if merged else ''}"
        for one, other, count, merged in found.common
    ]
    return faults


def _not_its_own(mapped: Mapped, common: Collection[str]) -> str:
    shared = mapped.permissions.endswith("s")
    if mapped.path.startswith(_KERNEL) or (
        _is_common(mapped, common) and not (shared and "w" in mapped.permissions)
    ):
        return ""
    return f"{'shares the memory of' if shared else 'has in its memory a part of'} {line(mapped.path)}"


def owned_twice(
    found: Ownership,
    tenants: Mapping[str, str],
    files: Mapping[str, Collection[str]],
    common: Collection[str],
) -> list[str]:
    """Return the objects that belong to more than one tenant (DEV-02).

    Args:
        tenants: the tenant of each worker.
        files: tenants in whose pool a file is, by device and inode.
        common: folders whose fixed files workers of all tenants may open for reading.
    """
    owners: dict[tuple[str, str], set[str]] = {("", identity): set(some) for identity, some in files.items()}
    paths: dict[tuple[str, str], str] = {}

    def add(key: tuple[str, str], worker: str, path: str) -> None:
        owners.setdefault(key, set()).add(tenants[worker])
        paths.setdefault(key, path)

    for name, worker in found.workers.items():
        for held in worker.objects:
            empty = held.kind == "device" and held.identity in _EMPTY
            if not empty and not (held.access == "read" and _is_common(held, common)):
                add((_space(held), held.identity), name, held.path)
        for mapped in worker.mapped:
            if not mapped.path.startswith(_KERNEL) and not _is_common(mapped, common):
                add(("", mapped.identity), name, mapped.path)
    return [
        f"{line(paths.get(key) or key[1])} belongs to {' and '.join(sorted(some))}"
        for key, some in owners.items()
        if len(some) > 1
    ]


def _space(held: Opened) -> str:
    """Return in which space an identity is unique; the empty string is that of inodes."""
    return held.kind if held.kind in ("interface", "terminal", "device", "block device") else ""


def _is_common(held: Opened | Mapped, common: Collection[str]) -> bool:
    return held.fixed and any(held.path.startswith(f"{folder}/") for folder in common)
