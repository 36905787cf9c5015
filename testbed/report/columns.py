"""Text in columns of a terminal: measured in cells, wrapped, shortened, padded. Pure.

A wide character takes two cells, and a combining one none. No text is markup. No wrapped line begins as a
command to a CI system does: see `testbed.untrusted.text`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import get_character_cell_size

WIDTH = 120  # cells of a line where the width is unknown, as in a pipe
NARROWEST = 20  # cells; a smaller width reported by a terminal is ignored
ELLIPSIS = "…"
BAR = "| "  # before each further line of foreign text


@dataclass(frozen=True, slots=True)
class Line:
    """One line for people.

    Args:
        head: its beginning, which alone has a colour.
        rest: all behind it.
        style: a style of rich for the head, such as ``bold red``; empty for none.

    """

    head: str
    rest: str = ""
    style: str = ""

    @property
    def plain(self) -> str:
        """The line without colour."""
        return (self.head + self.rest).rstrip()


def cells(text: str) -> int:
    """Return the maximum width of text in cells; terminals draw some sequences as one character."""
    return sum(map(get_character_cell_size, text))


def shorten(text: str, width: int) -> str:
    """Return text of at most `width` cells; an ellipsis stands for the rest."""
    if cells(text) <= width:
        return text
    first = next(_folded(text, max(1, width - 1), width))
    return f"{first.rstrip()}{ELLIPSIS}" if width > 1 else ELLIPSIS[:width]


def pad(text: str, width: int) -> str:
    """Return text with blanks behind it, so that it takes `width` cells."""
    return text + " " * (width - cells(text))


def wrap(text: str, width: int, first: int | None = None) -> list[str]:
    """Return text as lines of at most `width` cells, broken between words where possible.

    A line that would begin with ``::`` gets a bar, since GitHub obeys such a line, indented or not.

    Args:
        first: cells of the first line, if its width differs.

    """
    spare = len(BAR) if "::" in text else 0
    rooms = [max(2, (width if first is None else first) - spare), max(2, width - spare)]
    lines = [""]
    for word in text.split():
        room = rooms[len(lines) > 1]
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cells(joined) <= room:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        pieces = _folded(word, rooms[len(lines) > 1], rooms[1])
        lines[-1] = next(pieces)
        lines += pieces
    return [f"{BAR}{item}" if item.startswith("::") else item for item in lines]


def hanging(head: str, text: str, width: int, style: str = "") -> list[Line]:
    """Return text behind a head; each further line is marked with a bar as foreign text."""
    start = f"{' ' * min(4, width // 10)}{BAR}"
    room = width - cells(head) - 1
    if room < NARROWEST // 2:  # the head has a line of its own
        return [
            *(Line(part, "", style) for part in wrap(head, width)),
            *(Line(start, item) for item in wrap(text, width - len(start))),
        ]
    first, *more = wrap(text, width - len(start), room)
    return [Line(head, f" {first}", style), *(Line(start, item) for item in more)]


def _folded(text: str, width: int, later: int) -> Iterator[str]:
    """Yield pieces of text, the first and the later ones of at most so many cells.

    A combining character stays with the one before it.
    """
    piece, size = "", 0
    for character in text:
        more = get_character_cell_size(character)
        if piece and size + more > width:
            yield piece
            piece, size, width = "", 0, later
        piece, size = piece + character, size + more
    yield piece


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()
) -> list[str]:
    """Return rows under their heads, each column as wide as its widest cell.

    Blanks at the ends of lines are left out.

    Args:
        right: columns that are aligned to the right, such as numbers.

    """
    widths = [max(map(cells, column)) for column in zip(heads, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        shown = (
            " " * (size - cells(cell)) + cell if number in right else pad(cell, size)
            for number, (cell, size) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(shown).rstrip()

    return [line(heads), *map(line, rows)]
