"""Removal of everything that checks create on a lab, even after errors (NET-13, ACC-02).

Each thing is registered before it is created, so that an interrupt in between finds it registered. Removal
must also work when the thing is absent or half created. A thing that could not be removed stays registered,
is tried once more at the end of the run, and is then reported as trouble of the run.
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
    """Registry of things that checks have created and not yet removed. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._things: list[_Thing] = []

    @contextmanager
    def made(self, what: str, remove: Callable[[], object]) -> Iterator[None]:
        """Register a thing that the block creates, and remove it when the block ends.

        It is removed after an exception as well. An error of the removal does not hide the exception of the
        block, and raises nothing itself: `clear` reports it.

        Args:
            what: the thing and its place, as a report names it if it stays.
            remove: removes it, if it exists.
        """
        thing = _Thing(what, remove)
        with self._lock:
            self._things.append(thing)
        try:
            yield
        finally:
            self._take_away(thing)

    def clear(self) -> list[str]:
        """Remove all remaining things, the latest first; return a line for each that stays."""
        with self._lock:
            left = list(reversed(self._things))
        return [f"{thing.what} is left behind: {why}" for thing in left if (why := self._take_away(thing))]

    def _take_away(self, thing: _Thing) -> str:
        """Remove one thing; return the reason if that fails, else the empty string.

        An interrupt leaves the thing registered.
        """
        try:
            thing.remove()
        except Exception as error:  # noqa: BLE001 - after any error, the rest must be removed as well
            return f"{type(error).__name__}: {getattr(error, 'fact', '') or error}"[:300]
        with self._lock:
            if thing in self._things:
                self._things.remove(thing)
        return ""
