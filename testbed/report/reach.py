"""Matrices of reachability in the width of a terminal. Pure functions of ``matrix.json``.

Guests have a matrix of their own, and so has each network of the machines. Rows are sources, columns are
targets by number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from testbed.report.columns import NARROWEST, WIDTH, Line, cells, hanging, pad, shorten
from testbed.untrusted.text import line as _line

_NAME = 32  # cells of a name
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SIGNS = {"!": "a leak", "x": "dead although allowed", "?": "not observed", ".": "nothing, as it must be"}
_WRONG = "bold red"
_Row = Mapping[str, Any]


def matrices(rows: Sequence[_Row], width: int = WIDTH) -> list[Line]:
    """Return the number of observations, a matrix of each group, and each violation.

    The groups are the guests and each network of the machines.

    Nothing where nothing was observed.

    Args:
        rows: of ``matrix.json``.
        width: cells that no line exceeds.

    """
    seen = [row for row in rows if row["observed"] is not None]
    if not seen:
        return []
    width = max(NARROWEST, width)
    denied = sum(not row["observed"] for row in seen)
    told = f"{len(seen)} of {len(rows)} cells observed, {denied} of them denied"
    lines = hanging("reach:", f"{told}; from rows to columns got through:", width)
    letters: dict[tuple[str, ...], str] = {}
    used: set[str] = set()
    for group in _groups(rows):
        if any(row["observed"] is not None for row in group):
            lines += _matrix(group, width, letters, used)
    legend = {
        **{letter: ", ".join(services) for services, letter in letters.items()},
        **{s: t for s, t in _SIGNS.items() if s in used},
    }
    lines += hanging("signs:", "; ".join(f"{sign} {meaning}" for sign, meaning in legend.items()), width)
    wrong = [row for row in seen if bool(row["observed"]) != bool(row["allowed"])]
    for word, which in (("DEAD", False), ("LEAK", True)):
        for pair, services in _pairs([row for row in wrong if bool(row["observed"]) is which]).items():
            lines += hanging(f"{word} {pair}:", ", ".join(services), width, _WRONG)
    return lines


def _service(row: _Row) -> str:
    return _line(row["protocol"] if row["port"] is None else f"{row['protocol']}/{row['port']}")


def _ends(row: _Row) -> tuple[str, str]:
    """Return source and target, the latter without an address of another network."""
    return _line(row["source"]), _line(row["target"]).partition(" at ")[0]


def _pairs(rows: Sequence[_Row]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[_line(f"{row['source']} -> {row['target']}")].append(_service(row))
    return found


def _groups(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Return the rows of the guests, and of each network of the machines, apart."""
    group: dict[str, set[str]] = {}
    for row in rows:
        one, other = (group.setdefault(name, {name}) for name in _ends(row))
        if one is not other:
            one |= other
            group.update(dict.fromkeys(other, one))
    found: dict[int, list[_Row]] = defaultdict(list)
    for row in rows:
        found[id(group[_ends(row)[0]])].append(row)
    return list(found.values())


def _matrix(
    rows: Sequence[_Row], width: int, letters: dict[tuple[str, ...], str], used: set[str]
) -> Iterator[Line]:
    """Yield a matrix, in as many parts side by side as its targets need.

    Args:
        letters: the letter of each set of services; extended here.
        used: the signs that occur; extended here.

    """
    by_ends: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    for row in rows:
        by_ends[_ends(row)].append(row)
    names = {
        name: number
        for number, name in enumerate(dict.fromkeys(name for pair in by_ends for name in pair), 1)
    }
    targets = [name for name in names if any(target == name for _, target in by_ends)]
    signs = {pair: _sign(found, letters) for pair, found in by_ends.items()}
    used |= set(signs.values())
    digits = len(str(len(names)))
    room = max(digits + max(map(len, signs.values())), 2) + 1
    label = min(_NAME, max(map(cells, names)), width - digits - 2 - room)
    many = max(1, (width - digits - 2 - label) // room)
    for start in range(0, len(targets), many):
        part = targets[start : start + many]
        yield Line("", f"{'':{digits + 1 + label}}{''.join(f'{names[target]:>{room}}' for target in part)}")
        for source, number in names.items():
            shown = [signs.get((source, target), "-" if source == target else " ") for target in part]
            if any(sign not in "- " for sign in shown):
                cut = pad(shorten(source, label), label)
                style = _WRONG if {"!", "x"} & set(shown) else ""
                yield Line(
                    f"{number:>{digits}} {cut}{''.join(f'{sign:>{room}}' for sign in shown)}", "", style
                )


def _sign(rows: Sequence[_Row], letters: dict[tuple[str, ...], str]) -> str:
    """Return the sign of a pair: of the worst finding, or a letter for the services that passed."""
    if any(row["observed"] and not row["allowed"] for row in rows):
        return "!"
    if any(row["allowed"] and row["observed"] is False for row in rows):
        return "x"
    if any(row["observed"] is None for row in rows):
        return "?"
    through = tuple(dict.fromkeys(_service(row) for row in rows if row["observed"]))
    if not through:
        return "."
    number = len(letters)
    return letters.setdefault(through, _LETTERS[number % 26] + (str(number // 26) if number >= 26 else ""))
