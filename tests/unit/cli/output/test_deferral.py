"""A signal handler waits for a block that must not be cut in two, and no longer."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from testbed.cli.output.deferral import deferred, deferring


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Signals that a deferred handler has got."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, deferred(lambda number, _: seen.append(number)))
    yield seen
    signal.signal(signal.SIGUSR1, before)


def _signal() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def test_a_handler_runs_at_once_outside_a_block(handled: list[int]) -> None:
    _signal()
    assert handled == [signal.SIGUSR1]


def test_a_handler_waits_for_the_outermost_block(handled: list[int]) -> None:
    with deferring():
        with deferring():
            _signal()
        assert handled == []
        _signal()
    assert handled == [signal.SIGUSR1] * 2


def _interrupted(reached: list[str]) -> None:
    with deferring():
        _signal()
        reached.append("the end")


def test_a_handler_that_raises_does_so_at_the_end_of_the_block() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    reached: list[str] = []
    before = signal.signal(signal.SIGUSR1, deferred(interrupt))
    try:
        with pytest.raises(KeyboardInterrupt):
            _interrupted(reached)
        with deferring():  # nothing of the first is left
            reached.append("the next")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert reached == ["the end", "the next"]


def test_a_block_of_another_thread_holds_no_handler_back(handled: list[int]) -> None:
    inside, over = threading.Event(), threading.Event()

    def block() -> None:
        with deferring():
            inside.set()
            over.wait(10)

    thread = threading.Thread(target=block)
    thread.start()
    assert inside.wait(10)
    _signal()
    assert handled == [signal.SIGUSR1]
    over.set()
    thread.join()
