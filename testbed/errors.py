"""Errors that users meet, in three parts: the failure, the fact observed, the remedy.

Two families, never mixed. A `TestbedError` means that the tool, the machine or the input is at fault;
its exit code is part of the command-line contract (docs/design.md, section 7). That a wall is open is not an
error of the tool: it is a verdict, raised only by an ``assert`` written in a check.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from testbed.untrusted.text import block, line


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAIL = 1
    USAGE = 2
    INCONCLUSIVE = 3
    NOT_CAPABLE = 4
    PROVISIONING = 5
    CHANGES = 6  # of `plan --detailed-exitcode`: there is something to do
    INTERRUPTED = 130


class TestbedError(Exception):
    """Root of all errors that users see.

    Args:
        what: the failure, in one sentence.
        fact: the observation that shows it.
        remedy: an action that the reader can take.

    """

    __test__ = False
    exit_code = Exit.PROVISIONING

    def __init__(self, what: str, *, fact: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.fact = fact
        self.remedy = remedy

    def __str__(self) -> str:
        bar = f"{'':10}| "  # the fact may quote a guest: of any number of lines
        return (
            f"{line(self.what)}\n  observed: {block(self.fact, bar)}\n  to do:    {block(self.remedy, bar)}"
        )


class UsageError(TestbedError):
    """The command line is wrong."""

    exit_code = Exit.USAGE


class MachineError(TestbedError):
    """The outer machine cannot do what was asked."""

    exit_code = Exit.NOT_CAPABLE


class ImageError(TestbedError):
    """An image could not be built, or has changed since it was built."""


class ProvisioningError(TestbedError):
    """A part of the lab did not reach its desired state; the same command, run again, resumes."""


class LockedError(TestbedError):
    """Another process works on the same lab."""


class InstrumentError(TestbedError):
    """An observation could not be completed; the verdict that needed it is inconclusive.

    One that no verdict needed ends a command like any other accident.
    """


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One mistake in a topology file.

    Args:
        line: line of the file, from 1.
        path: place in the document, as in ``tenants.red.guests.web.node``.
        fact: what is written there, and why it cannot be.
        remedy: what is allowed, with the nearest valid spelling where there is one.

    """

    line: int
    path: str
    fact: str
    remedy: str


class TopologyError(TestbedError):
    """A topology file that cannot be used, with every mistake found in one pass."""

    exit_code = Exit.USAGE
    SHOWN = 20  # mistakes that its text has; `mistakes` has all

    def __init__(self, file: str, mistakes: Iterable[Mistake]) -> None:
        self.file = file
        self.mistakes = tuple(sorted(set(mistakes)))
        count = len(self.mistakes)
        super().__init__(
            f"{file} is not a usable topology",
            fact=f"{count} mistake{'s' if count != 1 else ''}",
            remedy="correct the file, then run `testbed validate` again",
        )

    def __str__(self) -> str:
        lines = [line(f"{self.what}: {self.fact}")]
        for mistake in self.mistakes[: self.SHOWN]:
            lines.append(line(f"{self.file}:{mistake.line}: {mistake.path or 'topology'}: {mistake.fact}"))
            lines.append(f"    {line(mistake.remedy)}")
        if len(self.mistakes) > self.SHOWN:
            lines.append(
                f"{len(self.mistakes) - self.SHOWN} more mistakes are not shown; correct these first"
            )
        return "\n".join(lines)
