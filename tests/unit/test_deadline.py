"""Progress extends a deadline, up to a limit; a machine without progress is given up, with its last sign."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from testbed.deadline import MOST, ProgressDeadline
from tests.hostile import Clock


def _given_up(signs: Callable[[float], str], patience: float = 100.0) -> tuple[float, ProgressDeadline]:
    """Return the second at which a deadline ends, of which somebody asks each second."""
    clock = Clock()
    deadline = ProgressDeadline(patience, lambda: signs(clock.now), clock)
    while not deadline.over():
        clock.sleep(1)
    return clock.now, deadline


def test_a_machine_without_progress_is_given_up_after_the_patience_with_its_last_line() -> None:
    end, deadline = _given_up(lambda _: "console: 25 octets, Kernel panic")
    assert end == 100
    assert deadline.reason == "within 100 s; last progress: console: 25 octets, Kernel panic"


def test_a_machine_that_shows_nothing_is_given_up_after_the_patience() -> None:
    end, deadline = _given_up(lambda _: "")
    assert end == 100
    assert deadline.reason == "within 100 s"


@pytest.mark.parametrize(("until", "end"), [(40, 100), (60, 150), (99, 150), (130, 200), (199, 250)])
def test_progress_extends_the_deadline_until_half_the_patience_passes_without_any(
    until: int, end: int
) -> None:
    assert _given_up(lambda now: f"{min(int(now), until)} lines")[0] == end


def test_progress_that_never_ends_is_bounded() -> None:
    end, deadline = _given_up(lambda now: f"{now} lines")
    assert end == MOST * 100
    assert deadline.reason.startswith(
        "within 400 s, the longest time that progress may take; last progress: "
    )


def test_a_question_that_takes_longer_than_the_patience_is_no_silence() -> None:
    """A login blocks for a minute: there has been no look yet with which to compare."""
    clock = Clock()
    deadline = ProgressDeadline(10, lambda: f"{clock.now} lines", clock)
    clock.sleep(60)
    assert deadline.over()  # far beyond the limit
    deadline = ProgressDeadline(10, lambda: "one line", clock)
    clock.sleep(11)
    assert not deadline.over()
    clock.sleep(6)
    assert deadline.over()


def test_signs_are_not_looked_at_before_half_of_the_patience() -> None:
    clock, looks = Clock(), list[float]()
    deadline = ProgressDeadline(100, lambda: str(looks.append(clock.now)), clock)
    while not deadline.over():
        clock.sleep(1)
    assert looks == [50, 100]


def test_the_pause_ends_where_something_is_to_be_decided() -> None:
    clock = Clock()
    deadline = ProgressDeadline(100, lambda: f"{clock.now}", clock)
    pauses = []
    while not deadline.over():
        pauses.append(deadline.pause)
        clock.sleep(deadline.pause)
    assert pauses == [50, 50, 50, 50, 50, 50, 50, 50]
