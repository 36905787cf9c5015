"""Collects the reasons why a run is not complete; a run with any is never a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from testbed.errors import TestbedError

LONGEST = 1200  # characters of an error's text


def told(error: BaseException) -> str:
    """Return an exception's text for a report: its type, and its message if that can be read."""
    if isinstance(error, TestbedError):
        return f"{error.what}: {error.fact}"[:LONGEST]
    try:
        text = str(error)
    except Exception as worse:  # noqa: BLE001 - the error of a foreign library, whose text may raise anything
        text = f"(its text cannot be read: {type(worse).__name__})"
    return f"{type(error).__name__}: {text}"[:LONGEST]


class Trouble:
    """Collects the errors of a run that did not become a verdict.

    Args:
        progress: prints a message; its own error is recorded once as trouble, and stops nothing.
    """

    def __init__(self, progress: Callable[[str], None]) -> None:
        self.items: list[str] = []
        self._progress = progress
        self._mute = False

    def add(self, text: str) -> None:
        """Record one error."""
        self.items.append(text[: 2 * LONGEST])

    def tell(self, message: str) -> None:
        """Print a message on the progress."""
        try:
            self._progress(message)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a closed terminal ends no run
            if not self._mute:
                self._mute = True
                self.add(f"progress could not be shown: {told(error)}")

    @contextmanager
    def kept(self, doing: str) -> Iterator[None]:
        """Record any exception of the block and continue after it; an interrupt passes through.

        Args:
            doing: the action of the block, for the reader of the report.
        """
        try:
            yield
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the purpose of this block
            self.add(f"{doing}: {told(error)}")
