"""Machines that are waited for: nothing of an earlier session changes them when they are observed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed.drivers.places.controller import Controller
from testbed.drivers.places.node import Node
from testbed.engine import observe
from testbed.model.resolve import resolve
from testbed.plan.resources import OUTER
from testbed.topology_file.loader import read

LAB = resolve(read(Path(__file__).parents[4] / "topologies/two-tenants.yaml").spec)


class Host:
    """Stands in for a machine on which a command of a killed session runs until it is awaited."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def wait(self, _deadline: float) -> None:
        self.steps.append("login")

    def sudo(self, _command: str, *, timeout: float) -> None:
        assert timeout > 0
        self.steps.append("booted")

    def await_orphans(self) -> None:
        self.steps.append("commands ended")


class Outer:
    """Stands in for the outer machine, on which every machine runs."""

    name = OUTER

    def observe(self) -> dict[object, object]:
        return {}


@pytest.mark.parametrize(
    ("kind", "steps"),
    [(Controller, ["login", "commands ended"]), (Node, ["login", "booted", "commands ended"])],
)
def test_commands_of_a_killed_session_end_before_a_look(
    monkeypatch: pytest.MonkeyPatch, kind: type[Controller] | type[Node], steps: list[str]
) -> None:
    host: Any = Host()
    place = kind.__new__(kind)
    place.name, place.host, place._slowness = "node-a", host, 1.0

    def observed(_: object) -> dict[object, object]:
        host.steps.append("observed")
        return {}

    monkeypatch.setattr(kind, "observe", observed)
    outer: Any = Outer()
    assert not observe.look({}, [outer, place]).failed
    assert host.steps == [*steps, "observed"]
