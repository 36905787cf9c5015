"""Runs checks as plain pytest tests, with our own reading of what an exception means (DESIGN.md, section 6)."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, RLock

import pytest
from _pytest.runner import runtestprotocol

from testbed.drivers.journal import Journal
from testbed.errors import TestbedError
from testbed.model.testbed import Testbed
from testbed.report.result import CheckResult, ProofVerdict, Verdict
from testbed.verify.declare import ATTRIBUTE, Breach, Declaration
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.lanes import side_by_side
from testbed.verify.proof import Outcome, Trial, take_back, untried
from testbed.verify.proven import Proven
from testbed.verify.stage import Stage

_REASON = 1200
Revive = Callable[[], Sequence[str]]
Prepare = Callable[[], object]


@dataclass
class _Case:
    """One case of a check, and what became of its breaches.

    Args:
        place: its position among the results.
        fleet: what it looks through.
        proving: whether its breaches are to be tried.

    """

    item: pytest.Item
    declared: Declaration
    label: str
    stage: Stage
    place: int
    fleet: Fleet
    proving: bool = False
    trials: list[Trial] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Control and case, as people and files name it."""
        return f"{self.declared.id}.{self.label}"

    def names(self, breach: str) -> tuple[str, str, str]:
        """Return what tells a proof from all others."""
        return self.name, self.declared.objective, breach


def members(testbed: Testbed) -> dict[str, list[str]]:
    """Return by fixture the machines that the cases of a check are about, by name."""
    return {"node": [item.name for item in testbed.nodes], "machine": [item.name for item in testbed.machines]}


