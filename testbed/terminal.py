"""What the command line prints: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer
from rich.console import Console

from testbed.report.formats import clean

ERR = Console(stderr=True, highlight=False, emoji=False)  # or parts of IPv6 addresses become pictures
Json = Annotated[bool, typer.Option("--json", help="print JSON", envvar="TESTBED_JSON")]
_START = time.monotonic()


def elapsed() -> float:
    """Return the seconds since the tool started."""
    return time.monotonic() - _START


def say(message: str) -> None:
    """Tell people who wait what is going on."""
    ERR.print(f"[dim]{elapsed():6.1f} s[/dim]  {escape(message)}", soft_wrap=True)


def escape(text: str) -> str:
    """Return text that neither a terminal nor rich's markup obeys."""
    return clean(text).replace("\t", " ").replace("[", "\\[")


def printable(data: bytes) -> str:
    """Return a guest's output without anything that a terminal would obey."""
    return clean(data.decode(errors="replace"))


def out(text: str) -> None:
    """Print a result."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
