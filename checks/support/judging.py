"""Turns what a rule could not see into an inconclusive verdict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from testbed.errors import InstrumentError
from testbed.hosts.rules import UnseenError


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