class Checks:
    """A pytest plug-in: gives checks their fixtures, runs them, reads verdicts, proves them."""

    def __init__(
        self, fleet: Fleet, *, prove: Proven | None, only: tuple[str, ...], progress: Callable[[str], None], slow: bool, revive: Revive,
        prepare: Prepare,
    ) -> None:  # fmt: skip
        self.fleet = fleet
        self._journal, self._halted = Journal(fleet.lab.workspace), Event()
        self.errors: list[str] = []
        self.interrupted = False
        self.revived: list[str] = []
        self._revive: Revive | None = revive
        self._prepare = prepare
        self._left_open = ""
        self._prove, self._slow = prove, slow
        self._only = tuple(word.upper() for word in only)
        self._progress = progress
        self._failure: tuple[Verdict, str] | None = None
        self._found: dict[int, CheckResult] = {}
        self._shared = RLock()  # held while something is changed that all lanes share

    @property
    def results(self) -> list[CheckResult]:
        """Results of the cases that have been run, in the order of the checks."""
        return [self._found[place] for place in sorted(self._found)]

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
        cases: list[_Case] = []
        for item in session.items:
            declared = getattr(getattr(item, "function", None), ATTRIBUTE, None)
            if declared is None:
                self.errors.append(f"{item.nodeid} is no check: it has no @check declaration")
            elif not self._only or any(declared.id.startswith(word) for word in self._only):
                parameters = getattr(item, "callspec", None)
                label = parameters.id if parameters is not None else "fleet"
                odd = set(getattr(item, "fixturenames", ())) - {"fleet", "node", "machine", "request"}
                if declared.local and odd:
                    self.errors.append(f"{item.nodeid} is local, and asks for {', '.join(sorted(odd))} besides fleet, node and machine")
                    continue
                stage = Stage(self.fleet.lab, "" if label == "fleet" else label)
                cases.append(_Case(item, declared, label, stage, len(cases), self.fleet))
        self._everywhere(cases, self._examine)
        cases = [case for case in cases if case.proving]
        self._everywhere(cases, self._try_all)
        self._everywhere(cases, self._look_again)

    def _everywhere(self, cases: Sequence[_Case], do: Callable[[_Case], None]) -> None:
        """Do something with every case: first with those that are local to a machine, those of several machines side by side.

        Each machine has a view and evidence of its own, and no two are about the same check at the same time: so a check
        that looks at the wrong machine does not find there what was meant for its own.
        """
        lanes: dict[str, list[_Case]] = defaultdict(list)
        for case in cases:
            if case.declared.local:
                lanes[case.label].append(case)
        apart = lanes if len(lanes) > 1 else {}
        for lane in apart.values():
            view = self.fleet.apart()
            for case in lane:
                case.fleet = view
        if apart:
            with ThreadPoolExecutor(max_workers=1) as pool:
                if any(not case.declared.local for case in cases):
                    pool.submit(self._prepare)
                side_by_side(
                    list(apart.values()), do, turn=lambda case: id(case.declared), stopped=lambda: bool(self._left_open),
                    interrupted=self._halted,
                )  # fmt: skip
        for case in cases:
            if not (case.declared.local and apart) and not self._left_open:
                do(case)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        """Keep what an exception comes to."""
        report = yield
        if call.excinfo is not None:
            self._failure = _read(call.excinfo, call.when, item) if call.when == "call" or self._failure is None else self._failure
        return report

    def _outcome_of(self, case: _Case) -> tuple[Verdict, str]:
        """Run the function of a check as pytest does; one that is local as well, with its own view of the fleet."""
        if case.fleet is self.fleet:
            self._failure = None
            runtestprotocol(case.item, log=False, nextitem=None)
            return self._failure or (Verdict.PASS, "")
        given = {"fleet": case.fleet, "node": case.fleet.machines[case.label], "machine": case.fleet.machines[case.label]}
        try:
            function: pytest.Function = case.item  # type: ignore[assignment] # only functions have a declaration
            function.obj(**{name: given[name] for name in function.fixturenames if name in given})
        except BaseException:  # noqa: BLE001 - as pytest takes them; an interrupt reaches the main thread alone
            return _read(pytest.ExceptionInfo.from_current(), "call", case.item)
        return Verdict.PASS, ""

    def _run(self, case: _Case, name: str) -> Outcome:
        started = time.monotonic()
        with case.fleet.evidence.of(name) as written:
            verdict, reason = self._outcome_of(case)
        if verdict is Verdict.PASS and not written:
            verdict, reason = Verdict.INCONCLUSIVE, "the check observed nothing"
        return Outcome(verdict, reason, time.monotonic() - started, tuple(written))

    def _alive_again(self) -> bool:
        """Tell whether guests had crashed and run again, so that a second look may see what the first one did not.

        Where that is not why nothing was observed, it is not asked again in this run.
        """
        with self._shared:
            found = self._revive() if self._revive else ()
            if not found:
                self._revive = None
                return False
            self._progress(f"started again, since their agents were silent: {', '.join(found)}")
            self.revived += found
            self.fleet.new_phase(self.fleet.focus)
            return True

    def _look(self, case: _Case, name: str) -> Outcome:
        """Run a check, and once more if it observed nothing because a guest had crashed, or for whatever reason while proving."""
        outcome = self._run(case, name)
        if outcome.verdict is Verdict.INCONCLUSIVE and (self._alive_again() or self._prove is not None):
            self._progress(f"{name}: once more, since it observed nothing: {outcome.reason}")
            case.fleet.new_phase(case.fleet.focus)
            return self._run(case, f"{name}.again")
        return outcome

    def _examine(self, case: _Case) -> None:
        """Run one case of a check, and tell whether its breaches are to be tried."""
        declared, name = case.declared, case.name
        reason = f"{declared.slow}: ask for it with --slow" if declared.slow and not self._slow else declared.applies(case.stage)
        if reason is not None:
            outcome = Outcome(Verdict.NOT_APPLICABLE, reason, 0.0, ())
        else:
            self._progress(f"{name}: {declared.objective}")
            outcome = self._look(case, name)
        self._progress(f"{name}: {outcome.verdict}")
        proving = self._prove is not None and reason is None
        proofs = untried(declared, outcome) if proving else ()
        self._found[case.place] = CheckResult(
            id=declared.id,
            case=case.label,
            objective=declared.objective,
            severity=declared.severity,
            verdict=outcome.verdict,
            reason=outcome.reason,
            simulated=declared.simulated,
            duration_s=round(outcome.duration, 2),
            evidence=outcome.evidence,
            proofs=proofs,
        )
        case.proving = proving and not proofs

    def _try_all(self, case: _Case) -> None:
        """Try the breaches of a case that its topology can have, unless one is left open."""
        assert self._prove is not None
        possible = [breach for breach in case.declared.breaches if breach.applies(case.stage)]
        left_out = self._prove.left_out(case.item.path, [case.names(breach.name) for breach in possible])
        for breach in possible:
            if case.names(breach.name) in left_out:
                case.trials.append(Trial(breach.name))
                case.trials[-1].leave_out()
                self._publish(case)
            elif not self._left_open and not self._halted.is_set():
                self._try(case, breach)

    def _try(self, case: _Case, breach: Breach) -> None:
        """Try a breach, and once more if nothing was observed; whether the wall is whole again shows when all are through."""
        assert self._prove is not None
        before = self._prove.standing(case.item.path, *case.names(breach.name))
        if before:
            case.trials.append(Trial(breach.name))
            case.trials[-1].recall(before)
            self._publish(case)
            return
        trial = self._trial(case, breach)
        if trial.verdict is ProofVerdict.BROKEN_INSTRUMENT:
            self._alive_again()
            self._progress(f"{case.name}: once more, since it observed nothing: {trial.reason}")
            case.trials.remove(trial)
            self._trial(case, breach, trial.steps)
        self._publish(case)

    def _trial(self, case: _Case, breach: Breach, before: Sequence[str] = ("green",)) -> Trial:
        """Open a wall, run the check, close the wall."""
        self._progress(f"{case.name}: breach: {breach.name}")
        trial, red, trouble, left_open = Trial(breach.name, list(before)), None, "", ""
        case.trials.append(trial)
        try:
            with self._journal.holding(case.declared.id, case.label, breach.name, case.fleet.evidence.run) as entry:
                try:
                    breach.open(case.stage)
                    if breach.in_force(case.stage):
                        trial.steps.append("breach in force")
                        case.fleet.new_phase(case.declared.id)
                        red = self._run(case, f"{case.name}.breach{len(case.trials)}")
                        trial.steps.append(f"check: {red.verdict}: {red.reason}"[:400])
                finally:
                    left_open = take_back(breach, case.stage)
                    entry.closed = not left_open
                    self._left_open = self._left_open or left_open
                    case.fleet.new_phase()
        except TestbedError as error:
            trouble = f"{error.what}: {error.fact}"
        if left_open:
            trial.left_open(left_open)
        else:
            trial.steps.append("reverted")
            trial.judge(red, trouble)
        return trial

    def _look_again(self, case: _Case) -> None:
        waiting = [trial for trial in case.trials if trial.verdict is None]
        if waiting:
            again = self._look(case, f"{case.name}.reverted")
            for trial in waiting:
                trial.settle(again)
                if trial.verdict is ProofVerdict.PROVEN and self._prove is not None:
                    with self._shared:
                        self._prove.remember(case.item.path, *case.names(trial.breach))
            self._publish(case)
        self._progress(f"{case.name}: " + ", ".join(str(trial.proof().verdict) for trial in case.trials))

    def _publish(self, case: _Case) -> None:
        proofs = tuple(trial.proof() for trial in case.trials)
        self._found[case.place] = replace(self._found[case.place], proofs=proofs)


