"""Two witnesses of what came in at a guest: its own recorder, and its node's on its interfaces. Pure
(DESIGN.md, section 6).

A guest may be deaf, or lie; so its word counts only for frames that it cannot have made up, and never against
its node's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from testbed.verify.probe.tokens import Tokens

_LISTENERS = (
    "tcp-accepted",
    "udp-received",
)  # kinds of records that are no frames; only the guest itself can know
Records = Sequence[Mapping[str, Any]]


def counted(tokens: Tokens, told: Records, seen: Records) -> list[Mapping[str, Any]]:
    """Return the records of one guest that are evidence: all of its node's, and of its own those that it
    cannot have made up.

    Args:
        told: what the guest's recorder says.
        seen: what its node's recorder says that it handed to the guest.

    """
    common = tokens.marks_of(record.get("token") for record in seen)
    own = ((record, tokens.mark_of(record.get("token"))) for record in told)
    return [
        *seen,
        *(
            record
            for record, mark in own
            if mark and (mark not in common or record.get("kind") in _LISTENERS)
        ),
    ]


def only(tokens: Tokens, one: Records, other: Records) -> set[str]:
    """Return the marks of the probes that one witness saw and the other did not."""
    first, second = (tokens.marks_of(record.get("token") for record in records) for records in (one, other))
    return first - second


def holds(records: Records, token: str) -> bool:
    """Tell whether a token is among some records."""
    return any(record.get("token") == token for record in records)
