"""What the engine needs from the world: protocols that drivers, and the simulator of the tests, fulfil."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Protocol, Self

from testbed.plan.diff import Action, Observed

Progress = Callable[[str], None]


class StepKind(Enum):
    """The event that a step reports of a piece of work."""

    PLANNED = auto()
    BEGUN = auto()
    NOTE = auto()
    ENDED = auto()


class Step(str):
    """A message about a piece of work, from which a display learns what runs and what is left.

    Where no display is, it is a line as other messages are; an empty one is no line.

    Args:
        name: the piece of work; no two that run at the same time have the same.
        pieces: how many pieces of work are planned.
        well: False if a reader should know of it even if everything else goes well.

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
        """Return that so many more pieces of work are to be done; each will begin and end."""
        return cls._of(StepKind.PLANNED, pieces=pieces)

    @classmethod
    def begun(cls, name: str, text: str = "") -> Self:
        """Return that a piece of work begins."""
        return cls._of(StepKind.BEGUN, text, name)

    @classmethod
    def note(cls, name: str, text: str, *, well: bool = True) -> Self:
        """Return something about a piece of work that goes on."""
        return cls._of(StepKind.NOTE, text, name, well=well)

    @classmethod
    def ended(cls, name: str, text: str = "", *, well: bool = True) -> Self:
        """Return that a piece of work has ended."""
        return cls._of(StepKind.ENDED, text, name, well=well)


class Place(Protocol):
    """Where resources live: the outer machine, the controller or a node."""

    @property
    def name(self) -> str:
        """Name of the place."""

    def wait(self) -> None:
        """Return when the place can be observed.

        Raises:
            ProvisioningError: it is not ready before its deadline.

        """

    def recover(self) -> Sequence[str]:
        """Set right what must be before the place can be observed, and return in words what was done.

        Raises:
            ProvisioningError: it cannot be set right.

        """

    def observe(self) -> Observed:
        """Return every resource of this lab that exists here, with live properties."""

    def perform(self, action: Action) -> None:
        """Carry out one action; doing it a second time does no harm.

        Raises:
            ProvisioningError: it could not be done.

        """
