"""An error of ours is a verdict or trouble, never a pass.

Open breaches are closed whatever is raised.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import Exit, UsageError
from testbed.report.result import ProofVerdict, Verdict
from testbed.verify.evidence import Evidence
from testbed.verify.runner.plugin import Checks
from testbed.verify.runner.trouble import Trouble, told
from tests.fake_checks import code, declare

HOLDS = "def test_it(fleet):\n    assert not look(fleet), 'open'\n"
KNOWN = "import sys\nsys.modules['the_wall'] = sys.modules[__name__]\n"
RAISED = [
    "ValueError('a bug')",
    "SystemExit(0)",
    "StopIteration()",
    "ProvisioningError('no', fact='broke', remedy='')",
    "pytest.exit.Exception('x')",
]


def _raises(what: str) -> str:
    return f"(_ for _ in ()).throw({what})" if what != "StopIteration()" else "next(iter(()))"


def _is_open() -> bool:
    return bool(sys.modules["the_wall"].WALL["open"])


def _breach(
    opens: str = "opens(context)",
    closes: str = "closes(context)",
    in_force: str = 'WALL["open"]',
    **more: str,
) -> str:
    rest = "".join(f", {name}=lambda context: {text}" for name, text in more.items())
    return (
        f"import pytest\nODD = Breach('odd', lambda context: {opens}, lambda context: {closes}, "
        f"lambda context: {in_force}{rest})\n{KNOWN}"
    )


def _proofs(plugin: Checks) -> list[ProofVerdict]:
    return [proof.verdict for result in plugin.results for proof in result.proofs]


@pytest.mark.parametrize("what", RAISED)
def test_a_breach_that_raises_while_it_opens_is_closed_and_is_no_proof(judge: Any, what: str) -> None:
    body = _breach(opens=f"[opens(context), {_raises(what)}]") + declare("breaches=(ODD,)") + HOLDS
    plugin = judge(body, prove=True)
    assert _proofs(plugin) == [ProofVerdict.BREACH_NOT_IN_FORCE]
    assert not _is_open()
    assert code(plugin) is Exit.INCONCLUSIVE


@pytest.mark.parametrize("what", RAISED)
def test_a_breach_of_which_nobody_knows_whether_it_is_in_force_counts_as_open(judge: Any, what: str) -> None:
    """It is closed as far as it can be, the run stops, and the lab must be repaired."""
    later = declare(control="NET-02") + "def test_later(fleet):\n    assert not look(fleet)\n"
    plugin = judge(_breach(in_force=_raises(what)) + declare("breaches=(ODD,)") + HOLDS + later, prove=True)
    assert _proofs(plugin) == [ProofVerdict.DIRTY_REVERT]
    assert not _is_open()
    assert "could not be reverted" in plugin.errors[0]
    assert code(plugin) is Exit.PROVISIONING


@pytest.mark.parametrize("what", RAISED)
def test_a_breach_that_cannot_be_closed_is_told(judge: Any, what: str) -> None:
    plugin = judge(_breach(closes=_raises(what)) + declare("breaches=(ODD,)") + HOLDS, prove=True)
    assert _proofs(plugin) == [ProofVerdict.DIRTY_REVERT]
    assert _is_open()
    assert code(plugin) is Exit.PROVISIONING


@pytest.mark.parametrize("when", ["closes", "in_force"])
def test_a_breach_that_cannot_be_closed_at_first_is_closed_at_the_second_try(judge: Any, when: str) -> None:
    fails = (
        "TRIES = []\ndef once(context, value):\n    TRIES.append(1)\n"
        "    if len(TRIES) == {}: raise OSError('the connection is gone')\n    return value\n"
    )
    number, odd = (
        (1, {"closes": "once(context, 0) or closes(context)"})
        if when == "closes"
        else (2, {"in_force": "once(context, WALL['open'])"})
    )
    plugin = judge(fails.format(number) + _breach(**odd) + declare("breaches=(ODD,)") + HOLDS, prove=True)
    assert _proofs(plugin) == [ProofVerdict.PROVEN]
    assert not _is_open()
    assert code(plugin) is Exit.OK


def test_an_interrupt_while_a_wall_is_closed_is_told_as_an_open_wall(judge: Any) -> None:
    plugin = judge(
        _breach(closes=_raises("KeyboardInterrupt")) + declare("breaches=(ODD,)") + HOLDS, prove=True
    )
    assert plugin.interrupted
    assert _proofs(plugin) == [ProofVerdict.DIRTY_REVERT]
    assert any("could not be reverted: interrupted" in error for error in plugin.errors)
    assert code(plugin) is Exit.PROVISIONING


def test_a_breach_that_cannot_tell_whether_it_applies_is_no_proof(judge: Any) -> None:
    plugin = judge(
        _breach(applies=_raises("StopIteration()")) + declare("breaches=(BREACH, ODD)") + HOLDS, prove=True
    )
    assert sorted(map(str, _proofs(plugin))) == ["breach-not-in-force", "proven"]
    assert code(plugin) is Exit.INCONCLUSIVE


@pytest.mark.parametrize("applies", [*map(_raises, RAISED[:3]), "''", "True", "0", "['no guest']"])
def test_a_check_that_cannot_tell_whether_it_applies_is_inconclusive(judge: Any, applies: str) -> None:
    """A reason is a text; any other value but None would be not-applicable without a reason."""
    later = declare(control="NET-02") + "def test_later(fleet):\n    assert not look(fleet)\n"
    plugin = judge(declare(f"breaches=(BREACH,), applies=lambda context: {applies}") + HOLDS + later)
    assert [result.verdict for result in plugin.results] == [Verdict.INCONCLUSIVE, Verdict.PASS]
    assert "before the check: " in plugin.results[0].reason
    assert code(plugin) is Exit.INCONCLUSIVE


AROUND = {
    "a fixture": "import pytest\n@pytest.fixture\ndef odd(): raise {}\n"
    + declare()
    + "def test_it(fleet, odd): look(fleet)\n",
    "the end of a fixture": "import pytest\n@pytest.fixture\ndef odd():\n    yield\n    raise {}\n"
    + declare()
    + "def test_it(fleet, odd): look(fleet)\n",
    "the check": "import pytest\n" + declare() + "def test_it(fleet):\n    look(fleet)\n    raise {}\n",
}


@pytest.mark.parametrize("what", ["ValueError('a bug')", "SystemExit(0)", "pytest.exit.Exception('over')"])
@pytest.mark.parametrize("where", AROUND)
def test_what_is_raised_around_a_check_makes_it_inconclusive_and_it_alone(
    judge: Any, where: str, what: str
) -> None:
    later = declare(control="NET-02") + "def test_later(fleet):\n    assert not look(fleet)\n"
    plugin = judge(AROUND[where].format(what) + later)
    assert [result.verdict for result in plugin.results] == [Verdict.INCONCLUSIVE, Verdict.PASS]
    assert plugin.results[0].reason
    assert code(plugin) is Exit.INCONCLUSIVE


def test_progress_that_cannot_be_shown_stops_nothing_and_is_told_once(judge: Any) -> None:
    def progress(_: str) -> None:
        raise BrokenPipeError

    plugin = judge(declare() + HOLDS, prove=True, progress=progress)
    assert [result.verdict for result in plugin.results] == [Verdict.PASS]
    assert _proofs(plugin) == [ProofVerdict.PROVEN]
    assert (
        [error for error in plugin.errors if "progress" in error]
        == plugin.errors
        == ["progress could not be shown: BrokenPipeError: "]
    )
    assert code(plugin) is Exit.INCONCLUSIVE


@pytest.mark.parametrize(
    ("wall", "verdict"), [("not look(fleet)", Verdict.INCONCLUSIVE), ("look(fleet)", Verdict.FAIL)]
)
def test_evidence_that_cannot_be_written_takes_a_pass_away_and_leaves_a_fail(
    judge: Any, monkeypatch: pytest.MonkeyPatch, wall: str, verdict: Verdict
) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Evidence, "_free", full)
    plugin = judge(declare() + f"def test_it(fleet):\n    assert {wall}, 'open'\n")
    assert [result.verdict for result in plugin.results] == [verdict]
    assert "No space left" in plugin.results[0].reason + "".join(plugin.errors)
    assert code(plugin) is (Exit.FAIL if verdict is Verdict.FAIL else Exit.INCONCLUSIVE)


def _bug(*_: object) -> Any:
    raise RuntimeError("a bug")


def test_what_prepares_for_the_fleet_and_raises_is_trouble(judge: Any) -> None:
    local = (
        declare("local=True, breaches=(BREACH,)") + "def test_it(fleet, machine): assert not look(fleet)\n"
    )
    fleet = declare(control="NET-02") + "def test_later(fleet): assert not look(fleet)\n"
    plugin = judge(local + fleet, prepare=_bug)
    assert {result.verdict for result in plugin.results} == {Verdict.PASS}
    assert plugin.errors == ["getting ready what checks of the whole fleet need: RuntimeError: a bug"]
    assert code(plugin) is Exit.INCONCLUSIVE


def test_what_starts_guests_again_and_raises_is_trouble(judge: Any) -> None:
    plugin = judge(
        declare() + "def test_it(fleet):\n    raise InstrumentError('x', fact='y', remedy='')\n", revive=_bug
    )
    assert [result.verdict for result in plugin.results] == [Verdict.INCONCLUSIVE]
    assert plugin.errors == ["starting guests again that are silent: RuntimeError: a bug"]


def test_what_remembers_proofs_and_raises_is_trouble(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.verify.runner.proof_cache.ProofCache.remember", _bug)
    plugin = judge(declare() + HOLDS, prove=True)
    assert _proofs(plugin) == [ProofVerdict.PROVEN]
    assert plugin.errors == ["remembering what is proven of NET-01.fleet: RuntimeError: a bug"]


@pytest.mark.parametrize("name", ["proven_at", "left_out"])
def test_what_was_proven_before_and_cannot_be_read_is_trouble(
    judge: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(f"testbed.verify.runner.proof_cache.ProofCache.{name}", _bug)
    plugin = judge(declare() + HOLDS, prove=True)
    assert "NET-01.fleet: RuntimeError: a bug" in plugin.errors
    assert code(plugin) is Exit.INCONCLUSIVE


@pytest.mark.parametrize("name", ["_cases", "pytest_generate_tests", "pytest_collectreport"])
def test_an_error_inside_pytest_is_trouble(judge: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Pytest reports its own errors by its status only."""
    monkeypatch.setattr(Checks, name, lambda *_: _bug(), raising=True)
    plugin = judge(declare() + HOLDS)
    assert any("pytest ended with" in error for error in plugin.errors)
    assert any("1 of 1 cases did not run: test_it of test_wall_" in error for error in plugin.errors)
    assert code(plugin) is not Exit.OK


