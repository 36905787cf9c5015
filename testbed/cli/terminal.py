"""What the command line prints: results on standard output, progress and errors on standard error.

Nothing else in this package prints. No text is markup here, and every text goes through
`testbed.untrusted.text` once more.
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
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from testbed.errors import Exit, ProvisioningError, TestbedError
from testbed.untrusted import text as foreign

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PLAIN = "CI" in os.environ and not os.environ.get(
    "FORCE_COLOR"
)  # a CI system may give us a terminal; its log shows the codes
ERR = Console(
    stderr=True,
    highlight=False,
    emoji=False,  # or parts of IPv6 addresses become pictures
    markup=False,
    color_system=None if _PLAIN else "auto",
)
Json = Annotated[bool, typer.Option("--json", help="print JSON", envvar="TESTBED_JSON")]
_START = time.monotonic()
_LOUDNESS = {"quiet": False, "verbose": False}


def set_loudness(*, quiet: bool, verbose: bool) -> None:
    """Print no progress, or print where errors arose."""
    _LOUDNESS.update(quiet=quiet, verbose=verbose)


def elapsed() -> float:
    """Return the seconds since the tool started."""
    return time.monotonic() - _START


def say(message: str) -> None:
    """Tell people who wait what is going on."""
    if _LOUDNESS["quiet"]:
        return
    ERR.print(
        Text(f"{elapsed():6.1f} s  ", "dim") + Text(_spaced(foreign.block(message, f"{'':10}| "))),
        soft_wrap=True,
    )


def warn(message: str) -> None:
    """Print a message of several lines on standard error."""
    ERR.print(Text(_spaced(foreign.unspoken(foreign.clean(message)))), soft_wrap=True)


def _spaced(text: str) -> str:
    return text.replace("\t", " ")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return what a library logs, which may quote a machine, as a message of ours."""
        return f"log: {foreign.block(super().format(record))}"


def guard() -> None:
    """Route what Python prints by itself, errors of threads and logs of libraries, through this module.

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
    """Print an error of ours: what, the fact observed, the remedy."""
    warn(f"error: {error}")
    if _LOUDNESS["verbose"]:
        warn("  | " + foreign.block("".join(traceback.format_exception(error))[-foreign.BLOCK :]))


def fail_inside(error: BaseException) -> None:
    """Print an error that nothing foresaw, with the places in our code; its text may be a guest's."""
    told = "".join(traceback.format_exception(error))[-foreign.BLOCK :]
    warn(f"error: the tool itself has failed: {foreign.line(repr(error))}\n  | " + foreign.block(told))
    warn("  to do:    report this as a bug; nothing is known about the walls")


def out(text: str) -> None:
    """Print a result."""
    _write(
        foreign.unspoken(
            foreign.clean(text if text.endswith("\n") else text + "\n", max(foreign.SIZE, len(text)))
        )
    )


def out_json(data: object, indent: int | None = None) -> None:
    """Print a result as JSON, in ASCII; texts in it keep their value, and no CI system finds a command in
    them.
    """
    _write(json.dumps(data, indent=indent, default=str).replace("##", "\\u0023#") + "\n")


def pass_on(stdout: bytes, stderr: bytes = b"") -> None:
    """Print what a guest or a machine printed, on the same streams; see
    `testbed.untrusted.text.passed_on`.
    """
    _write(foreign.passed_on(stdout))
    sys.stderr.write(foreign.passed_on(stderr))


def _write(text: str) -> None:
    """Write to standard output, whatever alphabet that has."""
    alphabet = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(alphabet, "replace").decode(alphabet))


class Stream(io.FileIO):
    """A standard stream that never fails: the output is dropped from the first error on, which is kept.

    A reader that has gone, a terminal that was closed or a full disk must change neither what a command does nor its exit code
    behind its back; `finish` decides about the code.
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
    """Put a `Stream` in place of Python's streams; one that is closed leads to /dev/null, so that no file gets its number."""
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
    """Return a text stream that never fails: UTF-8, but for a terminal, and where a variable names another alphabet."""
    raw = Stream(number, "w", closefd=False)
    kept = before is not None and (raw.isatty() or os.environ.get("PYTHONIOENCODING"))
    alphabet = before.encoding if before is not None and kept else "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=alphabet,
        errors="replace",
        line_buffering=number == 2 or raw.isatty(),
    )


def finish(code: int) -> int:
    """Write out the rest, and return the exit code: a result that was lost is no success, unless its reader went away."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    lost = getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "lost", None)
    if lost is None or lost.errno in (
        errno.EPIPE,
        errno.EIO,
        errno.ECONNRESET,
    ):  # EIO: a terminal that is gone
        return code
    fail(ProvisioningError(
        "the output is not complete", fact=f"standard output: {lost.strerror}",
        remedy="let it go elsewhere, and run the command again; `testbed report` shows the result of a check again",
    ))  # fmt: skip
    return code or Exit.PROVISIONING
