"""When a verdict counts: real pytest, real check files, a fleet without machines."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from testbed.cli.output.display import Board
from testbed.engine.place import Step
from testbed.errors import Exit
from testbed.report.result import Verdict
from testbed.verify.runner.plugin import Checks
from tests.fake_checks import TOPOLOGY, code, declare


def _verdicts(plugin: Checks) -> list[tuple[str, str]]:
    return [(str(result.verdict), result.reason) for result in plugin.results]


def test_a_completed_observation_passes(judge) -> None:
    plugin = judge(declare() + "def test_it(fleet):\n    assert not look(fleet)\n")
    assert _verdicts(plugin) == [("pass", "")]
    assert code(plugin) is Exit.OK
    assert len(plugin.results[0].evidence) == 1


def test_a_pass_without_evidence_is_inconclusive(judge) -> None:
    plugin = judge(declare() + "def test_it(fleet):\n    assert True\n")
    assert _verdicts(plugin) == [("inconclusive", "the check observed nothing")]
    assert code(plugin) is Exit.INCONCLUSIVE


def test_only_an_assertion_of_the_check_fails(judge) -> None:
    plugin = judge(declare() + "def test_it(fleet):\n    assert look(fleet), 'the wall is open'\n")
    assert plugin.results[0].verdict is Verdict.FAIL
    assert plugin.results[0].reason.startswith("the wall is open")
    assert code(plugin) is Exit.FAIL


@pytest.mark.parametrize(
    "line",
    [
        "import json; json.loads('{')",
        "raise InstrumentError('the guest is dead', fact='no answer', remedy='')",
        "raise ValueError('a bug')",
        "import pytest; pytest.skip('no tool')",
        "from unittest.mock import Mock; Mock().assert_called()",
        "raise SystemExit(0)",
    ],
)
def test_anything_else_that_stops_it_is_inconclusive(judge, line: str) -> None:
    plugin = judge(declare() + f"def test_it(fleet):\n    look(fleet)\n    {line}\n")
    assert [verdict for verdict, _ in _verdicts(plugin)] == ["inconclusive"]
    assert code(plugin) is Exit.INCONCLUSIVE


def test_cases_come_from_the_topology(judge) -> None:
    plugin = judge(declare() + "def test_it(fleet, machine):\n    assert not look(fleet)\n")
    assert [result.case for result in plugin.results] == ["controller", "node"]


def test_not_applicable_comes_with_a_reason_and_is_no_pass(judge) -> None:
    body = (
        declare("breaches=(BREACH,), applies=lambda context: 'one tenant only'")
        + "def test_it(fleet):\n    assert False\n"
    )
    plugin = judge(body)
    assert _verdicts(plugin) == [("not-applicable", "one tenant only")]
    assert code(plugin) is Exit.INCONCLUSIVE


def test_a_check_file_that_does_not_load_is_no_pass(judge) -> None:
    plugin = judge(declare() + "def test_it(fleet):\n    assert not look(fleet)\nimport no_such_module\n")
    assert plugin.results == []
    assert "no_such_module" in plugin.errors[0]
    assert code(plugin) is Exit.INCONCLUSIVE


def _proof(plugin: Checks) -> str:
    (proof,) = plugin.results[0].proofs
    return str(proof.verdict)


def test_proven(judge) -> None:
    plugin = judge(declare() + "def test_it(fleet):\n    assert not look(fleet), 'open'\n", prove=True)
    assert _proof(plugin) == "proven"
    assert (plugin.fleet.phases, plugin.fleet.focus) == (3, "")
    assert code(plugin) is Exit.OK


def test_what_a_breach_leaves_behind_shows_at_the_end(judge) -> None:
    """A breach that claims to be reverted, and is not, fails every check that it was tried on.

    Checks of the same wall fail as well.
    """
    body = (
        'LIES = Breach("lies", opens, lambda context: None, lambda context: WALL["open"] and not '
        'WALL.setdefault("seen", False))\n'
    )
    body = body.replace("lambda context: None", "lambda context: WALL.update(seen=True)") + declare(
        "breaches=(LIES,)"
    )
    plugin = judge(body + "def test_it(fleet):\n    assert not look(fleet), 'open'\n", prove=True)
    assert _proof(plugin) == "dirty-revert"
    assert "after the revert: open" in plugin.results[0].proofs[0].reason


def test_an_interrupted_proof_is_none(judge) -> None:
    first = declare() + "def test_it(fleet):\n    assert not look(fleet), 'open'\n"
    stop = (
        'STOP = Breach("stops", lambda context: (_ for _ in ()).throw(KeyboardInterrupt), closes, '
        'lambda context: WALL["open"])\n'
    )
    second = (
        '@check(id="NET-02", objective="later", severity="high", breaches=(STOP,))\ndef test_later(fleet): '
        "look(fleet)\n"
    )
    plugin = judge(first + stop + second, prove=True)
    assert plugin.interrupted
    assert _proof(plugin) == "broken-instrument"
    assert "was not run again" in plugin.results[0].proofs[0].reason


def test_a_check_that_cannot_fail_is_found_out(judge) -> None:
    plugin = judge(declare() + "def test_it(fleet):\n    look(fleet)\n    assert True\n", prove=True)
    assert _proof(plugin) == "cannot-fail"
    assert code(plugin) is Exit.FAIL


def test_a_breach_that_opens_nothing_is_found_out(judge) -> None:
    body = 'IDLE = Breach("idle", lambda context: None, closes, lambda context: WALL["open"])\n' + declare(
        "breaches=(IDLE,)"
    )
    plugin = judge(body + "def test_it(fleet):\n    assert not look(fleet)\n", prove=True)
    assert _proof(plugin) == "breach-not-in-force"
    assert code(plugin) is Exit.INCONCLUSIVE


def test_an_instrument_that_breaks_under_the_breach_is_no_proof(judge) -> None:
    plugin = judge(declare() + "def test_it(fleet):\n    if look(fleet): raise ValueError('x')\n", prove=True)
    assert _proof(plugin) == "broken-instrument"


def test_a_breach_that_stays_stops_everything(judge) -> None:
    body = "WALL['stuck'] = True\n" + declare() + "def test_it(fleet):\n    assert not look(fleet)\n"
    later = (
        '@check(id="NET-02", objective="later", severity="high", breaches=(BREACH,))\ndef '
        "test_later(fleet): look(fleet)\n"
    )
    plugin = judge(body + later, prove=True)
    assert _proof(plugin) == "dirty-revert"
    assert [(result.id, len(result.proofs)) for result in plugin.results] == [("NET-01", 1), ("NET-02", 0)]
    assert "could not be reverted: it is still in force" in plugin.errors[0]
    assert code(plugin) is Exit.PROVISIONING


def test_an_interrupted_run_keeps_what_was_observed(judge) -> None:
    first = declare() + "def test_it(fleet):\n    assert not look(fleet)\n"
    second = (
        '@check(id="NET-02", objective="later", severity="high", breaches=(BREACH,))\ndef '
        "test_later(fleet): raise KeyboardInterrupt\n"
    )
    plugin = judge(first + second)
    assert plugin.interrupted
    assert [(result.id, str(result.verdict)) for result in plugin.results] == [("NET-01", "pass")]
    assert "did not run to their end" in plugin.errors[0]
    assert code(plugin) is Exit.INCONCLUSIVE


def test_a_breach_that_fails_half_way_is_taken_back(judge) -> None:
    body = (
        "def half(context):\n    WALL['open'] = True\n    raise ProvisioningError('no', fact='broke', "
        "remedy='')\n"
        'HALF = Breach("half", half, closes, lambda context: WALL["open"])\n' + declare("breaches=(HALF,)")
    )
    plugin = judge(body + "def test_it(fleet):\n    assert not look(fleet)\n", prove=True)
    assert _proof(plugin) == "breach-not-in-force"
    assert "broke" in plugin.results[0].proofs[0].reason


def test_a_check_without_a_breach_must_say_why(judge) -> None:
    plugin = judge(declare("") + "def test_it(fleet):\n    assert not look(fleet)\n")
    assert "declares no breach" in plugin.errors[0]
    assert plugin.results == []


@pytest.mark.parametrize(("slow", "verdict"), [(False, "not-applicable"), (True, "pass")])
def test_what_takes_minutes_runs_when_asked_for(judge, slow: bool, verdict: str) -> None:
    """A slow check that the run did not ask for gives its reason, and is not a pass."""
    body = declare("breaches=(BREACH,), slow='it boots a machine'")
    plugin = judge(body + "def test_it(fleet):\n    assert not look(fleet), 'open'\n", slow=slow)
    assert plugin.results[0].verdict == verdict
    assert (plugin.results[0].reason == "it boots a machine: ask for it with --slow") != slow


CRASH = """
GUEST = {"runs": True, "crash_at": 0, "looks": 0}
def look_into_guest(fleet):
    GUEST["looks"] += 1
    if GUEST["looks"] == GUEST["crash_at"]: GUEST["runs"] = False
    if not GUEST["runs"]: raise InstrumentError("no answer", fact="silence", remedy="-")
    return look(fleet)
