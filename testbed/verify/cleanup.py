"""What checks make on a lab, and how each thing is taken away again, whatever happens meanwhile (NET-13,
ACC-02).

A thing is noted before it is made, so that an interrupt in between finds it noted. Taking away must work as
well when the thing is not there, or is half made. What could not be taken away stays noted, is tried once
more at the end of the run, and is then told as trouble of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock


@dataclass(eq=False, slots=True)
class _Thing:
    what: str
    remove: Callable[[], object]


class Leavings:
    """What is there because a check has made it. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._things: list[_Thing] = []

    @contextmanager
    def made(self, what: str, remove: Callable[[], object]) -> Iterator[None]:
        """Let a block make something, and take it away when the block ends, by whatever exception.

        An error while it is taken away does not hide what the block raises, and raises nothing itself:
        `clear` tells it.

        Args:
            what: what it is and where, as people are told if it stays.
            remove: takes it away, if it is there.

        """
        thing = _Thing(what, remove)
        with self._lock:
            self._things.append(thing)
        try:
            yield
        finally:
            self._take_away(thing)

    def clear(self) -> list[str]:
        """Take away what is still there, the latest first; return a line for each thing that stays."""
        with self._lock:
            left = list(reversed(self._things))
        return [f"{thing.what} is left behind: {why}" for thing in left if (why := self._take_away(thing))]

    def _take_away(self, thing: _Thing) -> str:
        """Return why a thing could not be taken away; the empty string if it could. An interrupt leaves it
        noted.
        """
        try:
            thing.remove()
        except Exception as error:  # noqa: BLE001 - whatever it is, the rest must be taken away as well
            return f"{type(error).__name__}: {getattr(error, 'fact', '') or error}"[:300]
        with self._lock:
            if thing in self._things:
                self._things.remove(thing)
        return ""
