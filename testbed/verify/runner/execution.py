"""Runs the function of a check and derives its outcome (docs/design.md, section 6)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock

import pytest
from _pytest.runner import runtestprotocol

from testbed.report.result import Verdict
from testbed.verify.fleet import Fleet
from testbed.verify.inventory import MACHINES
from testbed.verify.runner.cases import Case
from testbed.verify.runner.proof import CheckOutcome
from testbed.verify.runner.trouble import LONGEST, Trouble, told

Revive = Callable[[], Sequence[str]]


class Looker:
    """Runs checks, one case after another, or several in parallel.

    Args:
        fleet: the view that pytest's fixtures give; a case with another view is run without pytest.
        revive: restarts crashed guests, and returns their labels.
        insists: whether a check that observed nothing is repeated each time; else once for each reason,
            since on a lab that is down every check would wait twice for the same machines.
    """

    def __init__(self, fleet: Fleet, *, revive: Revive, insists: bool, trouble: Trouble) -> None:
        self.revived: list[str] = []
        self.shared = RLock()  # held while state that all lanes share is changed
        self._fleet, self._insists, self._trouble = fleet, insists, trouble
        self._revive: Revive | None = revive
        self._repeated: set[str] = set()
        self._failure: tuple[Verdict, str] | None = None

    def keep(self, found: pytest.ExceptionInfo[BaseException], when: str, item: pytest.Item) -> None:
        """Keep the outcome of an exception from pytest; that of the check's function has priority."""
        if when == "call" or self._failure is None:
            self._failure = read(found, when, item)

    def look(self, case: Case, name: str) -> CheckOutcome:
        """Run a check, and repeat it if it observed nothing.

        A machine may have been slow, or a guest may have crashed.
        """
        outcome = self.run(case, name)
        if outcome.verdict is Verdict.INCONCLUSIVE and (
            self.alive_again() or self._worth_repeating(outcome.reason)
        ):
            self._trouble.tell(f"{name}: once more, since it observed nothing: {outcome.reason}")
            case.fleet.new_phase(case.fleet.focus)
            return self.run(case, f"{name}.again")
        return outcome

    def _worth_repeating(self, reason: str) -> bool:
        """Return whether a repetition may observe more; for a known reason, only while proving."""
        with self.shared:
            known = reason in self._repeated
            self._repeated.add(reason)
        return self._insists or not known

    def run(self, case: Case, name: str) -> CheckOutcome:
        """Run a check with its own evidence; an error outside its code makes a pass inconclusive."""
        started, verdict, reason = time.monotonic(), Verdict.INCONCLUSIVE, ""
        written: list[str] = []
        try:
            with case.fleet.evidence.of(name) as written:
                verdict, reason = self._outcome_of(case)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - no pass; takes no fail away
            if verdict is Verdict.FAIL:
                self._trouble.add(f"{name}: its evidence is lost: {told(error)}")
            else:
                verdict, reason = Verdict.INCONCLUSIVE, f"around the check: {told(error)}"[:LONGEST]
        if verdict is Verdict.PASS and not written:
            verdict, reason = Verdict.INCONCLUSIVE, "the check observed nothing"
        return CheckOutcome(verdict, reason, time.monotonic() - started, tuple(written))

    def alive_again(self) -> bool:
        """Restart crashed guests; return whether there were any, so that a repetition may see more.

        Once none was found, it is not tried again in this run.
        """
        with self.shared:
            found: Sequence[str] = ()
            began = time.monotonic()
            with self._trouble.kept("starting guests again that are silent"):
                found = self._revive() if self._revive else ()
            if not found:
                self._revive = None
                return False
            self._trouble.tell(f"started again, since their agents were silent: {', '.join(found)}")
            self.revived += found
            self._fleet.interruptions.add(f"{', '.join(found)} started again", began)
            self._fleet.new_phase(self._fleet.focus)
            return True

    def _outcome_of(self, case: Case) -> tuple[Verdict, str]:
        """Run the function of a check as pytest does, or with its own view of the fleet."""
        if case.fleet is not self._fleet:
            return _apart(case)
        self._failure = None
        try:
            runtestprotocol(case.item, log=False, nextitem=None)
        except (
            Exception,
            SystemExit,
        ):  # such as pytest.exit(): fixtures that are still set up would spoil every later case
            with suppress(Exception):
                case.item.session._setupstate.teardown_exact(None)
            raise
        return self._failure or (Verdict.PASS, "")


def _apart(case: Case) -> tuple[Verdict, str]:
    given = {"fleet": case.fleet, **dict.fromkeys(MACHINES, case.fleet.machines[case.label])}
    try:
        function: pytest.Function = case.item  # type: ignore[assignment] # only functions have a declaration
        function.obj(**{name: given[name] for name in function.fixturenames if name in given})
    except BaseException:  # noqa: BLE001 - as pytest catches them; only the main thread receives an interrupt
        return read(pytest.ExceptionInfo.from_current(), "call", case.item)
    return Verdict.PASS, ""


def read(found: pytest.ExceptionInfo[BaseException], when: str, item: pytest.Item) -> tuple[Verdict, str]:
    """Return the outcome of an exception: only an assertion in the check's own file is a fail."""
    error, where = found.value, Path(str(found.traceback[-1].path))
    if when == "call" and isinstance(error, AssertionError) and where == item.path:
        return Verdict.FAIL, str(error).partition("\nassert ")[0][:LONGEST]
    return Verdict.INCONCLUSIVE, f"in {when}: {told(error)}"[:LONGEST]
