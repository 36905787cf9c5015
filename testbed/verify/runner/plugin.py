"""Runs checks as plain pytest tests: collects them, orders them, and keeps their results.

`testbed.verify.runner.execution` derives outcomes from exceptions; `testbed.verify.runner.breach_trials`
tries breaches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from testbed.engine.place import Step
from testbed.lab.breach_journal import Journal
from testbed.report.result import CheckResult, Verdict
from testbed.verify.check import ATTRIBUTE, Declaration, Effect
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.inventory import CaseKey, CheckInventory, differences, inventory, members, selects
from testbed.verify.runner import isolation
from testbed.verify.runner.breach_trials import Prover
from testbed.verify.runner.cases import Case, aside, beyond_local, label_of
from testbed.verify.runner.execution import Looker, Revive
from testbed.verify.runner.proof import CheckOutcome, skipped_proofs
from testbed.verify.runner.proof_cache import ProofCache
from testbed.verify.runner.schedule import Prepare, Schedule
from testbed.verify.runner.trouble import LONGEST, Trouble, told


def _machine_fixture(name: str) -> Callable[..., MachineView]:
    """Return the fixture that is the machine of a case: see `testbed.verify.inventory.MACHINES`."""

    @pytest.fixture(name=name)
    def machine(self: Checks, request: pytest.FixtureRequest) -> MachineView:
        return self.fleet.machines[request.param]

    return machine


class Checks:
    """A pytest plug-in: gives checks their fixtures, runs them, and keeps their results."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        prove: ProofCache | None,
        only: tuple[str, ...],
        progress: Callable[[str], None],
        slow: bool,
        revive: Revive,
        prepare: Prepare,
    ) -> None:
        self.fleet = fleet
        self.interrupted = False
        self.trouble = Trouble(progress)
        self._looker = Looker(fleet, revive=revive, insists=prove is not None, trouble=self.trouble)
        halted, journal = Event(), Journal(fleet.lab.workspace)
        self._prover = (
            Prover(self._looker, prove, journal, self._publish, self.trouble, halted) if prove else None
        )
        self._schedule = Schedule(
            fleet, prepare=prepare, stopped=lambda: bool(self.left_open), trouble=self.trouble, halted=halted
        )
        self._slow, self._only = slow, only
        self._keys: dict[int, CaseKey] = {}
        self._found: dict[int, CheckResult] = {}

    @property
    def errors(self) -> list[str]:
        """Reasons why the run is not complete."""
        return self.trouble.items

    @property
    def revived(self) -> list[str]:
        """Guests that had crashed and were started again."""
        return self._looker.revived

    @property
    def left_open(self) -> str:
        """Reason why an opened wall may still be open; empty if none is."""
        return self._prover.left_open if self._prover else ""

    @property
    def results(self) -> list[CheckResult]:
        """Results of the cases that have been run, in the order of the checks."""
        return [self._found[place] for place in sorted(self._found)]

    @property
    def ran(self) -> Counter[CaseKey]:
        """Every case that has a result."""
        return Counter(self._keys[place] for place in list(self._found))

    @pytest.fixture(name="fleet")
    def fleet_fixture(self) -> Fleet:
        """The whole lab, read-only."""
        return self.fleet

    node_fixture = _machine_fixture("node")
    machine_fixture = _machine_fixture("machine")
    first_host_fixture = _machine_fixture("first_host")
    last_host_fixture = _machine_fixture("last_host")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Derive the cases from the topology (D10)."""
        for fixture, found in members(self.fleet.topology).items():
            if fixture in metafunc.fixturenames:
                metafunc.parametrize(fixture, found, ids=found, indirect=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Report a check file that cannot be loaded."""
        if report.failed:
            self.trouble.add(f"{report.nodeid}: {report.longreprtext[-LONGEST:]}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        """Keep the outcome of an exception."""
        report = yield
        if call.excinfo is not None:
            self._looker.keep(call.excinfo, call.when, item)
        return report

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run every check; to prove, then each breach of each, and then every check again.

        So damage left by a breach shows at the end, and observations that checks share are made once.
        """
        cases: list[Case] = []
        try:
            cases += self._cases(session.items)
            self._run(cases)
        except KeyboardInterrupt:
            self.interrupted = True
            self.trouble.add("interrupted: the checks that are not listed did not run to their end")
            for case in cases:
                self._publish(case)
        if self.left_open:
            self.trouble.add(f"{self.left_open}; no further check was run: `testbed up` repairs the lab")
        return True

    def _cases(self, items: Sequence[pytest.Item]) -> Iterator[Case]:
        for place, item in enumerate(items):
            declared: Declaration | None = getattr(getattr(item, "function", None), ATTRIBUTE, None)
            if declared is None:
                self.trouble.add(f"{item.nodeid} is no check: it has no @check declaration")
            elif getattr(getattr(item, "module", None), "__file__", None) != str(item.path):
                self.trouble.add(f"{item.nodeid} was loaded from another file than its own")
            elif not self._only or any(selects(word, declared.id) for word in self._only):
                odd = beyond_local(item)
                if declared.local and odd:
                    more = ", ".join(odd)
                    self.trouble.add(
                        f"{item.nodeid} is local, and asks for {more} besides fleet and its machine"
                    )
                else:
                    file = item.path.relative_to(item.config.rootpath).as_posix()
                    self._keys[place] = (file, getattr(item, "originalname", item.name), label_of(item))
                    yield Case.of(item, declared, self.fleet, place)

    def _run(self, cases: Sequence[Case]) -> None:
        """Run all cases; to prove, open each wall in turn, and run all cases again."""
        self.trouble.tell(Step.planned(len(cases)))
        self._pass(cases, self._examine, "")
        if self._prover:
            proving = self._prover.of_this_part([case for case in cases if case.proving])
            self.trouble.tell(Step.planned(2 * len(proving)))
            self._pass(proving, self._prover.try_all, ": its breaches")
            self._pass(proving, self._prover.look_again, ": once more, its breaches closed")

    def _pass(self, cases: Sequence[Case], do: Callable[[Case], None], words: str) -> None:
        """Do something with every case, and report its begin and end to the display.

        Args:
            words: suffix to the case's name in the display; empty for the check itself.
        """
        guarded = self._guarded(do)

        def shown(case: Case) -> None:
            self.trouble.tell(Step.begun(f"{case.name}{words}"))
            try:
                guarded(case)
            finally:
                self.trouble.tell(Step.ended(f"{case.name}{words}"))

        self._schedule.go(cases, shown)

    def _guarded(self, do: Callable[[Case], None]) -> Callable[[Case], None]:
        """Return the function without exceptions: they become the case's verdict, or trouble.

        Interrupts pass through.
        """

        def guarded(case: Case) -> None:
            try:
                do(case)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - never a pass
                if case.place in self._found:
                    self.trouble.add(f"{case.name}: {told(error)}")
                    self._publish(case)
                else:
                    self._settle(
                        case,
                        case.result(
                            CheckOutcome(Verdict.INCONCLUSIVE, f"before the check: {told(error)}", 0.0, ())
                        ),
                    )

        return guarded

    def _examine(self, case: Case) -> None:
        """Run one case of a check, and decide whether to try its breaches."""
        declared, name = case.declared, case.name
        stands_aside = aside(case, slow=self._slow)
        if stands_aside is not None:
            outcome, left_out = stands_aside
            self._settle(case, case.result(outcome, left_out=left_out))
            return
        self.trouble.tell(Step.note(name, f"{name}: {declared.objective}"))
        outcome = self._looker.look(case, name)
        if declared.effect > Effect.PROBES:
            case.fleet.new_phase(case.fleet.focus)  # earlier observations may no longer hold
        proofs = skipped_proofs(declared, outcome) if self._prover else ()
        self._settle(case, case.result(outcome, proofs=proofs))
        case.proving = self._prover is not None and not proofs

    def _settle(self, case: Case, result: CheckResult) -> None:
        self._found[case.place] = result
        well = result.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE)
        self.trouble.tell(Step.note(case.name, f"{case.name}: {result.verdict}", well=well))

    def _publish(self, case: Case) -> None:
        if case.trials and case.place in self._found:
            self._found[case.place] = replace(
                self._found[case.place], proofs=tuple(trial.proof() for trial in case.trials)
            )


