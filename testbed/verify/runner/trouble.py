"""What kept a run from being complete. An error of ours is told, and a run that had one is never a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from testbed.errors import TestbedError

LONGEST = 1200  # characters of what an error says


def told(error: BaseException) -> str:
    """Return what an exception says in a report: its type, and its text if that can be read."""
    if isinstance(error, TestbedError):
        return f"{error.what}: {error.fact}"[:LONGEST]
    try:
        text = str(error)
    except Exception as worse:  # noqa: BLE001 - the error of a stranger, whose text may raise anything
        text = f"(its text cannot be read: {type(worse).__name__})"
    return f"{type(error).__name__}: {text}"[:LONGEST]


class Trouble:
    """Collects what went wrong in a run, besides what became a verdict.

    Args:
        progress: is told what goes on; that it raises is trouble too, and stops nothing.

    """

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.items: list[str] = []
        self._progress = progress
        self._mute = False

    def add(self, text: str) -> None:
        """Remember one thing that went wrong."""
        self.items.append(text[: 2 * LONGEST])

    def tell(self, message: str) -> None:
        """Tell people who wait what goes on."""
        try:
            self._progress(message)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a closed terminal ends no run
            if not self._mute:
                self._mute = True
                self.add(f"progress could not be shown: {told(error)}")

    @contextmanager
    def kept(self, doing: str) -> Iterator[None]:
        """Remember whatever a block raises, and go on behind it; an interrupt goes through.

        Args:
            doing: what the block does, for the reader of the report.

        """
        try:
            yield
        except (Exception, SystemExit) as error:  # noqa: BLE001 - that is what this is for
            self.add(f"{doing}: {told(error)}")
