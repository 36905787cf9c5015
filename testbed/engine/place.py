"""Protocols of the engine, which drivers and the simulator of the tests implement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Protocol, Self

from testbed.plan.diff import Action, Observed

Progress = Callable[[str], None]


class StepKind(Enum):
    """The event that a step reports."""

    PLANNED = auto()
    BEGUN = auto()
    NOTE = auto()
    ENDED = auto()


class Step(str):
    """A progress message about a task, from which a display shows running and remaining work.

    Without a display, it is printed as a line like other messages; an empty one is not printed.

    Args:
        name: name of the task, unique among running tasks.
        pieces: number of tasks that are planned.
        well: False if the message must be shown even if all else succeeds.

    """

    name: str
    kind: StepKind
    pieces: int
    well: bool

    @classmethod
    def _of(
        cls, kind: StepKind, text: str = "", name: str = "", *, pieces: int = 0, well: bool = True
    ) -> Self:
        step = cls(text)
        step.name, step.kind, step.pieces, step.well = name, kind, pieces, well
        return step

    @classmethod
    def planned(cls, pieces: int) -> Self:
        """Return the message that a number of further tasks is planned; each will begin and end."""
        return cls._of(StepKind.PLANNED, pieces=pieces)

    @classmethod
    def begun(cls, name: str, text: str = "") -> Self:
        """Return the message that a task begins."""
        return cls._of(StepKind.BEGUN, text, name)

    @classmethod
    def note(cls, name: str, text: str, *, well: bool = True) -> Self:
        """Return a message about a running task."""
        return cls._of(StepKind.NOTE, text, name, well=well)

    @classmethod
    def ended(cls, name: str, text: str = "", *, well: bool = True) -> Self:
        """Return the message that a task has ended."""
        return cls._of(StepKind.ENDED, text, name, well=well)


class Place(Protocol):
    """A place with resources: the outer machine, the controller or a node."""

    @property
    def name(self) -> str:
        """Name of the place."""

    def wait(self) -> None:
        """Wait until the place can be observed, and no command of an earlier session changes it.

        Raises:
            ProvisioningError: the place is not ready before its deadline, or a command runs on.

        """

    def recover(self) -> Sequence[str]:
        """Repair conditions that would prevent observation; return a note for each repair.

        Raises:
            ProvisioningError: a repair fails.

        """

    def observe(self) -> Observed:
        """Return every resource of this lab that exists here, with live properties."""

    def perform(self, action: Action) -> None:
        """Carry out one action; it must be idempotent.

        Raises:
            ProvisioningError: the action failed.

        """