def require(folder: Path, only: Sequence[str]) -> CheckInventory:
    """Return the checks of a folder, if they can run here and some are selected.

    Args:
        only: control ids, or beginnings of them; all if empty.

    Raises:
        MachineError: this Python would not run the checks as they are written.
        UsageError: a word selects nothing.
    """
    isolation.require_plain_python()
    found = inventory(folder)
    found.require(only)
    return found


def run_checks(
    fleet: Fleet,
    folder: Path,
    *,
    prove: ProofCache | None,
    only: tuple[str, ...],
    progress: Callable[[str], None],
    slow: bool = False,
    revive: Revive = tuple,
    prepare: Prepare = tuple,
) -> Checks:
    """Run the checks of a folder against a lab.

    Errors that keep checks from running are among the plug-in's errors: such a run is no pass.

    Args:
        prove: proofs of earlier runs, if the run is to prove.
        only: control ids, or beginnings of them; all if empty.
        slow: also run the checks that take minutes.
        revive: restarts crashed guests, and returns their labels.
        prepare: prepares instruments for checks of the whole fleet, while those of single machines run.

    Raises:
        MachineError: this Python would not run the checks as they are written.
        UsageError: `only` selects nothing.
    """
    declared = require(folder, only)
    plugin = Checks(
        fleet, prove=prove, only=only, progress=progress, slow=slow, revive=revive, prepare=prepare
    )
    for oddity in declared.oddities:
        plugin.trouble.add(oddity)
    isolation.own_package(folder)
    status: int | None = None
    with plugin.trouble.kept("running the checks"), isolation.without_settings_of_pytest():
        status = pytest.main(isolation.arguments(folder), plugins=[plugin])
    if status == pytest.ExitCode.INTERRUPTED and not plugin.interrupted:
        plugin.interrupted = True
        plugin.trouble.add("interrupted before the first check")
    if status != pytest.ExitCode.OK:
        plugin.trouble.add(
            f"pytest ended with {status!r}, which is not {pytest.ExitCode.OK!r}: not everything was checked"
        )
    if not plugin.interrupted and not plugin.left_open:
        for difference in differences(declared.cases(fleet.topology, only), plugin.ran):
            plugin.trouble.add(difference)
    return plugin