def test_an_interrupt_while_checks_are_collected_is_an_interrupt(judge: Any) -> None:
    plugin = judge(declare() + HOLDS + "raise KeyboardInterrupt\n")
    assert plugin.interrupted
    assert code(plugin) is Exit.INCONCLUSIVE


LOST = {
    "a name that pytest does not collect": (
        declare(control="NET-02") + "def holds(fleet): look(fleet)\n",
        "1 of 2 cases did not run: holds",
    ),
    "a mark that makes more cases": (
        "import pytest\n"
        + declare(control="NET-02")
        + "@pytest.mark.parametrize('x', [1, 2])\ndef test_more(fleet, x): look(fleet)\n",
        "2 cases ran that no declaration accounts for",
    ),
    "a declaration under another name": (
        "from testbed.verify.check import check as other\n"
        + declare(control="NET-02").replace("@check", "@other")
        + "def test_more(fleet): look(fleet)\n",
        "1 cases ran that no declaration accounts for",
    ),
    "a function replaced by another": (
        declare(control="NET-02") + "def test_more(fleet): look(fleet)\ndel test_more\n",
        "1 of 2 cases did not run: test_more",
    ),
    "two of one id and objective": (
        declare() + "def test_more(fleet): look(fleet)\n",
        "NET-01 is declared 2 times with the objective 'it holds'",
    ),
    "an id that is computed": (
        "NAME = 'NET-02'\n"
        + declare().replace('"NET-01"', "NAME").replace("it holds", "more")
        + "def test_more(fleet): look(fleet)\n",
        "id of test_more is not written out as a text",
    ),
    "a test that is no check": (
        "def test_more(fleet): look(fleet)\n",
        "is no check: it has no @check declaration",
    ),
}


