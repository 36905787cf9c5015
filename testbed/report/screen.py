"""A result as text for a terminal or a CI log. Pure functions of a run's files.

Every text goes through `testbed.untrusted.text`; further lines of foreign text get a bar in front.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from testbed.report.columns import NARROWEST, WIDTH, Line, cells, hanging, pad, shorten, table, wrap
from testbed.report.formats import because, headline, unseen
from testbed.report.result import SOUND
from testbed.untrusted.text import line as _line

_WORD = {"pass": "pass", "fail": "FAIL", "inconclusive": "inconclusive", "not-applicable": "n/a"}
_STYLE = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "not-applicable": "dim"}
_PROOF = {"dirty-revert": "bold red", "cannot-fail": "bold red"}  # others that are not sound are in doubt
_DOUBT = "yellow"
_OBJECTIVE = 24  # cells; with less room, a case has two lines
_LINES = 2  # lines of an objective in the table
_REASON = 600  # characters of a reason; the report has all of it
_EMPTY = Line("")
_NUMBERS = frozenset({3, 4})  # columns at the right
_NAME = 24  # cells of a case's name, and of one in a matrix


def text(data: Mapping[str, Any], width: int = WIDTH) -> str:
    """Return a result without colour: see `verdicts`."""
    return "\n".join(line.plain for line in verdicts(data, width))


def verdicts(data: Mapping[str, Any], width: int = WIDTH) -> list[Line]:
    """Return the lines of a result: cases, notes, failures last, and the headline.

    The notes are everything that is not sound.

    Args:
        data: content of ``result.json``.
        width: cells that no line exceeds.

    """
    environment, width = data["environment"], max(NARROWEST, width)
    levels = f"nodes under {environment.get('outer', '?')}, guests under {environment.get('inner', '?')}"
    first, *more = wrap(_line(f"lab {data['lab']['name']}: {levels}"), width - 2)
    checks = sorted(data["checks"], key=lambda check: (_natural(check["id"]), _natural(check["case"])))
    lines = [Line("", first), *(Line("  ", item) for item in more)]
    lines += [_EMPTY, *_cases(checks, width)] if checks else []
    notes = list(_notes(data, checks, width))
    lines += [_EMPTY, *notes, _EMPTY] if notes else [_EMPTY]
    bad = data["summary"]["fail"]
    word, _, rest = headline(data).partition(":")
    style = "bold red" if bad else "bold green" if word.startswith("ALL WALLS") else "bold yellow"
    return [*lines, *hanging(f"{word}:", rest, width, style)]


def _natural(text: object) -> list[tuple[int, str]]:
    """Return a key by which node2 comes before node10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d{1,9})", str(text))]


def _seconds(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else _line(value)


def _proven(check: Mapping[str, Any]) -> str:
    """Return how many of a case's breaches are proven, of those that were asked for."""
    asked = [proof["verdict"] for proof in check["proofs"] if proof["verdict"] != "left-out"]
    return f"{sum(item in SOUND for item in asked)}/{len(asked)}" if asked else ""


def _columns(checks: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """Return a head and a row for each case, without objectives, with as many columns as fit."""
    rows = [
        [
            _word(check),
            shorten(_line(check["id"]), _NAME),
            shorten(_line(check["case"]), _NAME),
            _seconds(check["duration_s"]),
        ]
        for check in checks
    ]
    heads = ["verdict", "control", "case", "seconds"]
    if any(check["proofs"] for check in checks):
        wide = [[*row, _proven(check)] for row, check in zip(rows, checks, strict=True)]
        full = table([*heads, "proven"], wide, _NUMBERS)
        if max(map(cells, full)) <= width:
            return full
    full = table(heads, rows, _NUMBERS)
    if max(map(cells, full)) <= width:
        return full
    heads = ["", "control", "case", "s"]
    over = max(map(cells, table(heads, rows, _NUMBERS))) - width
    name = max(4, max(cells(row[2]) for row in rows) - max(0, over))
    return table(
        heads, [[word, control, shorten(case, name), time] for word, control, case, time in rows], _NUMBERS
    )


def _cases(checks: Sequence[Mapping[str, Any]], width: int) -> Iterator[Line]:
    """Yield the table of all cases; equal objectives below one another are shown once."""
    head, *shown = _columns(checks, width)
    size = max(map(cells, (head, *shown)))
    stacked = width < size + 2 + _OBJECTIVE
    yield Line("", shorten(head if stacked else f"{pad(head, size)}  objective", width))
    before: object = None
    for check, row in zip(checks, shown, strict=True):
        told = "" if before == (check["id"], check["objective"]) else _line(check["objective"])
        before, sign = (check["id"], check["objective"]), _word(check)
        style, rest = _STYLE.get(check["verdict"], ""), row.removeprefix(sign)
        if stacked:
            yield from (
                Line(sign, shorten(rest, width - len(sign)), style),
                *(Line("  ", item) for item in _short(told, width - 2)),
            )
            continue
        first, *more = _short(told, width - size - 2) or [""]
        yield Line(sign, f"{pad(rest, size - len(sign))}  {first}", style)
        yield from (Line(" " * (size + 2), item) for item in more)


def _word(check: Mapping[str, Any]) -> str:
    return _WORD.get(check["verdict"], "?")


def _short(told: str, width: int) -> list[str]:
    """Return the first lines of an objective; an ellipsis ends it where there is more."""
    lines = wrap(told, width) if told else []
    return (
        lines
        if len(lines) <= _LINES
        else [*lines[: _LINES - 1], shorten(f"{lines[_LINES - 1]} {lines[_LINES]}", width)]
    )


def _notes(data: Mapping[str, Any], checks: Sequence[Mapping[str, Any]], width: int) -> Iterator[Line]:
    """Yield everything that is not as it should be, in sentences, the worst last."""
    for check in checks:
        for proof in check["proofs"]:
            if proof["verdict"] not in SOUND:
                head = f"{_line(proof['verdict'])} {_place(check)}:"
                yield from hanging(
                    head,
                    _sentence(f"{_line(proof['breach'])}: {_line(proof['reason'])}"),
                    width,
                    _style(proof),
                )
    if gone := unseen(data):
        yield from hanging("not looked at:", _line("; ".join(map(because, gone))), width, "dim")
    for item in data.get("trouble", []):
        yield from hanging("trouble:", _sentence(item), width, _DOUBT)
    for verdict in ("inconclusive", "fail"):
        places: dict[tuple[str, str], list[str]] = defaultdict(list)
        for check in checks:
            if check["verdict"] == verdict:
                places[shorten(_line(check["id"]), _NAME), _sentence(check["reason"])].append(
                    shorten(_line(check["case"]), _NAME)
                )
        for (control, reason), cases in places.items():
            yield from hanging(
                f"{_WORD[verdict]} {control} {', '.join(cases)}:", reason, width, _STYLE[verdict]
            )


def _style(proof: Mapping[str, Any]) -> str:
    return _PROOF.get(proof["verdict"], _DOUBT)


def _place(check: Mapping[str, Any]) -> str:
    return f"{shorten(_line(check['id']), _NAME)} {shorten(_line(check['case']), _NAME)}"


def _sentence(reason: object) -> str:
    """Return a reason on one line, of a length that stays readable."""
    told = _line(reason)
    return f"{told[:_REASON].rstrip()}… (more in the report)" if len(told) > _REASON else told
