"""A check that fails is an outcome of ours, and no outcome of pytest's own."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.report.result import Verdict
from tests.fake_checks import declare


def test_a_fail_is_no_trouble_and_pytest_counts_none(judge: Any, capfd: Any) -> None:
    """pytest would end with "tests failed" if it were shown the outcome, and the run would be incomplete."""
    plugin = judge(declare() + "def test_it(fleet):\n    assert look(fleet), 'the wall is open'\n")
    assert [check.verdict for check in plugin.results] == [Verdict.FAIL]
    assert [check.reason for check in plugin.results] == ["the wall is open"]
    assert plugin.errors == []
    assert capfd.readouterr().out == ""


def test_a_check_that_observed_nothing_is_looked_at_once_more(judge: Any) -> None:
    """A machine may have been slow; for a reason that is known already, no other check waits again."""
    body = (
        "def test_it(fleet):\n    look(fleet)\n    WALL['seen'] = WALL.get('seen', 0) + 1\n"
        "    if WALL['seen'] == 1:\n"
    )
    plugin = judge(declare() + body + "        raise InstrumentError('slow', fact='-', remedy='-')\n")
    assert [check.verdict for check in plugin.results] == [Verdict.PASS]


@pytest.mark.parametrize("closed", [True, False])
def test_evidence_that_cannot_be_written_makes_a_pass_inconclusive_and_takes_no_fail_away(
    judge: Any, closed: bool
) -> None:
    body = (
        "def test_it(fleet):\n    look(fleet)\n"
        "    fleet.evidence._folder = fleet.evidence._folder / 'gone'\n"
        f"    assert {closed}, 'the wall is open'\n"
    )
    plugin = judge(declare() + body)
    ((verdict, reason),) = [(check.verdict, check.reason) for check in plugin.results]
    assert verdict is (Verdict.INCONCLUSIVE if closed else Verdict.FAIL)
    assert reason.startswith("around the check: " if closed else "the wall is open")
    assert any("its evidence is lost" in line for line in plugin.errors) is not closed
