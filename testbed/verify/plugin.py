"""Runs checks as plain pytest tests, with our own reading of what an exception means (DESIGN.md, section 6)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from testbed.errors import TestbedError
from testbed.model.testbed import Testbed
from testbed.report.result import CheckResult, ProofVerdict, Verdict
from testbed.verify.declare import ATTRIBUTE, Breach, Declaration
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.proof import Outcome, Trial, take_back, untried
from testbed.verify.stage import Stage

_REASON = 1200
Revive = Callable[[], Sequence[str]]


@dataclass
class _Case:
    """One case of a check that was run, and what became of its breaches.

    Args:
        place: its position among the results.

    """

    item: pytest.Item
    declared: Declaration
    name: str
    stage: Stage
    place: int
    trials: list[Trial] = field(default_factory=list)


def members(testbed: Testbed) -> dict[str, list[str]]:
    """Return by fixture the machines that the cases of a check are about, by name."""
    return {"node": [item.name for item in testbed.nodes], "machine": [item.name for item in testbed.machines]}


class Checks:
    """A pytest plug-in: gives checks their fixtures, runs them, reads verdicts, proves them."""

    def __init__(
        self, fleet: Fleet, *, prove: bool, only: tuple[str, ...], progress: Callable[[str], None], slow: bool, revive: Revive
    ) -> None:
        self.fleet = fleet
        self.results: list[CheckResult] = []
        self.errors: list[str] = []
        self.interrupted = False
        self.revived: list[str] = []
        self._revive: Revive | None = revive
        self._left_open = ""
        self._prove, self._slow = prove, slow
        self._only = tuple(word.upper() for word in only)
        self._progress = progress
        self._failure: tuple[Verdict, str] | None = None

    @pytest.fixture(name="fleet")
    def fleet_fixture(self) -> Fleet:
        """The whole lab, read-only."""
        return self.fleet

    @pytest.fixture(name="node")
    def node_fixture(self, request: pytest.FixtureRequest) -> Machine:
        """The node that a case is about."""
        return self.fleet.machines[request.param]

    @pytest.fixture(name="machine")
    def machine_fixture(self, request: pytest.FixtureRequest) -> Machine:
        """The node or controller that a case is about."""
        return self.fleet.machines[request.param]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Derive the cases from the topology (D10)."""
        for fixture, found in members(self.fleet.testbed).items():
            if fixture in metafunc.fixturenames:
                metafunc.parametrize(fixture, found, ids=found, indirect=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember a check file that cannot be loaded."""
        if report.failed:
            self.errors.append(f"{report.nodeid}: {report.longreprtext[-_REASON:]}")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run every check; with `prove`, then each breach of each, and then every check once more.

        So a breach that left something behind shows at the end, and what checks observe together is observed once.
        """
        try:
            self._loop(session)
        except KeyboardInterrupt:
            self.interrupted = True
            self.errors.append("interrupted: the checks that are not listed did not run to their end")
        if self._left_open:
            self.errors.append(f"{self._left_open}; no further check was run: `testbed up` repairs the lab")
        return True

    def _loop(self, session: pytest.Session) -> None:
        cases = []
        for item in session.items:
            declared = getattr(getattr(item, "function", None), ATTRIBUTE, None)
            if declared is None:
                self.errors.append(f"{item.nodeid} is no check: it has no @check declaration")
            elif not self._only or any(declared.id.startswith(word) for word in self._only):
                cases += self._examine(item, declared)
        for case in cases:
            for breach in (item for item in case.declared.breaches if item.applies(case.stage)):
                self._try(case, breach)
                if self._left_open:
                    return
        for case in cases:
            self._look_again(case)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        """Read an exception: only an assertion written in the check's own file is a fail."""
        report = yield
        if call.excinfo is not None:
            error = call.excinfo.value
            where = Path(str(call.excinfo.traceback[-1].path))
            if call.when == "call" and isinstance(error, AssertionError) and where == item.path:
                self._failure = (Verdict.FAIL, str(error).partition("\nassert ")[0][:_REASON])
            elif self._failure is None:
                told = f"{error.what}: {error.fact}" if isinstance(error, TestbedError) else f"{type(error).__name__}: {error}"
                self._failure = (Verdict.INCONCLUSIVE, f"in {call.when}: {told}"[:_REASON])
        return report

    def _run(self, item: pytest.Item, name: str) -> Outcome:
        self._failure = None
        started = time.monotonic()
        with self.fleet.evidence.of(name) as written:
            runtestprotocol(item, log=False, nextitem=None)
        verdict, reason = self._failure or (Verdict.PASS, "")
        if verdict is Verdict.PASS and not written:
            verdict, reason = Verdict.INCONCLUSIVE, "the check observed nothing"
        return Outcome(verdict, reason, time.monotonic() - started, tuple(written))

    def _alive_again(self) -> bool:
        """Tell whether guests had crashed and run again, so that a second look may see what the first one did not.

        Where that is not why nothing was observed, it is not asked again in this run.
        """
        found = self._revive() if self._revive else ()
        if not found:
            self._revive = None
            return False
        self._progress(f"started again, since their agents were silent: {', '.join(found)}")
        self.revived += found
        self.fleet.new_phase(self.fleet.focus)
        return True

    def _look(self, item: pytest.Item, name: str) -> Outcome:
        """Run a check, and once more if a guest had crashed."""
        outcome = self._run(item, name)
        if outcome.verdict is Verdict.INCONCLUSIVE and self._alive_again():
            return self._run(item, f"{name}.again")
        return outcome

    def _examine(self, item: pytest.Item, declared: Declaration) -> list[_Case]:
        """Run one case of a check; return it if its breaches are to be tried."""
        parameters = getattr(item, "callspec", None)
        label = parameters.id if parameters is not None else "fleet"
        name = f"{declared.id}.{label}"
        stage = Stage(self.fleet.lab, "" if label == "fleet" else label)
        reason = f"{declared.slow}: ask for it with --slow" if declared.slow and not self._slow else declared.applies(stage)
        if reason is not None:
            outcome = Outcome(Verdict.NOT_APPLICABLE, reason, 0.0, ())
        else:
            self._progress(f"{name}: {declared.objective}")
            outcome = self._look(item, name)
        self._progress(f"{name}: {outcome.verdict}")
        proving = self._prove and reason is None
        proofs = untried(declared, outcome) if proving else ()
        self.results.append(
            CheckResult(
                id=declared.id,
                case=label,
                objective=declared.objective,
                severity=declared.severity,
                verdict=outcome.verdict,
                reason=outcome.reason,
                simulated=declared.simulated,
                duration_s=round(outcome.duration, 2),
                evidence=outcome.evidence,
                proofs=proofs,
            )
        )
        return [_Case(item, declared, name, stage, len(self.results) - 1)] if proving and not proofs else []

    def _try(self, case: _Case, breach: Breach) -> None:
        """Try a breach, and once more if a guest had crashed; whether the wall is whole again shows when all are through."""
        trial = self._trial(case, breach)
        if trial.verdict is ProofVerdict.BROKEN_INSTRUMENT and self._alive_again():
            case.trials.remove(trial)
            self._trial(case, breach)
        self._publish(case)

    def _trial(self, case: _Case, breach: Breach) -> Trial:
        """Open a wall, run the check, close the wall."""
        self._progress(f"{case.name}: breach: {breach.name}")
        trial, red, trouble = Trial(breach.name), None, ""
        case.trials.append(trial)
        try:
            breach.open(case.stage)
            if breach.in_force(case.stage):
                trial.steps.append("breach in force")
                self.fleet.new_phase(case.declared.id)
                red = self._run(case.item, f"{case.name}.breach{len(case.trials)}")
                trial.steps.append(f"check: {red.verdict}: {red.reason}"[:400])
        except TestbedError as error:
            trouble = f"{error.what}: {error.fact}"
        finally:
            self._left_open = take_back(breach, case.stage)
            self.fleet.new_phase()
        if self._left_open:
            trial.left_open(self._left_open)
        else:
            trial.steps.append("reverted")
            trial.judge(red, trouble)
        return trial

    def _look_again(self, case: _Case) -> None:
        waiting = [trial for trial in case.trials if trial.verdict is None]
        if waiting:
            again = self._look(case.item, f"{case.name}.reverted")
            for trial in waiting:
                trial.settle(again)
            self._publish(case)
        self._progress(f"{case.name}: " + ", ".join(str(trial.proof().verdict) for trial in case.trials))

    def _publish(self, case: _Case) -> None:
        proofs = tuple(trial.proof() for trial in case.trials)
        self.results[case.place] = replace(self.results[case.place], proofs=proofs)


def run_checks(
    fleet: Fleet, folder: Path, *, prove: bool, only: tuple[str, ...], progress: Callable[[str], None], slow: bool = False,
    revive: Revive = tuple,
) -> Checks:  # fmt: skip
    """Run the checks of a folder against a lab.

    Args:
        only: control ids, or beginnings of them; all if empty.
        slow: run the checks as well that take minutes.
        revive: starts guests again that have crashed, and returns their labels.

    """
    plugin = Checks(fleet, prove=prove, only=only, progress=progress, slow=slow, revive=revive)
    arguments = [
        str(folder), "-c", "/dev/null", f"--rootdir={folder}", "--import-mode=importlib",
        "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:testinfra", "-p", "no:timeout", "-p", "no:hypothesispytest",
    ]  # fmt: skip
    pytest.main(arguments, plugins=[plugin])
    return plugin
