"""Turns what a rule or a reading could not see into an inconclusive verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from testbed.errors import InstrumentError
from testbed.hosts.rules import UnseenError

_SHOWN = 6


@contextmanager
def judging(subject: str) -> Iterator[None]:
    """Raise `InstrumentError` where a rule in the block cannot judge.

    Args:
        subject: what the rules judge, for the error.

    Raises:
        InstrumentError: a rule has raised `UnseenError`.
    """
    try:
        yield
    except UnseenError as error:
        raise InstrumentError(
            f"{subject} cannot be judged",
            fact=str(error),
            remedy="repeat the check; report it as a bug if that does not help",
        ) from error


def require_read(machine: str, gaps: Sequence[str]) -> None:
    """Require that a machine was read without gaps.

    Args:
        gaps: places that could not be read, with the reason.

    Raises:
        InstrumentError: there are some.
    """
    if gaps:
        raise InstrumentError(
            f"{machine} could not be read whole",
            fact="; ".join(gaps[:_SHOWN]),
            remedy="run `testbed status`",
        )
