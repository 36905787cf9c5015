"""A part that lasts is a fault; one that is gone after some seconds is none (PRO-01)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.inventory.records import Inventory
from testbed.model.resolve import resolve
from testbed.model.topology import Role
from testbed.topology_file.loader import read
from testbed.verify import machine_reference, machine_surface
from testbed.verify.machine_surface import MachineSurface

TOPOLOGY = resolve(read(Path(__file__).parents[3] / "topologies/two-tenants.yaml").spec)
NODE = next(item for item in TOPOLOGY.machines if item.role is Role.NODE)
RIGHTS = {"uids": "0", "effective": "0", "profile": "unconfined"}
STRANGER = ("process", "/stranger.service /usr/bin/stranger")
SETUID = ("file", "/usr/bin/stranger")
INIT = ("process", "/init.scope /usr/lib/systemd/systemd")
RECORDS: dict[tuple[str, str], Any] = {
    STRANGER: RIGHTS,
    SETUID: {"type": "file", "mode": "4755", "owner": "0:0"},
    INIT: {**RIGHTS, "effective": "1ffffffffff"},
}


class Machine:
    """Answers with the next of some readings, and notes which collectors were asked for."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *readings: set[tuple[str, str]], gap: str = ""
    ) -> None:
        self.readings, self.gap = list(readings), gap
        self.asked: list[tuple[str, ...]] = []
        self.known: Inventory | None = None
        self.recorded: list[Any] = []
        monkeypatch.setattr(machine_surface, "read_machine", self.read)
        monkeypatch.setattr(machine_surface, "_PAUSE", 0)
        monkeypatch.setattr(machine_reference, "reading", lambda *_: self.known)

    def inventory(self, records: set[tuple[str, str]]) -> Inventory:
        gaps = {("unread", f"{self.gap} "): "it hung"} if self.gap else {}
        return Inventory({**{at: RECORDS[at] for at in records}, **gaps})

    def read(self, _: object, request: Mapping[str, Any]) -> Inventory:
        self.asked.append(tuple(request["only"]))
        return self.inventory(self.readings.pop(0))

    def look(self) -> MachineSurface:
        evidence = SimpleNamespace(record=lambda *told: self.recorded.append(told))
        fleet = SimpleNamespace(
            topology=TOPOLOGY, evidence=evidence, lab=SimpleNamespace(host=lambda name: name)
        )
        return machine_surface.state(fleet, SimpleNamespace(name=NODE.name))  # type: ignore[arg-type]


def test_a_machine_as_in_the_baseline_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {INIT})
    found = machine.look()
    assert (found.parts, found.more, found.gaps) == (1, (), ())
    assert "listener tcp MANAGEMENT:22" in found.gone
    assert len(machine.asked) == len(machine.recorded) == 1


def test_a_process_that_lasts_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {INIT, STRANGER}, {INIT, STRANGER})
    assert [text.partition(":")[0] for text in machine.look().more] == [
        "process /stranger.service /usr/bin/stranger"
    ]
    assert "files" not in machine.asked[1]


def test_a_process_that_ends_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Machine(monkeypatch, {INIT, STRANGER}, {INIT}).look().more == ()


def test_a_file_is_too_much_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {SETUID})
    assert len(machine.look().more) == 1
    assert len(machine.asked) == 1


def test_a_reading_of_everything_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.known = machine.inventory({INIT})
    assert machine.look().parts == 1
    assert machine.asked == []


def test_a_gap_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Machine(monkeypatch, {INIT}, gap="processes").look().gaps == ("processes : it hung",)
