"""Tokens of one observation: each identifies one probe's frames, known to its sender only.

A token is ``tb-<run>-<mark>-<proof>.``: run and mark are public, so that every recorder finds tokens and
people read them; the proof is the HMAC-SHA256 of the mark, cut to 80 bits, under a key that never leaves
this process (RFC 2104, section 5). A mark belongs to one sender. So a token with another proof was never
issued and proves nothing, and one with the right proof came from its sender, by whatever path. Pure.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

_PROOF = 10  # octets
_NUMBER = 24  # bits of a DHCP transaction that cannot be guessed; the rest is its kind


@dataclass(frozen=True, slots=True)
class Tokens:
    """The prefix and the key of one observation's tokens.

    Args:
        prefix: beginning of all tokens; every recorder receives it.
        key: makes them secret; it never leaves this process.
    """

    prefix: str
    key: bytes = field(repr=False)

    @classmethod
    def fresh(cls) -> Tokens:
        """Return the tokens of a new observation."""
        return cls(f"tb-{secrets.token_hex(4)}-", secrets.token_bytes(32))

    def of(self, mark: str) -> str:
        """Return the token that a probe's frames carry."""
        return f"{self.beginning(mark)}{base64.b32encode(self._digest(mark)[:_PROOF]).decode().lower()}."

    def beginning(self, mark: str) -> str:
        """Return the beginning of a probe's token, which suffices for a recorder that waits for it."""
        return f"{self.prefix}{mark}-"

    def mark_of(self, token: object) -> str:
        """Return the mark of a token made here; the empty string for any other text."""
        text = str(token)
        mark = text.removeprefix(self.prefix).rpartition("-")[0] if text.isascii() else ""
        return mark if mark and hmac.compare_digest(text, self.of(mark)) else ""

    def marks_of(self, tokens: Iterable[object]) -> set[str]:
        """Return the marks of the tokens that were made here."""
        return {mark for token in tokens if (mark := self.mark_of(token))}

    def transaction(self, kind: int, mark: str) -> int:
        """Return the number of a DHCP transaction, which an answer repeats (RFC 2131).

        Args:
            kind: its purpose, 8 bits, public.
        """
        return kind << _NUMBER | int.from_bytes(self._digest(mark)[: _NUMBER // 8], "big")

    def _digest(self, mark: str) -> bytes:
        return hmac.digest(self.key, mark.encode(), "sha256")
