"""Whether machines kept going while they were asked."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.payload.probe.scanner import beat
from testbed.verify.probe import liveness
from testbed.verify.probe.liveness import OUTER, Moment, beating, clock_error


class _Machine:
    """A machine whose clock shows what it is told to."""

    def __init__(self, ahead: float = 0.0, delay: float = 0.0) -> None:
        self.name, self.ahead, self.delay = "node", ahead, delay

    def read(self, command: str) -> str:
        time.sleep(self.delay)
        clock = time.time() if command.startswith("date") else time.monotonic()
        time.sleep(self.delay)
        return f"{clock + self.ahead} 0.0"


@pytest.mark.parametrize(("ahead", "at_least"), [(0.0, 0.0), (4000.0, 3999.0), (-4000.0, -3999.0)])
def test_a_wrong_clock_is_told_and_a_slow_answer_is_not(ahead: float, at_least: float) -> None:
    error = clock_error(_Machine(ahead, delay=0.1))  # type: ignore[arg-type]
    assert abs(ahead) >= abs(error) >= abs(at_least) - 20
    assert error * ahead >= 0
    assert (error == 0) == (ahead == 0)


def test_a_clock_that_stood_still_is_behind() -> None:
    """By what the answers' own delays cannot explain."""
    before, after = Moment(100.0, 50.0, 50.5), Moment(106.0, 60.0, 61.0)
    assert before.behind(after) == pytest.approx(3.5)
    assert before.behind(Moment(110.0, 60.0, 61.0)) == 0


def test_a_machine_notices_that_it_stood_still(tmp_path: Path) -> None:
    rest = tmp_path / "rest"
    threading.Timer(0.5, rest.touch).start()
    answer = beat({"duration": 20, "rest": str(rest)})
    assert answer["rested"]
    assert answer["longest"] >= 0
    with pytest.MonkeyPatch.context() as patch:
        asleep = iter([0.0, 0.1, 4.3, 4.4, 99.0])
        patch.setattr(
            "testbed.payload.probe.scanner.time",
            SimpleNamespace(monotonic=lambda: next(asleep), sleep=lambda _: None),
        )
        assert beat({"duration": 20, "rest": str(tmp_path / "none")}) == {"longest": 94.5, "rested": False}


class _Heart:
    """A machine's probe: beats until it is told to rest."""

    def __init__(self, answer: dict[str, object]) -> None:
        self.answer, self.rested = answer, threading.Event()

    def listen(self, _: object) -> dict[str, object]:
        assert self.rested.wait(10)
        return self.answer

    def ask(self, request: dict[str, object]) -> dict[str, object]:
        assert request == {"phase": "rest"}
        self.rested.set()
        return {}


def _beating(monkeypatch: pytest.MonkeyPatch, answer: dict[str, object]) -> tuple[Any, _Heart, _Machine]:
    heart, machine = _Heart(answer), _Machine()
    monkeypatch.setattr(liveness, "on_machine", lambda *_: heart)
    return (
        SimpleNamespace(machines={"node": machine}, evidence=SimpleNamespace(record=lambda *_: None)),
        heart,
        machine,
    )


def test_both_kinds_of_pauses_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the machine notices itself, one that only its clock shows, and ours."""
    fleet, _, _ = _beating(monkeypatch, {"longest": 4.2, "rested": True})
    with beating(fleet) as stood:
        time.sleep(0.3)
    assert stood["node"] == pytest.approx(4.2)
    assert stood[OUTER] >= 0
    fleet, _, machine = _beating(monkeypatch, {"longest": 0.1, "rested": True})
    with beating(fleet) as stood:
        machine.ahead = -4.0
    assert 2.0 < stood["node"] <= 4.0


@pytest.mark.parametrize(
    "answer", [{}, {"longest": 0.1, "rested": False}, {"longest": "0", "rested": True}, {"error": "no"}]
)
def test_a_machine_that_does_not_tell_has_not_been_asked(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, object]
) -> None:
    fleet, _, _ = _beating(monkeypatch, answer)
    with pytest.raises(InstrumentError, match="whether it stood still"), beating(fleet):
        pass


def test_hearts_rest_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, heart, _ = _beating(monkeypatch, {"longest": 0.1, "rested": True})
    with pytest.raises(KeyboardInterrupt), beating(fleet):
        raise KeyboardInterrupt
    assert heart.rested.is_set()


def test_our_own_machine_notices_that_it_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stood: dict[str, float] = {}
    clock = iter([0.0, 0.1, 4.5, 4.6])
    monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: next(clock, 4.7)))
    with liveness._own_heart(stood):
        threading.Event().wait(0.8)
    assert stood[OUTER] == pytest.approx(4.3)
