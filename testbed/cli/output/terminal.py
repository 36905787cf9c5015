"""Output of the command line: results on standard output, progress and errors on stderr.

No other module of this package prints, except the live display (`testbed.cli.output.display`). No text is
interpreted as markup here, and every text goes through `testbed.untrusted.text` once more.
"""

from __future__ import annotations

import errno
import io
import json
import locale
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.console import Console
from rich.text import Text

from testbed.cli.output.display import Display, coloured, plain_log, width_of
from testbed.errors import Exit, ProvisioningError, TestbedError
from testbed.report.columns import Line
from testbed.untrusted import text as foreign

if TYPE_CHECKING:
    from typing_extensions import Buffer

ERR = Console(
    stderr=True,
    highlight=False,
    emoji=False,  # or parts of IPv6 addresses become pictures
    markup=False,
    color_system=None if plain_log() else "auto",
)
Json = Annotated[bool, typer.Option("--json", help="print JSON", envvar="TESTBED_JSON")]
_DISPLAYS: list[Display] = []  # one at most
_START = time.monotonic()
_GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)  # the reader; EIO: a closed terminal
_LOUDNESS = {"quiet": False, "verbose": False}


def set_loudness(*, quiet: bool, verbose: bool) -> None:
    """Print no progress, or print where errors arose."""
    _LOUDNESS.update(quiet=quiet, verbose=verbose)


def elapsed() -> float:
    """Return the seconds since the tool started."""
    return time.monotonic() - _START


@contextmanager
def displayed(title: str) -> Iterator[None]:
    """Show the messages of `say` on one live display while a block runs.

    Without a terminal they are printed line by line. There is no display if no progress is wanted.

    Args:
        title: the activity, in a word.
    """
    found = _descriptor(sys.stderr)
    if found is None or _DISPLAYS or _LOUDNESS["quiet"]:
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
    """Print progress, if it is wanted: a line, or a step of the work on the live display."""
    if _LOUDNESS["quiet"]:
        return
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
    """Print on standard error, above the live display if there is one."""
    if _DISPLAYS:
        _DISPLAYS[-1].print(text)
    else:
        ERR.print(Text() + text, soft_wrap=True)


def _spaced(text: str) -> str:
    return text.replace("\t", " ")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return a log record of a library, which may quote a machine, as a message of ours."""
        return f"log: {foreign.block(super().format(record))}"


def guard() -> None:
    """Route Python's own output, errors of threads and logs of libraries, through this module.

    From now on no stream fails, and files are UTF-8 in any locale.
    """
    _hold_streams()
    with suppress(locale.Error):
        # the default of `open`; terminals keep the alphabet that they had
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    threading.excepthook = lambda told: None if told.exc_value is None else fail_inside(told.exc_value)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Formatter())


def fail(error: TestbedError) -> None:
    """Print an error of ours: the failure, the fact observed, the remedy."""
    warn(f"error: {error}")
    if _LOUDNESS["verbose"]:
        warn("  | " + foreign.block("".join(traceback.format_exception(error))[-foreign.BLOCK :]))


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
    sys.stderr.write(foreign.passed_on(stderr))
    sys.stderr.flush()


def show(lines: Sequence[Line]) -> None:
    """Print a result line by line, in colours where a person watches."""
    if not coloured(sys.stdout):
        out("\n".join(line.plain for line in lines))
        return
    console = Console(file=sys.stdout, force_terminal=True, highlight=False, emoji=False, markup=False)
    with _aside():
        for line in lines:
            head, rest = (foreign.clean(part) for part in (line.head, line.rest))
            console.print(Text.assemble((head, line.style), rest.rstrip()), soft_wrap=True)


def width() -> int:
    """Return how many cells a line of standard output has."""
    return width_of(_descriptor(sys.stdout))


def _write(text: str) -> None:
    """Write to standard output, whatever its encoding."""
    alphabet = getattr(sys.stdout, "encoding", None) or "utf-8"
    with _aside():
        sys.stdout.write(text.encode(alphabet, "replace").decode(alphabet))
        sys.stdout.flush()


def _aside() -> AbstractContextManager[None]:
    """Let a block print where the live display is."""
    return _DISPLAYS[-1].paused() if _DISPLAYS else nullcontext()


def _descriptor(stream: TextIO) -> int | None:
    """Return the descriptor of a stream; None if it has none, as in tests."""
    with suppress(OSError, ValueError, AttributeError):
        return stream.fileno()
    return None


class TerminalStream(io.FileIO):
    """A standard stream that never fails.

    It keeps the first error, and drops all output after it.

    A reader that has gone, a closed terminal or a full disk changes neither the work of a command nor its
    exit code; `finish` chooses the code.
    """

    lost: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        """Write, or drop the data; waits where the other end is slow and the stream does not block."""
        size = memoryview(data).nbytes
        while self.lost is None:
            try:
                written: int | None = super().write(data)
            except OSError as error:
                self.lost = error
                break
            if written is not None:
                return written
            poll = select.poll()
            poll.register(self.fileno(), select.POLLOUT)
            poll.poll()
        return size


def _hold_streams() -> None:
    """Put a `TerminalStream` in place of Python's streams.

    A closed one leads to /dev/null, so that no file gets its number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = sys.__stdout__ = _held(1, sys.stdout)  # type: ignore[misc]
    if sys.stderr is sys.__stderr__:
        sys.stderr = sys.__stderr__ = _held(2, sys.stderr)  # type: ignore[misc]


def _held(number: int, before: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """Return a text stream that never fails.

    It is UTF-8, except for a terminal, and where PYTHONIOENCODING names another encoding.
    """
    raw = TerminalStream(number, "w", closefd=False)
    kept = before is not None and (raw.isatty() or os.environ.get("PYTHONIOENCODING"))
    alphabet = before.encoding if before is not None and kept else "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=alphabet,
        errors="replace",
        line_buffering=number == 2 or raw.isatty(),
    )


def finish(code: int) -> int:
    """Write the rest of the output, and return the exit code.

    A lost result is no success, unless its reader has gone.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    lost = getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "lost", None)
    if lost is None or lost.errno in _GONE:
        return code
    remedy = (
        "direct it elsewhere, and run the command again; `testbed report` shows the result of a check again"
    )
    fail(
        ProvisioningError(
            "the output is not complete", fact=f"standard output: {lost.strerror}", remedy=remedy
        )
    )
    return code or Exit.PROVISIONING
