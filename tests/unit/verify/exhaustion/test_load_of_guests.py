"""Guests and workers that use up what is limited: what is counted and believed (DOS-02 to DOS-05)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.verify.exhaustion import cpu_load, disk_load, worker_limits
from tests.shapes import lab_of

LAB = lab_of("one-node")
WEB, DB, _ = LAB.guests


class Fleet:
    """A fleet in which a program of a guest runs until the file that ends it is there.

    Args:
        stats: answers of QEMU about disks, the last one again and again.
        shares: answers of the node about CPU times, likewise.
        early: whether a program ends at once.
    """

    def __init__(self, *, stats: Sequence[Any] = (), shares: Sequence[Any] = (), early: bool = False) -> None:
        self.stats, self.shares, self.early, self.over = list(stats), list(shares), early, False
        self.topology = LAB
        hypervisor = SimpleNamespace(ask_monitor=lambda *_: self._next(self.stats))
        self.lab = SimpleNamespace(nodes={"node": SimpleNamespace(hypervisor=hypervisor)})
        self.evidence = SimpleNamespace(record=lambda *_: None)
        self.machines = {
            "node": SimpleNamespace(name="node", python=lambda *_, **__: self._next(self.shares))
        }

    @staticmethod
    def _next(answers: list[Any]) -> Any:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def in_guest(self, _: object, argv: list[str], *__: object, **___: object) -> bytes:
        if "touch" in " ".join(argv[:3]) and "while" not in " ".join(argv):
            self.over = True
            return b""
        end = time.monotonic() + 5
        while not (self.over or self.early) and time.monotonic() < end:
            time.sleep(0.001)
        return b"0\n"


def stat(octets: int, operations: int) -> dict[str, Any]:
    return {
        "stats": {"rd_bytes": octets, "wr_bytes": 1, "rd_operations": operations, "wr_operations": 1},
        "device": "",
    }


def cpu(*usage: int) -> dict[str, Any]:
    groups = {
        guest.domain: {"usage_usec": each, "nr_throttled": 2}
        for guest, each in zip((WEB, DB), usage, strict=False)
    }
    return {"elapsed": 10**6, "processors": 1, "own": 250_000, "groups": groups}


def test_a_rate_is_the_growth_of_all_disks_of_a_guest() -> None:
    fleet: Any = Fleet(stats=[[stat(10, 1), stat(20, 2)], [stat(100, 5), stat(200, 9)]])
    (found,) = disk_load.rate(fleet, (WEB,), 0.01)
    assert (found.octets, found.operations) == (270, 11)
    assert found.seconds >= 0.01


@pytest.mark.parametrize(
    "answer", [None, [{}], [{"stats": {"rd_bytes": 5}}], [stat(-1, 0)], [stat(2**61, 0)]]
)
def test_counters_of_another_form_are_no_observation(answer: Any) -> None:
    fleet: Any = Fleet(stats=[answer])
    with pytest.raises(InstrumentError, match="counted"):
        disk_load.counters(fleet, WEB)


def test_a_guest_reads_during_the_block_and_not_longer() -> None:
    fleet: Any = Fleet(stats=[[stat(0, 0)], [stat(0, 9)]])
    with disk_load.reading(fleet, WEB, 4096, 9):
        assert not fleet.over
    assert fleet.over


def test_a_guest_that_ends_early_or_never_begins_is_no_attack() -> None:
    fleet: Any = Fleet(stats=[[stat(0, 0)], [stat(0, 9)]], early=True)
    with pytest.raises(InstrumentError, match="too early"), disk_load.reading(fleet, WEB, 4096, 9):
        time.sleep(0.1)
    idle: Any = Fleet(stats=[[stat(0, 0)]], early=True)
    with pytest.raises(InstrumentError, match="does not read"), disk_load.reading(idle, WEB, 4096, 9):
        pass


def test_cpu_times_are_measured_while_all_guests_want_them() -> None:
    fleet: Any = Fleet(shares=[cpu(1, 1), cpu(500_000, 400_000), cpu(420_000, 430_000)])
    found = cpu_load.measured(fleet, (WEB, DB), 0.01, spin=True)
    assert (found.percentage(WEB), found.percentage(DB), found.root) == (42, 43, 0.25)
    assert fleet.over


def test_guests_that_stop_or_never_use_the_cpu_are_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_load, "_STARTING", 0.05)
    for fleet in (Fleet(shares=[cpu(1, 1)]), Fleet(shares=[cpu(500_000, 400_000)], early=True)):
        view: Any = fleet
        fleet.over = not fleet.early  # an idle guest does not keep the test
        with pytest.raises(InstrumentError):
            cpu_load.measured(view, (WEB, DB), 0.05, spin=False)


def test_cpu_times_of_another_form_are_no_observation() -> None:
    for answer in ({}, {**cpu(1, 1), "elapsed": 0}, {**cpu(1, 1), "more": 1}):
        machine: Any = Fleet(shares=[answer]).machines["node"]
        with pytest.raises(InstrumentError, match="another form"):
            cpu_load.shares(machine, 0.01, spin=False)


LAYERS: dict[str, Any] = {
    "label": "libvirt-x (enforce)", "accounts": [5], "groups": [5], "others": [], "capabilities": [0],
    "bound": 1, "filters": [2, 1], "namespaces": {}, "group": "0::/x",
}  # fmt: skip
COUNTS: dict[str, Any] = {
    "events": {WEB.domain: {"memory oom_kill": 1}},
    "workers": {WEB.domain: 7, DB.domain: 8},
    "killed": 1,
}


def exhausted(**changes: Any) -> worker_limits.Spent:
    after = {
        **COUNTS,
        "events": {WEB.domain: {"memory oom_kill": 3}},
        "workers": {WEB.domain: 7, DB.domain: 9},
    }
    answer = {"worker": LAYERS, "worn": LAYERS, "reached": 5, "status": -9, "before": COUNTS, "after": after}
    machine: Any = SimpleNamespace(name="node", python=lambda *_, **__: {**answer, **changes})
    return worker_limits.exhaust(machine, WEB, "memory", 9)


def test_events_and_harm_are_differences_of_two_looks() -> None:
    found = exhausted()
    assert found.events(WEB.domain, "memory oom_kill") == 2
    assert found.events(DB.domain, "memory oom_kill") == 0
    assert found.harmed == [DB.domain]


@pytest.mark.parametrize(
    "changes",
    [
        {"worn": {**LAYERS, "group": "0::/"}},
        {"worn": {**LAYERS, "filters": [0, 0]}},
        {"worn": {}},
        {"reached": -1},
        {"after": {}},
    ],
)
def test_an_attacker_that_lacks_a_layer_or_an_answer_of_another_form_is_no_attack(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(InstrumentError, match="used up"):
        exhausted(**changes)
