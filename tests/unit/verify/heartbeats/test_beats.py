"""What the heartbeats of a whole run show (DOS-01)."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.report.result import Verdict
from testbed.verify.heartbeats.beats import Life, Reading, judged, lives
from testbed.verify.interruptions import Interruption, Interruptions

NAMES = {"red.web": "red/web"}
CALM, PERIOD = 3.0, 15.0


def reading(at: float, *, alive: bool = True, **change: Any) -> Reading:
    """Return a reading of a node whose guest has run and sent until then, if it is alive."""
    work = int(at * 10) if alive else 7
    life = Life((5, 100), work)
    found = {"up": 1000 + at, "api": 0.1, "guests": {"red.web": life}, **change}
    return Reading(at, at + 0.2, **found)


def calm() -> list[Reading]:
    return [reading(number * CALM) for number in range(4)]


def run(count: int, **changes: dict[str, Any]) -> list[Reading]:
    """Return readings during the checks; those named by their number, as in ``at3``, are changed."""
    return [reading(20 + number * PERIOD, **changes.get(f"at{number}", {})) for number in range(count)]


def verdict(readings: list[Reading], *breaks: Interruption) -> tuple[Verdict, str]:
    found = judged(calm(), readings, NAMES, breaks)
    return found.verdict, found.reason


def dead(*numbers: int) -> dict[str, dict[str, Any]]:
    return {f"at{number}": {"alive": False} for number in numbers}


def test_a_victim_that_is_alive_at_every_beat_is_a_pass() -> None:
    found, reason = verdict(run(12))
    assert found is Verdict.PASS
    assert reason.startswith("0 of 36 beats of 3 victims missed")
    assert reason.endswith("not counted: nothing")


def test_a_victim_that_stops_for_more_than_a_minute_is_a_fail() -> None:
    found, reason = verdict(run(100, **dead(*range(40, 46))))
    assert found is Verdict.FAIL
    assert "red/web: 6 of 100 beats are missed, for up to 90 s" in reason


def test_one_missed_beat_of_many_is_none() -> None:
    frozen = {"at20": {"guests": {"red.web": Life((5, 100), int((20 + 19 * PERIOD) * 10))}}}
    found, reason = verdict(run(60, **frozen))
    assert found is Verdict.PASS
    assert reason.startswith("1 of ")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"up": None, "guests": {}}, "ssh: 5 of 29 beats are missed, for up to 75 s"),
        ({"api": None}, "libvirt: 5 of 29 beats are missed, for up to 75 s"),
        ({"guests": {}}, "the worker of red/web has ended or restarted"),
        ({"guests": {"red.web": Life((6, 300), 10**6)}}, "the worker of red/web has ended or restarted"),
    ],
)
def test_management_that_is_gone_or_a_worker_that_restarts_is_a_fail(
    change: dict[str, Any], fact: str
) -> None:
    found, reason = verdict(run(29, **{f"at{number}": change for number in range(10, 15)}))
    assert found is Verdict.FAIL
    assert fact in reason


def test_what_a_check_has_declared_does_not_count_and_is_told() -> None:
    stopped = run(30, **dead(*range(10, 16)), at16={"guests": {"red.web": Life((9, 900), 10**6)}})
    others = [
        reading(item.asked, guests={"red.web": Life((9, 900), int(item.asked * 10**6))})
        for item in stopped[17:]
    ]
    stopped[17:] = others
    assert verdict(stopped)[0] is Verdict.FAIL
    declared = Interruption("the node reboots", "", stopped[10].asked - 1, stopped[16].asked + 1)
    found, reason = verdict(stopped, declared)
    assert found is Verdict.PASS
    assert "not counted: the node reboots: 120 s" in reason


def test_a_node_that_stood_still_says_nothing_about_its_guests() -> None:
    late = [
        reading(item.asked, up=1000 + item.asked - 20, guests=item.guests)
        for item in run(30, **dead(*range(10, 30)))
    ]
    late[:10] = run(10)
    found, reason = verdict(late[:11])
    assert found is Verdict.PASS
    assert "not counted: the node stood still: 15 s" in reason
    assert verdict(late)[0] is Verdict.FAIL  # it stood still once only


def test_too_few_beats_or_a_lab_that_was_not_calm_is_inconclusive() -> None:
    found, reason = verdict(run(3))
    assert (found, "too few beats" in reason) == (Verdict.INCONCLUSIVE, True)
    assert judged([], run(30), NAMES, ()).verdict is Verdict.INCONCLUSIVE
    rough = [reading(number * CALM, alive=number < 1) for number in range(4)]
    found = judged(rough, run(30), NAMES, ()).verdict
    assert found is Verdict.INCONCLUSIVE


def test_slow_management_is_inconclusive() -> None:
    found, reason = verdict([reading(item.asked, api=9.0) for item in run(30)])
    assert found is Verdict.INCONCLUSIVE
    assert "libvirt usually answers after 9.0 s" in reason


def test_management_that_often_answers_too_late_is_inconclusive() -> None:
    late = {f"at{number}": {"api": None} for number in range(0, 30, 3)}
    found, reason = verdict(run(30, **late))
    assert found is Verdict.INCONCLUSIVE
    assert "libvirt: 10 of 30 beats are missed, for up to 15 s" in reason


def test_a_guest_that_often_does_not_run_is_a_fail() -> None:
    now, readings = 0, []
    for number in range(40):
        now += number % 4 > 0
        readings.append(reading(20 + number * PERIOD, guests={"red.web": Life((5, 100), now + 10**6)}))
    found, reason = verdict(readings)
    assert found is Verdict.FAIL
    assert "red/web: 9 of 40 beats are missed" in reason


def test_one_late_answer_before_the_checks_is_calm_enough() -> None:
    first = [*calm()[:2], reading(2 * CALM, api=None), reading(3 * CALM)]
    assert judged(first, run(30), NAMES, ()).verdict is Verdict.PASS


def test_a_fail_comes_before_what_is_slow() -> None:
    slow = [reading(item.asked, api=9.0, guests={}) for item in run(30)]
    assert verdict(slow)[0] is Verdict.FAIL


def test_the_text_of_a_node_is_read_by_its_form() -> None:
    up, found = lives("up 872.06\nred.web 899 23672 119\nred.db 0 0 0")
    assert up == 872.06
    assert found["red.web"] == Life((899, 23672), 119)
    assert found["red.db"] == Life((0, 0), 0)


@pytest.mark.parametrize("text", ["", "872", "up x", "up 1.0\nred.web 1 2", "up 1.0\nred.web 1 2 3 4 5 6"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"time of the node|describes no guest"):
        lives(text)


def test_an_interruption_lasts_until_its_block_ends_and_holds_for_its_node() -> None:
    times = iter((1.0, 2.0, 3.0))
    found = Interruptions(clock=lambda: next(times))
    with found.during("a reboot", "node-a"):
        assert found.of("node-a") == [Interruption("a reboot", "node-a", 1.0)]
        assert found.of("node-b") == []
    assert found.of("node-a") == [Interruption("a reboot", "node-a", 1.0, 2.0)]


def test_a_time_can_be_declared_afterwards() -> None:
    found = Interruptions(clock=lambda: 9.0)
    found.add("red/web started again", 4.0)
    assert found.of("node-a") == [Interruption("red/web started again", "", 4.0, 9.0)]
