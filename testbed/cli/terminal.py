"""Output of the command line: results on standard output, progress and errors on stderr.

No other module of this package prints, except the live display (`testbed.cli.display`). No text is
interpreted as markup here, and every text goes through `testbed.untrusted.text` once more.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Annotated, TextIO

import typer
from rich.text import Text

from testbed.cli.display import Display, SteadyConsole, coloured, width_of
from testbed.errors import TestbedError
from testbed.report.columns import Line
from testbed.untrusted import text as foreign

ERR = SteadyConsole(
    stderr=True, highlight=False, emoji=False, markup=False
)  # or parts of IPv6 addresses become pictures
Json = Annotated[bool, typer.Option("--json", help="print JSON", envvar="TESTBED_JSON")]
_DISPLAYS: list[Display] = []  # one at most
_START = time.monotonic()


def elapsed() -> float:
    """Return the seconds since the tool started."""
    return time.monotonic() - _START


@contextmanager
def displayed(title: str) -> Iterator[None]:
    """Show the messages of `say` on one live display while a block runs.

    Without a terminal they are printed line by line.

    Args:
        title: the activity, in a word.
    """
    found = _descriptor(sys.stderr)
    if found is None or _DISPLAYS:
        yield
        return
    display = Display(title, _words)
    _DISPLAYS.append(display)
    try:
        display.open()
        yield
    finally:
        undisplay()


def undisplay() -> None:
    """Take the live display away, if there is one; signal handlers may call this."""
    while _DISPLAYS:
        _DISPLAYS.pop().close()


def say(message: str) -> None:
    """Print progress: a line, or a step of the work on the live display."""
    if _DISPLAYS:
        _DISPLAYS[-1].show(message)
    elif message:
        _print(_words(message))


def _words(message: str) -> Text:
    return Text.assemble((f"{elapsed():6.1f} s  ", "dim"), _spaced(foreign.block(message, f"{'':10}| ")))


def warn(message: str) -> None:
    """Print a message of several lines on standard error."""
    _print(Text(_spaced(foreign.unspoken(foreign.clean(message)))))


def _print(text: Text) -> None:
    """Print on standard error, and ignore that its reader has gone."""
    if _DISPLAYS:
        _DISPLAYS[-1].print(text)
        return
    try:
        ERR.print(Text() + text, soft_wrap=True)
    except BrokenPipeError:
        _hush(sys.stderr)


def _spaced(text: str) -> str:
    return text.replace("\t", " ")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return a log record of a library, which may quote a machine, as a message of ours."""
        return f"log: {foreign.block(super().format(record))}"


def guard() -> None:
    """Route Python's own output, errors of threads and logs of libraries, through this module."""
    threading.excepthook = lambda told: None if told.exc_value is None else fail_inside(told.exc_value)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Formatter())


def fail(error: TestbedError) -> None:
    """Print an error of ours: the failure, the fact observed, the remedy."""
    warn(f"error: {error}")


def fail_inside(error: BaseException) -> None:
    """Print an unexpected error, with its places in our code.

    Its text may come from a guest.
    """
    told = "".join(traceback.format_exception(error))[-foreign.BLOCK :]
    warn(f"error: the tool itself has failed: {foreign.line(repr(error))}\n  | " + foreign.block(told))
    warn("  to do:    report this as a bug; nothing is known about the walls")


def attended() -> bool:
    """Return whether a person can be asked: standard input and standard error are terminals."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def agreed(question: str) -> bool:
    """Ask a person, on standard error; no is the default.

    Raises:
        typer.Abort: the input has ended.

    """
    return typer.confirm(question, default=False, err=True)


def out(text: str) -> None:
    """Print a result."""
    _write(
        foreign.unspoken(
            foreign.clean(text if text.endswith("\n") else text + "\n", max(foreign.SIZE, len(text)))
        )
    )


def out_json(data: object, indent: int | None = None) -> None:
    """Print a result as JSON, in ASCII.

    Texts in it keep their value, and a CI system finds no command in them.
    """
    _write(json.dumps(data, indent=indent, default=str).replace("##", "\\u0023#") + "\n")


def pass_on(stdout: bytes, stderr: bytes = b"") -> None:
    """Print the output of a guest or a machine on the same streams.

    It is cleaned; see `testbed.untrusted.text.passed_on`.
    """
    _write(foreign.passed_on(stdout))
    with _unless_gone(sys.stderr):
        sys.stderr.write(foreign.passed_on(stderr))
        sys.stderr.flush()


def show(lines: Sequence[Line]) -> None:
    """Print a result line by line, in colours where a person watches."""
    if not coloured(sys.stdout):
        out("\n".join(line.plain for line in lines))
        return
    console = SteadyConsole(file=sys.stdout, force_terminal=True, highlight=False, emoji=False, markup=False)
    with _aside(), _unless_gone(sys.stdout):
        for line in lines:
            head, rest = (foreign.clean(part) for part in (line.head, line.rest))
            console.print(Text.assemble((head, line.style), rest.rstrip()), soft_wrap=True)


def width() -> int:
    """Return how many cells a line of standard output has."""
    return width_of(_descriptor(sys.stdout))


def _write(text: str) -> None:
    """Write to standard output, whatever its encoding."""
    alphabet = getattr(sys.stdout, "encoding", None) or "utf-8"
    with _aside(), _unless_gone(sys.stdout):
        sys.stdout.write(text.encode(alphabet, "replace").decode(alphabet))
        sys.stdout.flush()


def _aside() -> AbstractContextManager[None]:
    """Let a block print where the live display is."""
    return _DISPLAYS[-1].paused() if _DISPLAYS else nullcontext()


@contextmanager
def _unless_gone(stream: TextIO) -> Iterator[None]:
    """Let a block print to a reader that may have gone, as head(1) does; no exit code changes."""
    try:
        yield
    except BrokenPipeError:
        _hush(stream)


def _hush(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, so that Python's last flush at exit does not fail."""
    found = _descriptor(stream)
    if found is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, found)
        os.close(nowhere)


def _descriptor(stream: TextIO) -> int | None:
    """Return the descriptor of a stream; None if it has none, as in tests."""
    with suppress(OSError, ValueError, AttributeError):
        return stream.fileno()
    return None
