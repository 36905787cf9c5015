"""A look at quiet guests and the management of their node, with stand-ins for both (DOS-01)."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from checks import test_victims as victims
from testbed.errors import InstrumentError
from testbed.hosts.rules import UnseenError
from testbed.verify.guest_agent import Output
from testbed.verify.heartbeats import look
from tests.shapes import lab_of

LAB = lab_of("one-node")
GUESTS = LAB.guests
DOMAINS = "\n".join(guest.domain for guest in GUESTS)


class Machine:
    """A node whose guests all run and answer, but for what a test changes."""

    name = "node"

    def __init__(self) -> None:
        self.status, self.domains = 0, DOMAINS
        self.asked: list[Any] = []
        self.lost = ""

    def read(self, _: str) -> str:
        return ""

    def run(self, command: str) -> Any:
        assert command.startswith("timeout ")
        return SimpleNamespace(status=self.status, text=self.domains, stderr=b"it says no")

    def python(self, _: str, request: Any, *__: object, function: str) -> Any:
        assert function == "collect"
        self.asked.append(request)
        beats = {str(beat): 0.01 for beat in range(request["beats"])}
        return {
            "beats": request["beats"],
            "stood": 0.0,
            "guests": {
                domain: {
                    "worker": (7, 1, 7, 1),
                    "ran": () if domain == self.lost else (0, 1),
                    "wires": {tap: {"asked": len(beats), "answered": beats} for tap in taps},
                }
                for domain, taps in request["guests"].items()
            },
        }


class Fleet:
    """A fleet whose guests write at once, or do what a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, writes: Any = None, step: int = 1) -> None:
        self.topology, self.operations, self.looks, self.waiting = LAB, 0, 0, "2"
        self.evidence = SimpleNamespace(record=lambda *_: None)
        self.lab = SimpleNamespace(nodes={"node": None})

        def counters(*_: object) -> tuple[int, int]:
            self.operations += step
            return 0, self.operations

        def run(*_: object) -> Output:
            if writes:
                raise writes
            return Output(0, b"", b"")

        monkeypatch.setattr(look, "counters", counters)
        monkeypatch.setattr(look, "run_in_guest", run)
        monkeypatch.setattr(look, "_LATER", 0.0)

    def files_of(self, _: object) -> Any:
        return SimpleNamespace(read=self.statistics)

    def statistics(self, path: str) -> bytes:
        assert path == "/proc/diskstats"
        self.looks += 1
        return (
            f" 254 0 vdb 1 2 3 4 5 6 7 8 9 10 11\n 254 0 vda 1 2 3 4 5 6 7 8 {self.waiting} 10 11\n".encode()
        )


HELD = InstrumentError("takes too long", fact="no end within 6 s", remedy="-")


def faults(fleet: Any, machine: Any) -> list[str]:
    return look.faults(fleet, machine, GUESTS)


def test_a_look_asks_every_interface_of_every_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    assert faults(Fleet(monkeypatch), machine) == []
    (asked,) = machine.asked
    assert asked["guests"] == {
        guest.domain: {nic.tap: str(nic.address) for nic in guest.nics} for guest in GUESTS
    }


def test_without_libvirt_no_guest_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.status = 124
    assert faults(Fleet(monkeypatch), machine) == ["libvirt's API does not answer within 8 s"]
    assert machine.asked == []


def test_a_guest_that_libvirt_does_not_list_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.domains = "red.web\nblue.web"
    assert faults(Fleet(monkeypatch), machine) == ["libvirt does not list red/db"]


def test_libvirt_that_refuses_is_no_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.status = 1
    with pytest.raises(InstrumentError, match="libvirt of node"):
        faults(Fleet(monkeypatch), machine)


def test_what_a_guest_lost_comes_before_what_its_agent_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine()
    machine.lost = "red.db"
    (found,) = faults(Fleet(monkeypatch, writes=HELD), machine)
    assert "the processors of red/db did not run" in found


def test_an_agent_that_does_not_answer_is_no_held_write(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(monkeypatch, writes=HELD, step=0)
    with pytest.raises(InstrumentError, match="takes too long"):
        faults(fleet, Machine())
    assert fleet.looks == 0


def test_a_write_is_held_only_by_a_guest_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "_WRITING", 0.0)
    fleet = Fleet(monkeypatch, writes=HELD, step=0)
    found = faults(fleet, Machine())
    assert [text.partition(" is held")[0] for text in found] == [
        f"a write of {guest.label}" for guest in GUESTS
    ]
    assert fleet.looks == 2 * len(GUESTS)


@pytest.mark.parametrize("waiting", ["0", "-1", "many"])
def test_a_guest_that_waits_for_no_disk_has_not_begun_to_write(
    waiting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processor is busy: its node's disks are not to blame."""
    monkeypatch.setattr(look, "_WRITING", 0.0)
    fleet = Fleet(monkeypatch, writes=HELD, step=0)
    fleet.waiting = waiting
    with pytest.raises(UnseenError, match="red/web"):
        faults(fleet, Machine())


def test_a_write_that_goes_on_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "_WRITING", 0.0)
    with pytest.raises(UnseenError, match="red/web"):
        faults(Fleet(monkeypatch, writes=HELD), Machine())


def test_the_check_fails_by_faults_and_is_inconclusive_by_what_is_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine: Any = Machine()
    fleet: Any = Fleet(monkeypatch)
    victims.test_victims_are_alive(fleet, machine)
    machine.lost = "red.web"
    with pytest.raises(AssertionError, match="1 faults: the processors of red/web"):
        victims.test_victims_are_alive(fleet, machine)
    machine.lost, slow = "", Fleet(monkeypatch, step=0)
    with pytest.raises(InstrumentError, match="the pulse of guests on node cannot be judged"):
        victims.test_victims_are_alive(slow, machine)  # type: ignore[arg-type]
    assert json.dumps(machine.asked)