"""


CHECK = "def test_{}(fleet):\n    assert not look_into_guest(fleet)\n"


def _start_again() -> tuple[str, ...]:
    guest = sys.modules["crashing"].GUEST
    dead, guest["runs"] = not guest["runs"], True
    return ("red/web",) if dead else ()


@pytest.mark.parametrize("crash_at", [1, 2, 3])
def test_a_guest_that_crashes_is_started_again_and_the_look_repeated(judge, crash_at: int) -> None:
    """Whenever it happens: before, while the wall is open, and after."""
    body = CRASH.replace('"crash_at": 0', f'"crash_at": {crash_at}') + declare() + CHECK.format("it")
    done = judge(
        body + "import sys\nsys.modules['crashing'] = sys.modules[__name__]\n",
        prove=True,
        revive=_start_again,
    )
    assert [(result.verdict, [str(proof.verdict) for proof in result.proofs]) for result in done.results] == [
        (Verdict.PASS, ["proven"])
    ]
    assert done.revived == ["red/web"]


LOCAL = """
from threading import Barrier, BrokenBarrierError, Lock
MEETING, BUSY, OPEN = Barrier(2), {"first": Lock(), "second": Lock()}, set()
def breach(machines, left_open=False):
    return Breach("the wall is open", open=lambda context: OPEN.add(context.case),
                  close=lambda context: left_open or OPEN.discard(context.case),
                  in_force=lambda context: context.case in OPEN, applies=lambda context: context.case in machines)
