"""Reads the tables of docs/controls.md: threats, observations and clauses of the source document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/controls.md"
CONTROL = re.compile(r"\b(?:ACC|AUD|BND|CMP|DEV|DOS|NET|PLT|PRC|PRO|RES|SCH|STO|VBS|VMM|XPL)-[0-9]{2}\b")


@dataclass(frozen=True, slots=True)
class Control:
    """One row of the page.

    Args:
        observation: how a check looks; empty where there is no check.
        clauses: ids of the clauses of the source document.

    """

    id: str
    threat: str
    observation: str
    clauses: tuple[str, ...]


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of every table row of a Markdown text, head and rule lines included."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def clauses(text: str) -> dict[str, str]:
    """Return the claims of the source document by the id of their clause."""
    return {cells[0]: cells[1] for cells in rows(text) if re.fullmatch(r"S[0-9]+", cells[0])}


def controls(text: str) -> dict[str, Control]:
    """Return every control of the page by its id.

    Raises:
        ValueError: an id has two rows, or a row names a clause that the page does not have.

    """
    known = clauses(text)
    found: dict[str, Control] = {}
    for cells in rows(text):
        if not CONTROL.fullmatch(cells[0]):
            continue
        own = tuple(cells[-1].split(", "))
        if cells[0] in found or not set(own) <= set(known):
            msg = f"{cells[0]}: a second row, or a clause of {own} that does not exist"
            raise ValueError(msg)
        found[cells[0]] = Control(cells[0], cells[1], cells[2] if len(cells) == 4 else "", own)
    return found
