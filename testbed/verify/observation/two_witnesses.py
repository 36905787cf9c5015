"""Compares two witnesses of received frames: a guest's recorder and its node's. Pure.

A guest may be deaf, or lie; so its records count only for frames that it cannot have invented, and never
against its node's (docs/design.md, section 6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from testbed.verify.probe.tokens import Tokens

_LISTENERS = (
    "tcp-accepted",
    "udp-received",
)  # kinds of records that are no frames; only the guest itself can make them
Records = Sequence[Mapping[str, Any]]


def counted(tokens: Tokens, told: Records, seen: Records) -> list[Mapping[str, Any]]:
    """Return the records of one guest that are evidence.

    These are all of its node's, and those of its own that it cannot have invented.

    Args:
        told: the records of the guest's recorder.
        seen: the records of its node's recorder, of frames handed to the guest.
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
    """Return whether some record carries a token."""
    return any(record.get("token") == token for record in records)
