"""Tokens of one observation: each tells one probe's frames from all others, and only its sender's guest knows
it. Pure.

A token is ``tb-<run>-<mark>-<proof>.``: run and mark are public, so that every recorder finds tokens and
people read them; the proof is the HMAC-SHA256 of the mark, cut to 80 bits, under a key that is never given
away (RFC 2104, section 5). A mark belongs to one sender. So a token with another proof was never handed out
and says nothing, and one with the right proof has come from its sender, by whatever path.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

_PROOF = 10  # octets
_NUMBER = 24  # bits of a DHCP transaction that cannot be guessed; the rest says what it is for


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the tokens of one observation are made of.

    Args:
        prefix: how all of them begin; every recorder is told.
        key: what makes them secret; it leaves this process never.

    """

    prefix: str
    key: bytes = field(repr=False)

    @classmethod
    def fresh(cls) -> Tokens:
        """Return those of a new observation."""
        return cls(f"tb-{secrets.token_hex(4)}-", secrets.token_bytes(32))

    def of(self, mark: str) -> str:
        """Return the token that a probe's frames carry."""
        return f"{self.beginning(mark)}{base64.b32encode(self._digest(mark)[:_PROOF]).decode().lower()}."

    def beginning(self, mark: str) -> str:
        """Return how a probe's token begins, which is all that who waits for it need know."""
        return f"{self.prefix}{mark}-"

    def mark_of(self, token: object) -> str:
        """Return the mark of the probe that a token was made for; the empty string if it was made by somebody
        else.
        """
        text = str(token)
        mark = text.removeprefix(self.prefix).rpartition("-")[0] if text.isascii() else ""
        return mark if mark and hmac.compare_digest(text, self.of(mark)) else ""

    def marks_of(self, tokens: Iterable[object]) -> set[str]:
        """Return the marks of those of some tokens that were made here."""
        return {mark for token in tokens if (mark := self.mark_of(token))}

    def transaction(self, kind: int, mark: str) -> int:
        """Return the number of a question to DHCP, which an answer repeats (RFC 2131).

        Args:
            kind: what it is for, 8 bits; these are public.

        """
        return kind << _NUMBER | int.from_bytes(self._digest(mark)[: _NUMBER // 8], "big")

    def _digest(self, mark: str) -> bytes:
        return hmac.digest(self.key, mark.encode(), "sha256")
