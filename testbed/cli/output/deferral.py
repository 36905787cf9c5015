"""Signal handlers that wait until a line is written.

A library that composes a line in a buffer of its own loses what a handler prints in the middle of that,
such as the codes that take a picture away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


@dataclass
class _Held:
    """The blocks of the main thread that hold handlers back, and the handlers that wait for them."""

    depth: int = 0
    waiting: list[tuple[Handler, int]] = field(default_factory=list)


_HELD = _Held()


@contextmanager
def deferring() -> Iterator[None]:
    """Let handlers made by `deferred` wait for the end of this block; they run then, and may raise.

    Handlers run in the main thread: a block of another thread holds none back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _HELD.depth += 1
    try:
        yield
    finally:
        _HELD.depth -= 1
        while not _HELD.depth and _HELD.waiting:
            handler, number = _HELD.waiting.pop(0)
            handler(number, None)


def deferred(handler: Handler) -> Handler:
    """Return a signal handler that runs another, after the block of `deferring` that it interrupts."""

    def handle(number: int, frame: FrameType | None) -> None:
        if _HELD.depth:
            _HELD.waiting.append((handler, number))
        else:
            handler(number, frame)

    return handle
