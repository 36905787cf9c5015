"""JSON that a guest or a node gave, read within bounds. Pure.

Small text can stand for large objects: an empty list takes three octets as text and sixty in memory. So the
text is counted before it is parsed. What is out of bounds is no answer: `ValueError`.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

OCTETS = 16 * 2**20  # of one text
VALUES = 300_000  # of one text, counted with the keys of its objects
DEPTH = 32  # lists and objects within one another
WHOLE = 2**53  # no integer is beyond it (RFC 8259, 6)
_DIGITS = 20
_STRING = re.compile(
    r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL
)  # possessive: what cannot be a text costs no second look
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a character beyond U+FFFF; alone it is none (RFC 8259, 8.2)
_BRACKET = re.compile(r"[\[\]{}]")


def read(text: bytes | str) -> Any:  # noqa: ANN401 - JSON
    """Return the value of a JSON text from a guest or a node.

    Raises:
        ValueError: it is no JSON (RFC 8259: no NaN, no half of a character), or beyond `OCTETS`, `VALUES`,
            `DEPTH` or `WHOLE`.

    """
    if len(text) > OCTETS:
        raise ValueError(f"{len(text)} octets are too many")
    plain = text.decode() if isinstance(text, bytes) else text
    _require_small(plain)
    value = json.loads(plain, parse_int=_integer, parse_float=_number, parse_constant=_refused)
    if _HALF.search(plain):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _require_small(text: str) -> None:
    if text.count('"') > 4 * VALUES:
        raise ValueError("too many texts")
    structure = _STRING.sub("", text)
    if sum(map(structure.count, ",:[{")) > VALUES:
        raise ValueError("too many values")
    depth = 0
    for bracket in _BRACKET.finditer(structure):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > DEPTH:
            raise ValueError("too many lists within one another")


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError("a number of too many digits")
    return whole(int(text), -WHOLE, WHOLE)


def _number(text: str) -> float:
    return real(float(text), -math.inf, math.inf)


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def whole(value: object, least: int = 0, most: int = WHOLE) -> int:
    """Return an integer within bounds.

    Raises:
        ValueError: it is something else; a truth value is no integer.

    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{str(value)[:40]!r} is no whole number from {least} to {most}")
    return value


def real(value: object, least: float = 0.0, most: float = WHOLE) -> float:
    """Return a finite number within bounds.

    Raises:
        ValueError: it is something else.

    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not least <= value <= most
    ):
        raise ValueError(f"{str(value)[:40]!r} is no number from {least} to {most}")
    return float(value)
