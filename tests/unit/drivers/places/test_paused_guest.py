"""A paused guest, such as one whose start was killed, goes on with its limits and its addresses."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.deadline import ProgressDeadline
from testbed.drivers.places.guest_start import GuestStarter
from testbed.drivers.places.node import Node
from testbed.drivers.ssh.command_session import Completed
from testbed.errors import InstrumentError, ProvisioningError
from testbed.model.resolve import resolve
from testbed.plan.diff import Action, Verb
from testbed.plan.resources import Key, Kind
from testbed.topology_file.loader import read
from tests.hostile import Clock

LAB = resolve(read(Path(__file__).parents[4] / "topologies/two-tenants.yaml").spec)
GUEST = LAB.guests[0]


class Libvirt:
    """Stands in for a node's libvirt; its guest gets an address with the second answer."""

    def __init__(self, steps: list[str]) -> None:
        self._steps, self._answers = steps, 0

    def resume(self, domain: str) -> None:
        self._steps.append(f"resume {domain}")

    def wait_for_agent(self, domain: str, _timeout: float) -> None:
        self._steps.append(f"agent of {domain}")

    def agent(self, _: str, command: str, given: dict[str, int], _timeout: int) -> dict[str, object]:
        if command == "guest-set-time":
            assert abs(given["time"] / 1e9 - time.time()) < 60
            self._steps.append("clock")
            raise InstrumentError("the agent does not answer", fact="it finds no hardware clock", remedy="-")
        self._steps.append("addresses?")
        self._answers += 1
        kinds = ("ipv4", "ipv6") if self._answers > 1 else ()
        found = [{"ip-address": "10.0.0.9", "ip-address-type": kind} for kind in kinds]
        return {"value": [{"hardware-address": nic.mac, "ip-addresses": found} for nic in GUEST.nics]}


def _resume(libvirt: Any, steps: list[str]) -> None:
    host: Any = SimpleNamespace(must=lambda command: steps.append(command.partition(" ")[0]))
    node = Node.__new__(Node)
    node.topology, node.name = LAB, GUEST.node
    node._starter = GuestStarter(LAB, host, lambda: libvirt, lambda _: None, 30)
    node.perform(Action(Verb.RESUME, Key(GUEST.node, Kind.GUEST, GUEST.label), "", SimpleNamespace(), ()))  # type: ignore[arg-type]


def test_a_paused_guest_has_its_limits_before_it_goes_on_and_is_waited_for() -> None:
    steps: list[str] = []
    _resume(Libvirt(steps), steps)
    name = GUEST.domain
    assert steps == ["ovs-vsctl", f"resume {name}", f"agent of {name}", "addresses?", "addresses?", "clock"]


def test_a_node_pauses_the_guests_of_its_lab_and_resumes_those_that_are_paused() -> None:
    """A checkpoint is saved in between, without a connection."""
    names = {"one": "running", "two": "running", "gone": "shut off"}
    paused: list[str] = []

    def owned(lab: str) -> list[tuple[Any, str, dict[str, object]]]:
        assert lab == LAB.name
        return [(SimpleNamespace(name=name, state=state), name, {}) for name, state in names.items()]

    node = Node.__new__(Node)
    node.topology, node._lock = LAB, threading.Lock()
    node._hypervisor = SimpleNamespace(owned=owned, suspend=paused.append, resume=paused.remove)  # type: ignore[assignment]
    node.pause_guests()
    assert paused == ["one", "two"]
    names["one"] = "paused"
    node.resume_guests()
    assert paused == ["two"]


def test_a_guest_that_does_not_go_on_is_an_error_of_the_command() -> None:
    class Silent(Libvirt):
        def wait_for_agent(self, domain: str, _timeout: float) -> None:
            raise InstrumentError(f"the agent of {domain} does not connect", fact="-", remedy="-")

    with pytest.raises(ProvisioningError, match="does not connect"):
        _resume(Silent([]), [])


class Slow(Libvirt):
    """Stands in for a libvirt whose guest reads its disks until some second; its addresses come later."""

    def __init__(self, clock: Clock, reads_until: float, ready: float) -> None:
        super().__init__([])
        self._clock, self._reads_until, self._ready = clock, reads_until, ready

    def disk_reads(self, _domain: str) -> str:
        return f"{min(self._clock.now, self._reads_until):.0f} reads of its disks"

    def agent(self, domain: str, command: str, given: dict[str, int], timeout: int) -> dict[str, object]:
        self._clock.sleep(1)
        self._answers = int(self._clock.now >= self._ready)
        return super().agent(domain, command, given, timeout)


def _await(monkeypatch: pytest.MonkeyPatch, reads_until: float, ready: float) -> float:
    clock = Clock()
    monkeypatch.setattr(
        "testbed.drivers.places.guest_start.ProgressDeadline", lambda *given: ProgressDeadline(*given, clock)
    )
    monkeypatch.setattr("testbed.drivers.places.guest_start._LOOK", 0)
    libvirt: Any = Slow(clock, reads_until, ready)
    host: Any = SimpleNamespace(must=lambda _: "", sudo=lambda _: Completed("", 0, b"7\ninit: stage\n", b""))
    GuestStarter(LAB, host, lambda: libvirt, lambda _: None, 30).resume(GUEST)
    return clock.now


def test_a_slow_guest_that_makes_progress_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _await(monkeypatch, reads_until=50, ready=60) >= 60


def test_a_guest_without_progress_is_given_up_with_its_last_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProvisioningError, match="is not ready") as caught:
        _await(monkeypatch, reads_until=10, ready=60)
    assert "within 30 s; last progress: 10 reads of its disks, addresses missing: 1" in caught.value.fact
    assert "console: 7 init: stage" in caught.value.fact


class Busy(Libvirt):
    """Stands in for a libvirt that starts a guest only with some attempt."""

    def __init__(self, steps: list[str], attempt: int) -> None:
        super().__init__(steps)
        self._left = attempt - 1

    def create(self, _xml: str, *, paused: bool) -> None:
        assert paused
        self._steps.append("create")
        self._left -= 1
        if self._left >= 0:
            raise ProvisioningError("cannot start a virtual machine", fact="no port", remedy="-")

    def destroy(self, _domain: str) -> None:
        self._steps.append("destroy")


def test_a_guest_that_libvirt_does_not_start_is_started_once_more() -> None:
    steps: list[str] = []
    libvirt: Any = Busy(steps, attempt=2)
    host: Any = SimpleNamespace(must=lambda _: "")
    starter = GuestStarter(LAB, host, lambda: libvirt, lambda _: None, 30)
    starter.boot(GUEST, "<domain/>")
    assert steps[:3] == ["create", "destroy", "create"]
    assert starter.retried == [GUEST.label]
    libvirt = Busy(steps, attempt=3)
    with pytest.raises(ProvisioningError, match="does not start") as caught:
        starter.boot(GUEST, "<domain/>")
    assert caught.value.fact == "no port"
