"""What the command line prints: results on standard output, progress and errors on standard error.

Nothing else in this package prints. No text is markup here, and every text goes through
`testbed.untrusted.text` once more.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from testbed.errors import TestbedError
from testbed.untrusted import text as foreign

ERR = Console(
    stderr=True, highlight=False, emoji=False, markup=False
)  # or parts of IPv6 addresses become pictures
Json = Annotated[bool, typer.Option("--json", help="print JSON", envvar="TESTBED_JSON")]
_START = time.monotonic()


def elapsed() -> float:
    """Return the seconds since the tool started."""
    return time.monotonic() - _START


def say(message: str) -> None:
    """Tell people who wait what is going on."""
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
    """Let what Python prints by itself, errors of threads and logs of libraries, be printed as everything
    else is.
    """
    threading.excepthook = lambda told: None if told.exc_value is None else fail_inside(told.exc_value)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Formatter())


def fail(error: TestbedError) -> None:
    """Print an error of ours: what, the fact observed, the remedy."""
    warn(f"error: {error}")


def fail_inside(error: BaseException) -> None:
    """Print an error that nothing foresaw, with the places in our code; its text may be a guest's."""
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
