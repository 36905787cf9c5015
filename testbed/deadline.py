"""A deadline that progress extends: a slow machine is waited for, a dead one is given up."""

from __future__ import annotations

import time
from collections.abc import Callable

MOST = 4  # times the patience; a hostile or a looping machine can show progress for ever


class ProgressDeadline:
    """The time until which a boot, a login or an agent is waited for.

    It ends when no sign of progress has changed for half of the patience, at the earliest after the whole
    patience and at the latest after `MOST` times the patience. Signs cost a question to a machine, so they
    are looked at only from half of the patience on. What `signs` raises ends the wait.

    Args:
        patience: seconds, stretched by the slowness of the machine.
        signs: returns a text that differs after each progress, such as the size and last line of a console.
        clock: returns seconds.

    """

    def __init__(
        self,
        patience: float,
        signs: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience, self._signs, self._clock = patience, signs, clock
        self._start = clock()
        self._end = self._start + patience
        self._seen: str | None = None

    def over(self) -> bool:
        """Return whether to give up; signs of progress extend the deadline."""
        now, known = self._clock(), self._seen
        if known is None and now >= self._start + self._patience / 2:
            self._seen = self._signs()
        if now < self._end:
            return False
        found = self._signs()
        latest = self._start + MOST * self._patience
        if now >= latest or found == known or not found:
            return True
        self._seen, self._end = found, min(now + self._patience / 2, latest)
        return False

    @property
    def pause(self) -> float:
        """Seconds until `over` has something to decide."""
        half = self._start + self._patience / 2
        return max(0.0, (half if self._seen is None else self._end) - self._clock())

    @property
    def reason(self) -> str:
        """Why it was given up: the time that has passed, and the last sign of progress."""
        passed = self._clock() - self._start
        if passed >= MOST * self._patience:
            why = f"within {passed:.0f} s, the longest time that progress may take"
        else:
            why = f"within {passed:.0f} s"
        return f"{why}; last progress: {self._seen}" if self._seen else why
