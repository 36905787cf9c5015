"""What took how long, and what everything else had to wait for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from testbed.engine.timing import Span, Trace, chart, critical_path

SPANS = [
    Span("outer", 0.0, 2.0),
    Span("a: boots", 2.0, 9.0, ("outer",)),
    Span("b: boots", 2.0, 5.0, ("outer", "never done")),
    Span("b: guest", 5.0, 8.0, ("b: boots",)),
    Span("a: guest", 9.0, 10.0, ("a: boots",)),
]


def _ticks() -> Iterator[float]:
    return (float(number) for number in count())


def test_spans_are_kept_in_the_order_in_which_they_began_even_if_they_fail() -> None:
    ticks = _ticks()
    trace = Trace(lambda: next(ticks))
    with trace.span("outside"), pytest.raises(KeyError), trace.span("inside", ["before"]):
        raise KeyError
    assert trace.spans == [Span("outside", 1.0, 4.0), Span("inside", 2.0, 3.0, ("before",))]


def test_the_critical_path_goes_back_to_what_was_waited_for_longest() -> None:
    assert [span.name for span in critical_path(SPANS)] == ["outer", "a: boots", "a: guest"]
    assert critical_path([]) == []


def test_a_circle_has_an_end() -> None:
    assert [span.name for span in critical_path([Span("a", 0, 1, ("b",)), Span("b", 0, 2, ("a",))])] == [
        "a",
        "b",
    ]


def test_bars_begin_and_end_where_they_must() -> None:
    head, *rows, foot = chart(SPANS).splitlines()
    assert head.rstrip().endswith("10")
    assert [row.count("#") for row in rows] == [12, 42, 18, 18, 6]
    assert rows[1].index("#") == rows[2].index("#") == rows[0].rindex("#") + 1
    assert [row[0] for row in rows] == ["*", "*", " ", " ", "*"]
    assert "10 of 10 s" in foot
    assert chart([]) == ""
