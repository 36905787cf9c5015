"""A live display of progress on a terminal; elsewhere, one line for each event.

A terminal that is slow or stopped, and a pipe that is full or closed, delay no run: text that cannot be
written in time is left out. Lines go to the stream that standard error was at the beginning; pytest replaces
it while it runs a check.
"""

from __future__ import annotations

import io
import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from testbed.cli.output.deferral import deferred, deferring
from testbed.engine.place import Step, StepKind
from testbed.report.columns import WIDTH, cells, shorten
from testbed.untrusted.text import line

_PIECE = 512  # octets of one write: a terminal that is ready may have little room; a pipe has a page
_PERIOD = 0.25  # seconds between two pictures
_ROWS = 8  # pieces of work that are shown, at most
_BAR = 30  # cells of the bar, at most
_CURSOR = "\x1b[?25h"  # shows the cursor
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def plain_log() -> bool:
    """Return whether a CI system keeps our output.

    It may provide a terminal, but its log shows control codes.
    """
    return "CI" in os.environ and not os.environ.get("FORCE_COLOR")


def watched(stream: object) -> bool:
    """Return whether a person may watch a stream: a terminal that can do more than print lines."""
    isatty = getattr(stream, "isatty", lambda: False)
    return bool(isatty()) and os.environ.get("TERM", "") not in ("", "dumb", "unknown") and not plain_log()


def coloured(stream: object) -> bool:
    """Return whether a stream shows colours to a person who has not declined them."""
    return watched(stream) and not os.environ.get("NO_COLOR")


def width_of(descriptor: int | None) -> int:
    """Return the width of a line in cells.

    It is the terminal's, else that of the environment, else a fixed number.
    """
    found = 0
    if descriptor is not None:
        with suppress(OSError):
            found = os.get_terminal_size(descriptor).columns
    said = os.environ.get("COLUMNS", "")
    return found or (int(said) if said.isdecimal() and 0 < int(said) < 10_000 else WIDTH)


class Patient(io.TextIOBase):
    """A stream that waits for its reader for some seconds at most, and ignores a closed pipe.

    Args:
        descriptor: an open file; it is duplicated.
        encoding: of the text in it.

    """

    patience = 5.0  # seconds in which the reader may take nothing

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        super().__init__()
        self._terminal = os.isatty(descriptor)
        self._own = _opened_again(descriptor) if self._terminal else os.dup(descriptor)
        self._polled = (
            self._terminal
            or stat.S_ISFIFO(os.fstat(self._own).st_mode)
            or stat.S_ISSOCK(os.fstat(self._own).st_mode)
        )
        self._encoding = encoding
        self._kept: list[str] = []
        self._gone = self._stuck = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the text in it."""
        return self._encoding

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return self._terminal

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._own

    def write(self, text: str) -> int:
        """Keep text until the next flush."""
        self._kept.append(text)
        return len(text)

    def flush(self) -> None:
        """Write the kept text; drop it if the reader does not take it in time."""
        data, self._kept = "".join(self._kept).encode(self._encoding, "replace"), []
        until = time.monotonic() + (0.0 if self._stuck else self.patience)
        while data and not self._gone:
            try:
                if self._polled and not self._room(until - time.monotonic()):
                    self._stuck = True  # the next flush does not wait for this reader
                    return
                taken = os.write(self._own, data[:_PIECE])
            except BlockingIOError:  # less room than it looked
                time.sleep(0.01)
                self._stuck = time.monotonic() > until
                if self._stuck:
                    return
                continue
            except OSError:
                self._gone = True
                return
            data, self._stuck = data[taken:], False
            until = max(until, time.monotonic() + self.patience)

    def _room(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._own, select.POLLOUT)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def close(self) -> None:
        """Close our own descriptor; the stream itself stays open."""
        if not self.closed:
            self._gone = True
            super().close()
            os.close(self._own)


def _opened_again(descriptor: int) -> int:
    """Return a second, non-blocking descriptor of a terminal; a duplicate where that fails.

    The flag belongs to an open file, and the shell shares the one that we were given.
    """
    try:
        return os.open(
            f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        )
    except OSError:
        return os.dup(descriptor)


class Board:
    """Counts of steps planned, running and ended; safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._running: dict[str, tuple[float, str]] = {}
        self.planned = self.done = self.wrong = 0

    def take(self, step: Step) -> None:
        """Record an event."""
        with self._lock:
            match step.kind:
                case StepKind.PLANNED:
                    self.planned += step.pieces
                case StepKind.BEGUN:
                    self._running[step.name] = (self._clock(), str(step) or step.name)
                case StepKind.NOTE if step.name in self._running:
                    self._running[step.name] = (self._running[step.name][0], str(step))
                case StepKind.ENDED:
                    self._running.pop(step.name, None)
                    self.done += 1
            self.wrong += not step.well

    @property
    def running(self) -> list[tuple[float, str]]:
        """Seconds and latest text of each piece of work that runs, the oldest first.

        None are returned while an event is being recorded for longer than a moment: a signal handler that
        ends the process may have interrupted that, and waits for the caller.
        """
        now = self._clock()
        if not self._lock.acquire(timeout=_PERIOD):
            return []
        try:
            return [(now - start, text) for start, text in self._running.values()]
        finally:
            self._lock.release()

    @property
    def total(self) -> int:
        """The number of pieces of work known so far."""
        return max(self.planned, self.done + len(self._running))


