"""Lanes: items that may run at the same time, and events that end them."""

from __future__ import annotations

import threading
import time

import pytest

from testbed.engine.parallel import run_in_lanes

LANES = [[("a", 1), ("a", 2), ("a", 3)], [("b", 1), ("b", 2), ("b", 3)]]


def test_lanes_go_side_by_side_and_no_two_are_about_the_same() -> None:
    lock, now, done, most = threading.Lock(), set(), [], 0

    def do(item: tuple[str, int]) -> None:
        nonlocal most
        with lock:
            assert item[1] not in now
            now.add(item[1])
            most = max(most, len(now))
        time.sleep(0.02)
        with lock:
            now.remove(item[1])
            done.append(item)

    run_in_lanes(LANES, do, exclusive_key=lambda item: item[1], stopped=lambda: False)
    assert sorted(done) == sorted(item for lane in LANES for item in lane)
    assert most == 2


def test_nothing_is_begun_after_a_stop() -> None:
    done: list[tuple[str, int]] = []
    run_in_lanes(LANES, done.append, exclusive_key=lambda item: item[1], stopped=lambda: len(done) >= 2)
    assert 2 <= len(done) <= 3


def test_without_lanes_nothing_is_done() -> None:
    run_in_lanes([], lambda _: pytest.fail("called"), exclusive_key=hash, stopped=lambda: False)


@pytest.mark.parametrize("broken", [("a", 1), ("b", 2)])
def test_an_error_ends_every_lane_and_is_raised(broken: tuple[str, int]) -> None:
    done = []

    def do(item: tuple[str, int]) -> None:
        if item == broken:
            raise ValueError("broken")
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(ValueError, match="broken"):
        run_in_lanes(LANES, do, exclusive_key=lambda item: item, stopped=lambda: False)
    assert len(done) <= 1