def look_at(fleet, machine, name):
    assert BUSY[name].acquire(blocking=False)
    try:
        MEETING.wait(5)  # for the lane of another machine
        fleet.evidence.record(machine.name, "test", name, "seen", 0.0)
        return machine.name in OPEN
    finally:
        BUSY[name].release()
"""  # noqa: E501 - lines of a program
LOCAL_CHECK = "def test_{0}(fleet, machine):\n    assert not look_at(fleet, machine, {0!r})\n"
BOTH = ("controller", "node")


def _local(breaches: str = "breach(('controller', 'node'))") -> str:
    declared = f"local=True, breaches=({breaches},)"
    return LOCAL + "".join(
        declare(declared, objective=name) + LOCAL_CHECK.format(name) for name in ("first", "second")
    )


def test_local_checks_of_several_machines_run_side_by_side(judge, tmp_path: Path) -> None:
    """No two of them are the same check, and each has evidence of its own machine only."""
    done = judge(_local(), prove=True)
    assert [(result.case, result.verdict) for result in done.results] == [
        (case, Verdict.PASS) for case in BOTH * 2
    ]
    assert [str(proof.verdict) for result in done.results for proof in result.proofs] == ["proven"] * 4
    for result in done.results:
        (line,) = (tmp_path / result.evidence[0]).read_text().splitlines()
        assert json.loads(line)["host"] == result.case


@pytest.mark.parametrize(
    ("name", "hosts"), [("two-tenants", ("node-a", "node-b")), ("one-node", ("node",) * 2)]
)
def test_checks_of_the_first_and_the_last_host_run_side_by_side(
    judge, name: str, hosts: tuple[str, str]
) -> None:
    """A topology with one host has one check after the other."""
    body = LOCAL if len({*hosts}) > 1 else LOCAL.replace("MEETING.wait(5)", "pass")
    for check, fixture in (("first", "first_host"), ("second", "last_host")):
        body += declare(f"local=True, breaches=(breach({hosts!r}),)", objective=check)
        body += f"def test_{check}(fleet, {fixture}):\n    assert not look_at(fleet, {fixture}, {check!r})\n"
    done = judge(body, prove=True, topology=TOPOLOGY.with_stem(name))
    assert [(result.case, result.verdict) for result in done.results] == [
        (host, Verdict.PASS) for host in hosts
    ]
    assert [str(proof.verdict) for result in done.results for proof in result.proofs] == ["proven"] * 2


WHEN = "def test_it(fleet):\n    fleet.evidence.record('fleet', 'test', str(time.time()), 'seen', 0.0)\n"


@pytest.mark.parametrize(("more", "asked"), [("", 0), (declare() + WHEN, 1)])
def test_what_checks_of_the_fleet_need_is_made_ready_beside_the_local_ones(
    judge, tmp_path: Path, more: str, asked: int
) -> None:
    """Only if there are such checks."""
    made: list[float] = []

    def prepare() -> None:
        time.sleep(0.3)
        made.append(time.time())

    done = judge(_local() + more, prepare=prepare)
    assert [result.verdict for result in done.results] == [Verdict.PASS] * (4 + asked)
    assert len(made) == asked
    for result in done.results[4:]:
        assert made[0] <= float(json.loads((tmp_path / result.evidence[0]).read_text())["request"])


def test_a_wall_that_one_lane_leaves_open_stops_the_others(judge) -> None:
    done = judge(_local("breach(('node',), left_open=True)").replace("MEETING.wait(5)", "pass"), prove=True)
    assert "could not be reverted" in done.errors[0]
    assert {str(proof.verdict) for result in done.results for proof in result.proofs} == {"dirty-revert"}
    assert sum(len(result.proofs) for result in done.results) == 1


def test_a_local_check_asks_for_nothing_else(judge) -> None:
    done = judge(
        declare("local=True, breaches=(BREACH,)") + "def test_it(fleet, machine, tmp_path):\n    pass\n"
    )
    assert done.results == []
    assert "asks for tmp_path" in done.errors[0]


@pytest.mark.parametrize("blind_at", [1, 2, 3])
def test_who_proves_looks_once_more_where_nothing_was_observed(judge, blind_at: int) -> None:
    """Whenever it happens: before, while the wall is open, and after."""
    body = CRASH.replace('"crash_at": 0', f'"crash_at": {blind_at}').replace(
        'GUEST["runs"] = False', 'raise InstrumentError("busy", fact="-", remedy="-")'
    )
    body += declare() + CHECK.format("it")
    done = judge(body, prove=True)
    assert [(result.verdict, [str(proof.verdict) for proof in result.proofs]) for result in done.results] == [
        (Verdict.PASS, ["proven"])
    ]
    assert done.revived == []
    assert [step for proof in done.results[0].proofs for step in proof.steps].count("breach in force") == (
        2 if blind_at == 2 else 1
    )


def test_what_is_no_crash_is_not_tried_again(judge) -> None:
    asked: list[int] = []

    def nobody() -> tuple[str, ...]:
        asked.append(1)
        return ()

    again = declare(objective="again") + CHECK.format("it_too")
    body = CRASH.replace('"runs": True', '"runs": False') + declare() + CHECK.format("it") + again
    done = judge(body, revive=nobody)
    assert [result.verdict for result in done.results] == [Verdict.INCONCLUSIVE] * 2
    assert asked == [1]


def test_what_observed_nothing_is_looked_at_once_more_for_each_reason(judge) -> None:
    """A node that was slow for a moment costs no verdict.

    One that is down is not waited for twice by every check.
    """
    body = "LOOKS = []\n"
    for control, why in (("NET-01", "slow"), ("NET-02", "down"), ("NET-03", "down")):
        body += declare(objective=f"it is {why} in {control}", control=control)
        body += f"""def test_{control[-1]}(fleet):
    look(fleet)
    LOOKS.append("{control}")
    if "{why}" == "down" or LOOKS.count("{control}") == 1: raise InstrumentError("{why}", fact="no answer", remedy="-")
