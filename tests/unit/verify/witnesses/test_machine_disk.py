"""A machine's reading of its files, compared with its disk."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from checks import test_machine_integrity
from testbed.drivers.snapshots.disk_view import DiskChanges
from testbed.errors import InstrumentError
from testbed.inventory.records import Inventory
from testbed.verify import machine_reference
from testbed.verify.machine_reference import MachineState
from testbed.verify.witnesses import machine_disk
from testbed.verify.witnesses.machine_disk import compare

BEGAN, NOW = 1000.0, 1030.0
INODE: dict[str, str | int] = {
    "type": "file", "mode": "0755", "owner": "0:0", "size": 3, "sha256": "aa", "changed": 500,
}  # fmt: skip
SAID = {name: value for name, value in INODE.items() if name != "changed"} | {"newer": True, "names": 1}


def _disk(*altered: str, **changed: Any) -> DiskChanges:
    return DiskChanges({f"/{name}": INODE | told for name, told in changed.items()}, altered, 10, int(NOW))


def _reading(**files: Any) -> Inventory:
    return Inventory({("file", f"/{name}"): SAID | told for name, told in files.items()})


def test_what_the_machine_shows_as_it_is_agrees() -> None:
    found = compare(_reading(known={}), _disk(known={}), BEGAN, NOW)
    assert (found.hidden, found.later, found.agreed) == ((), (), 1)


def test_what_the_machine_does_not_show_is_hidden() -> None:
    (hidden,) = compare(_reading(), _disk(new={}), BEGAN, NOW).hidden
    assert hidden == "the machine does not show file /new, which is new on its disk or has changed"


@pytest.mark.parametrize("name", ["type", "mode", "owner", "size", "sha256"])
def test_each_property_that_is_told_otherwise_is_named(name: str) -> None:
    (hidden,) = compare(_reading(known={name: "lie"}), _disk(known={}), BEGAN, NOW).hidden
    assert hidden == f"the machine says of /known: {name} lie and not {INODE[name]}"


def test_a_link_to_another_place_is_named() -> None:
    disk = _disk(known={"type": "link", "to": "/bin/evil"})
    (hidden,) = compare(_reading(known={"type": "link", "to": "/bin/sh"}), disk, BEGAN, NOW).hidden
    assert hidden == "the machine says of /known: to /bin/sh and not /bin/evil"


def test_a_digest_that_only_one_of_them_has_is_not_compared() -> None:
    log = {name: value for name, value in SAID.items() if name != "sha256"}
    reading = Inventory({("file", "/log"): log})
    assert compare(reading, _disk(log={}), BEGAN, NOW).agreed == 1


@pytest.mark.parametrize(("changed", "later"), [(990, False), (996, True), (1031, True)])
def test_what_changed_after_the_reading_began_is_no_lie(changed: int, later: bool) -> None:
    found = compare(_reading(log={"size": 9}), _disk(log={"changed": changed}), BEGAN, NOW)
    assert found.later == (("/log",) if later else ())
    assert bool(found.hidden) is not later


def test_a_time_that_has_not_come_yet_is_a_finding() -> None:
    found = compare(_reading(known={}), _disk(known={"changed": 2000}), BEGAN, NOW)
    assert found.hidden == ("/known says that it changed 970 s after the disk was read",)


def test_content_that_changed_below_its_inode_is_a_finding() -> None:
    found = compare(_reading(), _disk("/usr/sbin/nft"), BEGAN, NOW)
    assert found.hidden == ("the content of /usr/sbin/nft has changed on the disk, and its inode has not",)


class Looks:
    """A machine whose readings and disks are given in turn; the last ones stay."""

    def __init__(self, readings: list[Inventory], disks: list[DiskChanges]) -> None:
        self.readings, self.disks, self.lab = readings, disks, None
        self.topology = SimpleNamespace(machine=lambda name: name)

    def state(self, *_: object) -> MachineState:
        return MachineState(self.readings.pop(0), began=BEGAN)

    def disk(self, *_: object) -> tuple[DiskChanges, float, float]:
        return self.disks.pop(0), NOW, 0.0


def _check(monkeypatch: pytest.MonkeyPatch, readings: list[Inventory], disks: list[DiskChanges]) -> None:
    looks = Looks(readings, disks)
    for name in ("state", "look"):
        monkeypatch.setattr(machine_reference, name, looks.state)
    monkeypatch.setattr(machine_disk, "read_disks", looks.disk)
    machine: Any = SimpleNamespace(name="node")
    fleet: Any = looks
    test_machine_integrity.test_machines_show_what_their_disks_hold(fleet, machine)


def test_a_hidden_file_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match=r"1 files are hidden:\s+the machine does not show file /new"):
        _check(monkeypatch, [_reading(known={})], [_disk(known={}, new={})])


def test_a_file_that_came_later_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = _disk(known={}, new={"changed": 1010})
    _check(monkeypatch, [_reading(known={}), _reading(known={}, new={})], [disk, disk])


def test_a_file_that_is_always_newer_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = _disk(known={}, new={"changed": 1010})
    with pytest.raises(InstrumentError, match="faster than it is read") as error:
        _check(monkeypatch, [_reading(known={}), _reading(known={})], [disk, disk])
    assert error.value.fact == "new since the reading: /new"


def test_a_disk_of_which_nothing_agrees_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InstrumentError, match="nothing shows that the disk of node was read"):
        _check(monkeypatch, [_reading()], [_disk()])


def test_known_files_that_change_meanwhile_are_no_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = _disk(known={}, log={"changed": 1010, "size": 99})
    _check(monkeypatch, [_reading(known={}, log={})], [disk])
