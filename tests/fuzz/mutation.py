"""Mutations of well-formed input: of the values of JSON, and of octets."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tests.corpus import HOSTILE


def mutated(seed_of: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Return octets that are seeds with some changes: of values where a seed is JSON, and of octets."""
    return st.builds(_mutate, st.sampled_from(seed_of), st.integers(0, 2**48))


_PIECES = [
    *(json.dumps(item).encode() for item in HOSTILE),
    *b"{}[]<>\"'\\,:;=&#%-+*/0129 \n\r\t\x00\x1b\xff",
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"9" * 25,
    b"\\ud800",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
    b"&b;",
    b"\xe2\x80\xae",
]


def _mutate(text: bytes, number: int) -> bytes:
    draw = random.Random(number)
    if draw.random() < 0.6:
        text = _of_values(text, draw)
    if draw.random() < 0.6:
        for _ in range(draw.randint(1, 3)):
            text = _of_octets(text, draw)
    return text


def _of_octets(text: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(text) + 1)
    end = min(len(text), start + draw.choice((0, 0, 1, 1, 2, 5, 40)))
    piece = draw.choice([*_PIECES, text[start:end] * 2, text[end : end + 60], bytes([draw.randrange(256)])])
    return text[:start] + (bytes([piece]) if isinstance(piece, int) else piece) + text[end:]


def _of_values(text: bytes, draw: random.Random) -> bytes:
    """Return JSON, or lines of it, with up to four values replaced, removed or moved."""
    lines = text.split(b"\n")
    place = draw.randrange(len(lines))
    for tried, put in ((text, lambda new: new), (lines[place], lambda new: _with(lines, place, new))):
        try:
            data = json.loads(tried)
        except ValueError:
            continue
        for _ in range(draw.randint(1, 4)):
            data = _changed(data, draw)
        return put(json.dumps(data).encode())
    return text


def _with(lines: list[bytes], place: int, new: bytes) -> bytes:
    return b"\n".join((*lines[:place], new, *lines[place + 1 :]))


def _changed(data: Any, draw: random.Random) -> Any:
    paths = list(_paths(data))
    if not paths:
        return copy.deepcopy(draw.choice(HOSTILE))
    *parents, last = draw.choice(paths)
    holder = data
    for part in parents:
        holder = holder[part]
    what = draw.randrange(5)
    if what == 0:
        del holder[last]
    elif what == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[last]))
    elif what == 2 and isinstance(holder, dict):
        holder[str(draw.choice(HOSTILE))[:20]] = holder.pop(last)
    else:
        holder[last] = copy.deepcopy(draw.choice(HOSTILE))
    return data


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))
