"""Signals that end a command: a CI job's time-out and a lost terminal act like Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from testbed.cli.output.deferral import Handler, deferred

_Before = Handler | int | signal.Handlers | None

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# seconds within which several signals are one: timeout(1) sends two, and a terminal one to each process of a
# job
_ONE = 3.0


def interruptible() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread from now on.

    Ctrl-C as well, although a job that a script starts in the background ignores it. A command under nohup(1)
    goes on ignoring SIGHUP. Signals shortly after the first are part of the same interruption;
    later ones are another.
    """
    last: list[float] = []

    def interrupt(*_: object) -> None:
        now = time.monotonic()
        if not last or now - last[-1] > _ONE:
            last[:] = [now]
            raise KeyboardInterrupt

    _handle(interrupt)


@contextmanager
def ended_at_once(end: Callable[[], object]) -> Iterator[None]:
    """Handle the same signals by another function, such as to end the process, in a block."""

    def handle(*_: object) -> None:
        end()

    before = _handle(handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handler: Handler) -> dict[signal.Signals, _Before]:
    """Set a handler, and return those that were there; SIGHUP stays ignored where it is.

    It waits for a line that is being written.
    """
    ending = [
        number
        for number in _ENDING
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]
    return {number: signal.signal(number, deferred(handler)) for number in ending}
