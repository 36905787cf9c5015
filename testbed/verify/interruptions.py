"""Times in which guests are stopped, restarted or cut off on purpose, and no heartbeat counts (DOS-01)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Interruption:
    """A time that does not count.

    Args:
        place: a node; all of them if empty.
        began: on our clock, in seconds.
        ended: likewise; None while it lasts.
    """

    reason: str
    place: str
    began: float
    ended: float | None = None


@dataclass
class Interruptions:
    """The times of one run that do not count; several threads may add some.

    Args:
        clock: gives the time in seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _all: dict[int, Interruption] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def during(self, reason: str, place: str = "") -> Iterator[None]:
        """Declare that the time of the block does not count.

        Args:
            place: a node; all of them if empty.
        """
        began = self.clock()
        with self._lock:
            number = len(self._all)
            self._all[number] = Interruption(reason, place, began)
        try:
            yield
        finally:
            with self._lock:
                self._all[number] = Interruption(reason, place, began, self.clock())

    def add(self, reason: str, began: float) -> None:
        """Declare that the time until now does not count, on any node.

        Args:
            began: on our clock, in seconds.
        """
        with self._lock:
            self._all[len(self._all)] = Interruption(reason, "", began, self.clock())

    def of(self, place: str) -> list[Interruption]:
        """Return the times that do not count on a node."""
        with self._lock:
            return [item for item in self._all.values() if item.place in ("", place)]