def picture(title: str, board: Board, width: int, height: int) -> RenderableType:
    """Return the display: a bar, and below it what runs now; no line exceeds the width."""
    total, running = board.total, board.running
    wrong = f", {board.wrong} with problems" if board.wrong else ""
    words = f"{board.done} of {total}, {total - board.done} left{wrong}"
    bar = max(0, min(_BAR, width - cells(title) - cells(words) - 3))
    head = Table.grid(padding=(0, 1, 0, 0))
    parts: list[RenderableType] = [Text(shorten(title, width), "bold", no_wrap=True)]
    if bar >= 4:
        parts.append(ProgressBar(total=max(1, total), completed=board.done, width=bar))
    parts.append(Text(shorten(words, max(1, width - cells(title) - 1)), no_wrap=True))
    head.add_row(*parts)
    rows = max(1, min(_ROWS, height - 3))
    shown = [
        Text(shorten(f"{seconds:5.0f} s  {line(text)}", width), "dim", no_wrap=True)
        for seconds, text in running[:rows]
    ]
    if len(running) > rows:
        shown.append(Text(shorten(f"{'':9}and {len(running) - rows} more", width), "dim", no_wrap=True))
    return Group(head, *shown)


class Display:
    """Shows events on standard error until it is closed: as a picture, or as lines.

    Args:
        title: the work as a whole, in a word.
        words: returns the words of a message as a line has them.

    """

    def __init__(self, title: str, words: Callable[[str], Text]) -> None:
        self._title, self._words = title, words
        self.board = Board()
        self._stream = Patient(sys.stderr.fileno(), getattr(sys.stderr, "encoding", None) or "utf-8")
        self._console = Console(
            file=self._stream,  # type: ignore[arg-type] # as much of a text file as rich uses
            highlight=False, emoji=False, markup=False, no_color=not coloured(self._stream),
            force_terminal=watched(self._stream),
        )  # fmt: skip
        self._live: Live | None = None
        self._lock, self._over = threading.RLock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._before: dict[int, object] = {}
        self._ending = deferred(self._end)

    def open(self) -> None:
        """Begin; handlers of signals that end the process at once remove the picture first."""
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.getsignal(number)
                for number in _ENDING
                if signal.getsignal(number) is signal.SIG_DFL
            }
            for number in self._before:
                signal.signal(number, self._ending)
        if watched(self._stream):
            self._thread = threading.Thread(target=self._redraw, name="display", daemon=True)
            self._thread.start()

    def _end(self, number: int, _: FrameType | None) -> None:
        self.close()
        os.kill(os.getpid(), number)

    def show(self, message: str) -> None:
        """Show a message as a line; where there is a picture, a step that goes well only changes it."""
        step = message if isinstance(message, Step) else None
        if step is not None:
            self.board.take(step)
        if message and (self._thread is None or step is None or not step.well):
            self.print(self._words(str(message)))

    def print(self, text: Text) -> None:
        """Print a text, above the picture."""
        with deferring(), self._lock:
            self._console.print(text, soft_wrap=True)

    def _redraw(self) -> None:
        while not self._over.wait(_PERIOD):
            self.draw()

    def draw(self) -> None:
        """Draw the current picture; there is none before the first step is known."""
        while not self._lock.acquire(
            timeout=_PERIOD
        ):  # the main thread may hold it in a signal handler that ends us
            if self._over.is_set():
                return
        try:
            self._draw()
        finally:
            self._lock.release()

    def _draw(self) -> None:
        if self._over.is_set() or not self.board.total:
            return
        with suppress(OSError):
            size = os.get_terminal_size(self._stream.fileno())
            self._console.size = (size.columns or WIDTH, size.lines or 25)
        width, height = self._console.size
        shown = picture(self._title, self.board, width - 1, height)
        if self._live is None:
            self._live = Live(
                shown,
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(shown, refresh=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the picture away while a block prints; the next one is drawn below that."""
        with self._lock:
            self._clear()
            yield

    def _clear(self) -> None:
        with deferring(), self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None

    def close(self) -> None:
        """Remove the picture, end the thread that draws it, and restore the signal handlers."""
        self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()  # no longer than the stream is patient
        self._clear()
        if self._thread is not None:  # once more by ourselves: a signal may have come while rich was printing
            self._stream.write(_CURSOR)
            self._stream.flush()
        for number, handler in self._before.items():
            if signal.getsignal(number) is self._ending:
                signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
        self._stream.close()
