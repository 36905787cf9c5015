"""What is wrong with the pulse of guests, and what cannot be told (DOS-01)."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.verify.heartbeats.pulses import LOSS, STOOD, NodePulse, Written, lost, parsed, unwritten

NAMES = {"red.web": "red/web"}


def pulse(
    *, asked: int = 60, answered: int = 60, ran: tuple[int, ...] = (0, 1), stood: float = 0.1, **guest: Any
) -> NodePulse:
    wires = {"tap0": {"asked": asked, "answered": {str(number): 0.01 for number in range(answered)}}}
    own = {"worker": (7, 100, 7, 100), "ran": ran, "wires": wires, **guest}
    return parsed({"beats": asked, "stood": stood, "guests": {"red.web": own}})


def test_a_guest_that_runs_and_answers_is_alive() -> None:
    assert lost(pulse(), NAMES) == []


def test_some_answers_may_be_missing() -> None:
    most = int(60 * LOSS)
    assert lost(pulse(answered=60 - most), NAMES) == []
    assert lost(pulse(answered=59 - most), NAMES) == ["red/web answers 53 of 60 questions at tap0"]


@pytest.mark.parametrize(
    ("guest", "fact"),
    [
        ({"ran": ()}, "the processors of red/web did not run during 60 beats"),
        ({"worker": (7, 100, 0, 0)}, "the worker of red/web has ended"),
        ({"worker": (7, 100, 7, 200)}, "is another one"),
        ({"worker": (0, 0, 0, 0)}, "the worker of red/web has ended"),
    ],
)
def test_a_guest_that_does_not_run_is_found(guest: dict[str, Any], fact: str) -> None:
    (found,) = lost(pulse(**guest), NAMES)
    assert fact in found


def test_a_node_that_stood_still_tells_nothing_about_a_missed_beat() -> None:
    with pytest.raises(UnseenError, match=r"stood still for 1.5 s"):
        lost(pulse(answered=0, stood=STOOD + 0.5), NAMES)
    assert lost(pulse(stood=STOOD + 0.5), NAMES) == []


def test_too_few_beats_or_a_guest_that_is_not_told_is_no_observation() -> None:
    with pytest.raises(UnseenError, match="4 beats"):
        lost(pulse(asked=4, answered=4), NAMES)
    with pytest.raises(UnseenError, match=r"without red\.db"):
        lost(pulse(), {**NAMES, "red.db": "red/db"})


@pytest.mark.parametrize(
    "change",
    [{"stood": -1}, {"guests": {"red.web": {}}}, {"more": 1}, {"beats": "many"}, {"guests": []}],
)
def test_an_answer_of_another_form_is_no_observation(change: dict[str, Any]) -> None:
    with pytest.raises(UnseenError):
        parsed({**pulse().model_dump(), **change})


def written(status: int | None, *operations: int, waits: bool = True) -> Written:
    before, over, later = operations
    return Written("red/web", status, "no end within 6 s", (before, over, later), waits, 6.0)


def test_a_write_that_arrives_is_alive() -> None:
    assert unwritten([written(0, 3, 5, 5)], 0.0) == []


def test_a_write_of_which_nothing_ends_is_held() -> None:
    (found,) = unwritten([written(None, 3, 4, 4)], 0.0)
    assert "a write of red/web is held" in found


@pytest.mark.parametrize(
    ("write", "stood"),
    [
        (written(None, 3, 4, 5), 0.0),
        (written(None, 3, 4, 4), STOOD + 1),
        (written(None, 3, 3, 3, waits=False), 0.0),
        (written(1, 3, 5, 5), 0.0),
        (written(0, 3, 3, 3), 0.0),
    ],
    ids=["slow", "the node stood still", "not begun", "failed", "not counted"],
)
def test_a_write_that_is_slow_or_fails_is_not_seen(write: Written, stood: float) -> None:
    with pytest.raises(UnseenError, match="red/web"):
        unwritten([write], stood)


def test_a_held_write_counts_beside_one_that_is_not_seen() -> None:
    assert unwritten([written(1, 3, 3, 3), written(None, 3, 3, 3)], 0.0)
