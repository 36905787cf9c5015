"""Runs checks as plain pytest tests, with our own reading of what an exception means (DESIGN.md, section 6)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from testbed.errors import TestbedError
from testbed.report.result import CheckResult, Proof, ProofVerdict, Verdict
from testbed.verify.declare import ATTRIBUTE, Breach, Declaration
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.stage import Stage

_REASON = 1200


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of one check came to."""

    verdict: Verdict
    reason: str
    duration: float
    evidence: tuple[str, ...]


class Checks:
    """A pytest plug-in: gives checks their fixtures, runs them, reads verdicts, proves them."""

    def __init__(self, fleet: Fleet, *, prove: bool, only: tuple[str, ...], progress: Callable[[str], None]) -> None:
        self.fleet = fleet
        self.results: list[CheckResult] = []
        self.errors: list[str] = []
        self.interrupted = False
        self._left_open = ""
        self._prove = prove
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
        names = {"node": self.fleet.testbed.nodes, "machine": self.fleet.testbed.machines}
        for fixture, members in names.items():
            if fixture in metafunc.fixturenames:
                found = [member.name for member in members]
                metafunc.parametrize(fixture, found, ids=found, indirect=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember a check file that cannot be loaded."""
        if report.failed:
            self.errors.append(f"{report.nodeid}: {report.longreprtext[-_REASON:]}")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run every check; with `prove`, each of its breaches as well."""
        try:
            self._loop(session)
        except KeyboardInterrupt:
            self.interrupted = True
            self.errors.append("interrupted: the checks that are not listed did not run to their end")
        if self._left_open:
            self.errors.append(f"{self._left_open}; no further check was run: `testbed up` repairs the lab")
        return True

    def _loop(self, session: pytest.Session) -> None:
        for item in session.items:
            if self._left_open:
                return
            declared = getattr(getattr(item, "function", None), ATTRIBUTE, None)
            if declared is None:
                self.errors.append(f"{item.nodeid} is no check: it has no @check declaration")
            elif not self._only or any(declared.id.startswith(word) for word in self._only):
                self.results.append(self._examine(item, declared))

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

    def _examine(self, item: pytest.Item, declared: Declaration) -> CheckResult:
        case = getattr(item, "callspec", None)
        label = case.id if case is not None else "fleet"
        name = f"{declared.id}.{label}"
        stage = Stage(self.fleet.lab, "" if label == "fleet" else label)
        reason = declared.applies(stage)
        if reason is not None:
            outcome = Outcome(Verdict.NOT_APPLICABLE, reason, 0.0, ())
        else:
            self._progress(f"{name}: {declared.objective}")
            outcome = self._run(item, name)
        proofs: tuple[Proof, ...] = ()
        if self._prove and reason is None:
            proofs = self._proofs(item, name, declared, stage, outcome)
        self._progress(f"{name}: {outcome.verdict}" + "".join(f", {proof.verdict}" for proof in proofs))
        return CheckResult(
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

    def _proofs(
        self, item: pytest.Item, name: str, declared: Declaration, stage: Stage, green: Outcome
    ) -> tuple[Proof, ...]:
        if not declared.breaches:
            return (Proof(ProofVerdict.UNPROVEN, "", declared.unproven, ()),)
        if green.verdict is not Verdict.PASS:
            why = f"the check is not green to begin with: {green.verdict}"
            return tuple(Proof(ProofVerdict.BROKEN_INSTRUMENT, breach.name, why, ()) for breach in declared.breaches)
        proofs = []
        for breach in declared.breaches:
            proofs.append(self._proof(item, name, breach, stage))
            if self._left_open:
                break
        return tuple(proofs)

    def _proof(self, item: pytest.Item, name: str, breach: Breach, stage: Stage) -> Proof:
        """Run green, breach, red, revert, green; the green before has been seen already."""
        self._progress(f"{name}: breach: {breach.name}")
        steps = ["green"]
        red: Outcome | None = None
        trouble = ""
        try:
            breach.open(stage)
            if breach.in_force(stage):
                steps.append("breach in force")
                self.fleet.new_phase()
                red = self._run(item, f"{name}.breached")
                steps.append(f"check: {red.verdict}: {red.reason}"[:400])
        except TestbedError as error:
            trouble = f"{error.what}: {error.fact}"
        finally:
            self._left_open = _close(breach, stage)
            self.fleet.new_phase()
        if self._left_open:
            return Proof(ProofVerdict.DIRTY_REVERT, breach.name, self._left_open, tuple(steps))
        steps.append("reverted")
        if trouble or red is None:
            return Proof(ProofVerdict.BREACH_NOT_IN_FORCE, breach.name, trouble or "the breach opened nothing", tuple(steps))
        if red.verdict is Verdict.PASS:
            return Proof(ProofVerdict.CANNOT_FAIL, breach.name, "the check passes while the wall is open", tuple(steps))
        if red.verdict is not Verdict.FAIL:
            return Proof(ProofVerdict.BROKEN_INSTRUMENT, breach.name, red.reason, tuple(steps))
        again = self._run(item, f"{name}.reverted")
        steps.append(f"check: {again.verdict}")
        if again.verdict is Verdict.PASS:
            return Proof(ProofVerdict.PROVEN, breach.name, red.reason, tuple(steps))
        kind = ProofVerdict.DIRTY_REVERT if again.verdict is Verdict.FAIL else ProofVerdict.BROKEN_INSTRUMENT
        return Proof(kind, breach.name, f"after the revert: {again.reason}", tuple(steps))


def _close(breach: Breach, stage: Stage) -> str:
    """Take a breach back; return the empty string, or why nothing observed on this lab counts any more."""
    try:
        breach.close(stage)
        fact = "it is still in force" if breach.in_force(stage) else ""
    except TestbedError as error:
        fact = f"{error.what}: {error.fact}"
    return fact and f"the breach '{breach.name}' could not be reverted: {fact}"


def run_checks(
    fleet: Fleet, folder: Path, *, prove: bool, only: tuple[str, ...], progress: Callable[[str], None]
) -> Checks:
    """Run the checks of a folder against a lab.

    Args:
        only: control ids, or beginnings of them; all if empty.

    """
    plugin = Checks(fleet, prove=prove, only=only, progress=progress)
    arguments = [
        str(folder), "-c", "/dev/null", f"--rootdir={folder}", "--import-mode=importlib",
        "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:testinfra", "-p", "no:timeout", "-p", "no:hypothesispytest",
    ]  # fmt: skip
    pytest.main(arguments, plugins=[plugin])
    return plugin
