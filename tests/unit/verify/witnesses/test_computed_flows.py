"""The answer of the program that computes a switch's flows, judged."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.verify.witnesses.computed_flows import judged

ANSWER: dict[str, Any] = {"live": 486, "computed": 486, "differing": 0, "more": [], "missing": []}


def test_differences_are_the_result() -> None:
    assert judged(ANSWER).more == ()
    found = judged({**ANSWER, "differing": 2, "more": ["table=27 actions=drop"], "missing": ["table=0"]})
    assert (found.more, found.missing) == (("table=27 actions=drop",), ("table=0",))


@pytest.mark.parametrize(
    "change",
    [
        {"why": "Late: the second switch did not start"},
        {"live": 0},
        {"computed": 0},  # a switch without a controller
        {"differing": 3},  # it names none
        {"more": ["table=0"]},  # it counts none
        {"live": "many"},
        {"other": 1},
    ],
)
def test_an_answer_that_shows_nothing_is_no_pass(change: dict[str, Any]) -> None:
    with pytest.raises(UnseenError):
        judged({**ANSWER, **change})
    with pytest.raises(UnseenError):
        judged(None)
