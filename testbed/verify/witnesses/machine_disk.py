"""A second witness of a machine's files: its disks, read from the outer machine (VMM-01).

A reading is what a machine says of itself. An intruder who is root there can make its programs lie, or set
its clock back so that a new file looks older than the image. The disk shows each inode as it is. What has
changed on it since the machine started must be in the reading.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from testbed import payload
from testbed.drivers.snapshots import disk_view, golden_inventory
from testbed.drivers.snapshots.disk_view import DiskChanges
from testbed.drivers.snapshots.origin import started_from
from testbed.errors import InstrumentError
from testbed.inventory.records import Inventory
from testbed.model.topology import POOLS, Role
from testbed.verify.fleet import Fleet, MachineView

_PROGRAM = Path(payload.__file__).parent / "flush_disk.py"
_DISKS = (("vda", "/"), ("vdc", POOLS))  # target and place; the second is a node's
_WRONG = 15.0  # seconds by which a machine's clock may differ from ours
_SLACK = 5.0  # seconds; a reading takes longer than one answer, and clocks differ
_AHEAD = 60.0  # seconds by which a time on the disk may be later than the machine's clock
_TOLD = ("type", "mode", "owner", "size", "sha256", "keyed sha256", "to")


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a reading and a disk agree.

    Args:
        hidden: what the disk has and the reading has not, or tells otherwise, in words.
        later: paths that differ and have changed after the reading began.
        agreed: number of changed inodes that the reading tells as they are.

    """

    hidden: tuple[str, ...]
    later: tuple[str, ...]
    agreed: int


def compare(reading: Inventory, disk: DiskChanges, began: float, now: float) -> Comparison:
    """Compare a machine's reading of its files with its disk.

    Args:
        reading: has at least the files.
        disk: how the disk has changed since the machine started.
        began: when the reading began, and
        now: when the disk was read, both in seconds since 1970 by the machine's clock.

    """
    hidden = [
        f"the content of {path} has changed on the disk, and its inode has not" for path in disk.altered
    ]
    later, agreed = [], 0
    for path, inode in sorted(disk.changed.items()):
        said = reading.records.get(("file", path))
        difference = _difference(path, said, inode)
        changed = float(inode["changed"])
        if changed > now + _AHEAD:
            hidden.append(f"{path} says that it changed {changed - now:.0f} s after the disk was read")
        elif not difference:
            agreed += 1
        elif changed >= began - _SLACK:
            later.append(path)
        else:
            hidden.append(difference)
    return Comparison(tuple(hidden), tuple(later), agreed)


def _difference(path: str, said: object, inode: Mapping[str, str | int]) -> str:
    if not isinstance(said, Mapping):
        return f"the machine does not show {inode['type']} {path}, which is new on its disk or has changed"
    differ = [name for name in _TOLD if name in inode and name in said and said[name] != inode[name]]
    told = ", ".join(f"{name} {str(said[name])[:20]} and not {str(inode[name])[:20]}" for name in differ)
    return f"the machine says of {path}: {told}" if told else ""


def read_disks(fleet: Fleet, machine: MachineView) -> tuple[DiskChanges, float, float]:
    """Write out a machine's file systems, and read their disks from outside.

    Returns:
        The changes of the disks; the machine's clock, in seconds since 1970; and by how many seconds it is
        ahead of ours.

    Raises:
        InstrumentError: one of them fails, a disk is older than the request to write it out, or the machine's
            clock is wrong, so that the order of changes is unknown.

    """
    role = fleet.topology.machine(machine.name).role
    found = [_read(fleet, machine, *place) for place in _DISKS[: 2 if role is Role.NODE else 1]]
    _, now, _ = found[-1]
    whole = DiskChanges(
        {path: inode for disk, _, _ in found for path, inode in disk.changed.items()},
        tuple(path for disk, _, _ in found for path in disk.altered),
        sum(disk.inodes for disk, _, _ in found),
        min(disk.written for disk, _, _ in found),
    )
    return whole, now, found[0][2]


def _read(fleet: Fleet, machine: MachineView, target: str, folder: str) -> tuple[DiskChanges, float, float]:
    asked = time.time()
    clock = machine.python(_PROGRAM.read_text(), {"folder": folder}, function="written_out")
    started = time.time()
    ahead = float(clock["before"]) - (asked + started) / 2
    if abs(ahead) > _WRONG + (started - asked) / 2:
        fact = f"it differs from ours by {abs(ahead):.0f} s"
        raise InstrumentError(f"the clock of {machine.name} is wrong", fact=fact, remedy="run `testbed up`")
    workspace = fleet.lab.workspace
    saved = started_from(workspace.machine(machine.name) / f"{target}.qcow2")
    assert saved is not None  # the check does not apply otherwise
    disk = disk_view.read_changes(
        fleet.lab.outer.hypervisor,
        workspace,
        machine.name,
        fleet.topology.machine(machine.name).domain(fleet.topology.name),
        target,
        golden_inventory.digest_key(saved.key),
    )
    told = {"inodes": disk.inodes, "changed": len(disk.changed), "altered": disk.altered}
    fleet.evidence.record(machine.name, "disk", f"{target}, read from outside", told, started)
    if disk.written < int(clock["before"]):
        fact = f"the superblock of {folder} was last written {clock['before'] - disk.written:.0f} s before"
        remedy = "repeat the check; if that does not help, treat the machine as fallen"
        raise InstrumentError(f"{machine.name} has not written out its disk", fact=fact, remedy=remedy)
    return _at(folder.rstrip("/"), disk), float(clock["after"]), ahead


def _at(folder: str, disk: DiskChanges) -> DiskChanges:
    """Return the changes with paths as the machine has them."""
    return replace(
        disk,
        changed={f"{folder}{path}": inode for path, inode in disk.changed.items()},
        altered=tuple(f"{folder}{path}" for path in disk.altered),
    )
