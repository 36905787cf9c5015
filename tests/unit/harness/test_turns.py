from __future__ import annotations

import pytest

from tests.turns import TURNS, choose


def test_forty_commits_run_every_test_and_prove_every_part_of_each() -> None:
    found = {choose("", f"{number:x}") for number in range(40)}
    assert {(choice.turns, choice.part) for choice in found} == {
        ((turn,), f"{part}/8") for turn in TURNS for part in range(1, 9)
    }


def test_a_turn_can_be_asked_for() -> None:
    assert choose("judges", "ff").turns == ("judges",)
    assert (choose("all", "ff").turns, choose("all", "ff").part) == (TURNS, "1/1")
    assert choose("", "").turns == TURNS[:1]


def test_a_turn_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="TESTBED_TURN=others is none of damage"):
        choose("others", "0")
