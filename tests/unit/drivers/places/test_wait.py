"""Machines that are waited for: nothing of an earlier session changes them when they are observed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from testbed.drivers.places.controller import Controller
from testbed.drivers.places.node import Node
from testbed.drivers.ssh.command_session import Completed
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

    def sudo(self, _command: str, *, timeout: float) -> Completed:
        assert timeout > 0
        self.steps.append("booted")
        return Completed("", 0, b"", b"")

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


def test_a_boot_with_jobs_that_end_one_after_the_other_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a boot whose jobs stand still is left, so that `up` can repair it."""
    monkeypatch.setattr("testbed.drivers.places.node.BOOT", 0.4)

    class Booting(Host):
        def __init__(self, jobs: int, *, stuck: bool) -> None:
            super().__init__()
            self.jobs, self.stuck = jobs, stuck

        def sudo(self, command: str, *, timeout: float) -> Completed:
            if "list-jobs" in command:
                self.jobs -= not self.stuck and self.jobs > 0
                return Completed("", 0, b"job\n" * self.jobs, b"")
            self.steps.append("asked")
            time.sleep(0.1)
            return Completed("", 124 if self.jobs else 0, b"", b"")

    for stuck, jobs in ((False, 0), (True, 5)):
        host: Any = Booting(5, stuck=stuck)
        node = Node.__new__(Node)
        node.name, node.host, node._slowness = "node-a", host, 1.0
        began = time.monotonic()
        node.wait()
        assert host.jobs == jobs
        assert host.steps[-1] == "commands ended"
        assert time.monotonic() - began < 1.7
