"""Differences that are no findings, each with a reason, from ``allowed.toml``. Pure.

A line names one domain and a pattern that the whole key must match. If it only allows that parts of a value
change, it names these parts. It also names the controls that are blind in such a place.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("allowed.toml")
_FIELDS = {"domain", "key", "parts", "reason", "blind"}


@dataclass(frozen=True, slots=True)
class Allowed:
    """One line of the list.

    Args:
        key: pattern that a whole key must match.
        parts: properties that may differ; if empty, the record may come and go, and differ in all.
        reason: why it is no finding.
        blind: controls that are blind there.

    """

    domain: str
    key: re.Pattern[str]
    parts: frozenset[str]
    reason: str
    blind: frozenset[str]

    @property
    def name(self) -> str:
        """The words that distinguish it from other lines."""
        return f"{self.domain} {self.key.pattern} {' '.join(sorted(self.parts))}".rstrip()

    def covers(self, key: str, part: str) -> bool:
        """Return whether it allows a difference of a property, or of a whole record."""
        return (not self.parts or part in self.parts) and self.key.fullmatch(key) is not None


def load(file: Path = FILE) -> tuple[Allowed, ...]:
    """Return the list.

    Raises:
        ValueError: a line is not well-formed.

    """
    found = []
    for line in tomllib.loads(file.read_text(encoding="utf-8")).get("allowed", []):
        if not {"domain", "key", "reason", "blind"} <= set(line) <= _FIELDS:
            raise ValueError(f"{line} has other fields than {', '.join(sorted(_FIELDS))}")
        try:
            pattern = re.compile(line["key"])
        except re.error as error:
            raise ValueError(f"{line['key']} is no pattern: {error}") from error
        found.append(
            Allowed(
                line["domain"],
                pattern,
                frozenset(line.get("parts", ())),
                line["reason"],
                frozenset(line["blind"]),
            )
        )
    return tuple(found)