@pytest.mark.parametrize("how", LOST)
def test_a_case_that_is_lost_or_too_many_is_missed(judge: Any, how: str) -> None:
    body, message = LOST[how]
    plugin = judge(declare() + HOLDS + body)
    assert any(message in error for error in plugin.errors), plugin.errors
    assert code(plugin) is Exit.INCONCLUSIVE


def test_a_check_that_another_file_takes_does_not_run_twice_unseen(judge: Any, tmp_path: Path) -> None:
    assert judge(KNOWN + declare() + HOLDS).errors == []
    (tmp_path / "checks/test_thief.py").write_text("import sys\ntest_it = sys.modules['the_wall'].test_it\n")
    plugin = judge("")
    assert any("1 cases ran that no declaration accounts for" in error for error in plugin.errors), (
        plugin.errors
    )


@pytest.mark.parametrize("only", [("NET-99",), ("",), ("NET-01", "no"), ("NET-011",)])
def test_a_control_that_does_not_exist_cannot_be_asked_for(judge: Any, only: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="no check is selected") as caught:
        judge(declare() + HOLDS, only=only)
    assert "NET-01" in caught.value.fact


def test_what_is_asked_for_alone_must_run_whole(judge: Any) -> None:
    body = declare() + HOLDS + declare(control="NET-02") + "def test_more(fleet): look(fleet)\n"
    plugin = judge(body, only=("net-01",))
    assert [result.id for result in plugin.results] == ["NET-01"]
    assert plugin.errors == []
    assert code(plugin, controls=("NET-01", "NET-02"), asked=("net-01",)) is Exit.OK


class SpeechlessError(Exception):
    """An error whose text cannot be read."""

    def __str__(self) -> str:
        raise ValueError


def test_an_error_without_a_readable_text_is_told_by_its_type() -> None:
    trouble = Trouble(lambda _: None)
    with trouble.kept("doing it"):
        raise SpeechlessError
    assert trouble.items == ["doing it: SpeechlessError: (its text cannot be read: ValueError)"]
    assert len(told(ValueError("x" * 10_000))) < 2000