"""  # noqa: E501 - lines of a program
    told: list[str] = []
    plugin = judge(body, progress=told.append)
    assert [verdict for verdict, _ in _verdicts(plugin)] == ["pass", "inconclusive", "inconclusive"]
    assert [text.partition(".")[0] for text in told if "once more" in text] == ["NET-01", "NET-02"]


@pytest.mark.parametrize("prove", [False, True])
def test_a_display_can_count_the_cases_and_the_trials_of_their_breaches(judge, prove: bool) -> None:
    body = declare() + "def test_it(fleet):\n    assert not look(fleet), 'open'\n"
    body += (
        declare(objective="it is open", control="NET-02")
        + "def test_other(fleet):\n    assert look(fleet), 'open'\n"
    )
    body += (
        declare("breaches=(BREACH,), applies=lambda context: 'no guest'", control="NET-03")
        + "def test_none(fleet):\n    look(fleet)\n"
    )
    told: list[str] = []
    judge(body, prove=prove, progress=told.append)
    board = Board()
    for step in told:
        assert isinstance(step, Step)
        board.take(step)
    # A breach is opened, and looked at again, where the check passed.
    assert board.planned == board.done == (5 if prove else 3)
    assert board.running == []
    assert [str(step) for step in told if isinstance(step, Step) and not step.well] == ["NET-02.fleet: fail"]
    lines = [line for line in told if line]
    assert lines[:5] == [
        "NET-01.fleet: it holds",
        "NET-01.fleet: pass",
        "NET-02.fleet: it is open",
        "NET-02.fleet: fail",
        "NET-03.fleet: not-applicable",
    ]
    assert lines[5:] == (["NET-01.fleet: breach: opens it", "NET-01.fleet: proven"] if prove else [])
