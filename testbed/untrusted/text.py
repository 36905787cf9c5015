"""Text that a guest, a node, a console or a file gave, made harmless for whoever shows it. Pure.

Every such text goes through `clean`; the other functions decide about its lines. What obeys text is a
terminal (escape sequences, directions of writing), an XML parser, and a CI system that reads our output:
GitHub obeys lines that begin with ``::``, whatever white space stands before it, Azure and TeamCity obey
``##vso[`` and ``##teamcity[`` anywhere in a line.
"""

from __future__ import annotations

import re
import unicodedata

SIZE = 2**21  # characters of one text
LINE = 2000  # characters of one line
BLOCK, LINES = 8000, 60  # characters and lines of one message
BAR = "  | "  # before each line but the first of a message
_UNKNOWN = "\ufffd"
_CUT = " … (cut)"
_MARKS = 3  # marks that may stand upon one character; more of them paint over other lines
# What shows as nothing although Python calls it printable (Unicode's Default_Ignorable_Code_Point, and the
# empty Braille cell).
_EMPTY = (
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xE0100, 0xE01EF),
)
_COMMAND = re.compile(r"##(?=\w*\[)")
_SPOKEN = re.compile(r"^(?=[^\S\n]*::)", re.MULTILINE)


class _Harmless(dict[int, int]):
    """A table for `str.translate`: each character as it is, or what stands for it."""

    def __missing__(self, code: int) -> int:
        shown = chr(code).isprintable() and not any(first <= code <= last for first, last in _EMPTY)
        self[code] = code if shown or code in (9, 10) else ord(_UNKNOWN)
        return self[code]


def clean(text: object, limit: int = SIZE) -> str:
    """Return text of bounded length that nothing obeys; its lines and tabs stay.

    Control characters, characters that turn the direction of writing or show as nothing, lone surrogates and
    unassigned code points become U+FFFD.

    Args:
        limit: characters that are kept.

    """
    whole = str(text)
    kept = whole[:limit].replace("\r\n", "\n")
    if not (kept.isascii() and kept.isprintable()):
        kept = _without_towers(kept.translate(_Harmless()))
    return _COMMAND.sub(f"#{_UNKNOWN}#", kept) + (_CUT if len(whole) > limit else "")


def _without_towers(text: str) -> str:
    """Return text in which at most `_MARKS` combining marks follow one another."""
    if text.isascii():
        return text
    found, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        found.append(character if marks <= _MARKS else _UNKNOWN)
    return "".join(found)


def line(text: object, limit: int = LINE) -> str:
    """Return cleaned text on one line, so that it cannot pass for another line of ours."""
    return clean(" ".join(clean(text, 4 * limit).split()), limit)


def block(text: object, bar: str = BAR) -> str:
    """Return cleaned text whose lines but the first stand behind a bar; at most `BLOCK` characters and
    `LINES` lines.
    """
    first, *rest = clean(text, BLOCK).rstrip().split("\n", LINES) or [""]
    more = [_CUT.strip()] if len(rest) == LINES else []
    return "\n".join((first, *(f"{bar}{item}".rstrip() for item in (*rest[: LINES - 1], *more))))


def barred(text: object, lines: int) -> list[str]:
    """Return the first lines of cleaned text, each behind a bar."""
    return [f"| {item}".rstrip() for item in clean(text).splitlines()[:lines]]


def unspoken(text: str) -> str:
    """Return text of which no line begins as a command to a CI system does; such lines get a bar."""
    return _SPOKEN.sub("| ", text)


def passed_on(data: bytes) -> str:
    """Return what a guest or machine printed, for somebody who asked for it: cleaned, line by line as it
    was.
    """
    return unspoken(clean(data.decode(errors="replace"), max(SIZE, len(data))))