def _read(found: pytest.ExceptionInfo[BaseException], when: str, item: pytest.Item) -> tuple[Verdict, str]:
    """Read an exception: only an assertion written in the check's own file is a fail."""
    error, where = found.value, Path(str(found.traceback[-1].path))
    if when == "call" and isinstance(error, AssertionError) and where == item.path:
        return Verdict.FAIL, str(error).partition("\nassert ")[0][:_REASON]
    told = f"{error.what}: {error.fact}" if isinstance(error, TestbedError) else f"{type(error).__name__}: {error}"
    return Verdict.INCONCLUSIVE, f"in {when}: {told}"[:_REASON]


def run_checks(
    fleet: Fleet, folder: Path, *, prove: Proven | None, only: tuple[str, ...], progress: Callable[[str], None], slow: bool = False,
    revive: Revive = tuple, prepare: Prepare = tuple,
) -> Checks:  # fmt: skip
    """Run the checks of a folder against a lab.

    Args:
        prove: what has been proven before, if the run is to prove.
        only: control ids, or beginnings of them; all if empty.
        slow: run the checks as well that take minutes.
        revive: starts guests again that have crashed, and returns their labels.
        prepare: gets ready what checks of the whole fleet need, while those of single machines run.

    """
    plugin = Checks(fleet, prove=prove, only=only, progress=progress, slow=slow, revive=revive, prepare=prepare)
    arguments = [
        str(folder), "-c", "/dev/null", f"--rootdir={folder}", "--import-mode=importlib",
        "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:testinfra", "-p", "no:timeout", "-p", "no:hypothesispytest",
    ]  # fmt: skip
    pytest.main(arguments, plugins=[plugin])
    return plugin
