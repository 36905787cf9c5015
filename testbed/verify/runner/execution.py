"""Runs the function of a check, and reads what it came to (DESIGN.md, section 6)."""

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
from testbed.verify.runner.cases import Case
from testbed.verify.runner.proof import Outcome
from testbed.verify.runner.trouble import LONGEST, Trouble, told

Revive = Callable[[], Sequence[str]]


class Looker:
    """Looks at walls, one case of a check after another, or several side by side.

    Args:
        fleet: what pytest's fixtures give; a case with another view of it is run without pytest.
        revive: starts guests again that have crashed, and returns their labels.
        insists: whether a check that observed nothing is run once more each time; else once for each reason,
            since on a lab that is down every check would wait twice for the same machines.

    """

    def __init__(self, fleet: Fleet, *, revive: Revive, insists: bool, trouble: Trouble) -> None:
        self.revived: list[str] = []
        self.shared = RLock()  # held while something is changed that all lanes share
        self._fleet, self._insists, self._trouble = fleet, insists, trouble
        self._revive: Revive | None = revive
        self._repeated: set[str] = set()
        self._failure: tuple[Verdict, str] | None = None

    def keep(self, found: pytest.ExceptionInfo[BaseException], when: str, item: pytest.Item) -> None:
        """Keep what an exception comes to that pytest met; of several, what the check's function raised."""
        if when == "call" or self._failure is None:
            self._failure = read(found, when, item)

    def look(self, case: Case, name: str) -> Outcome:
        """Run a check, and once more if it observed nothing: a machine may have been slow, or a guest have
        crashed.
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
        """Tell whether a second look may see more; for a reason that came before, only while proving."""
        with self.shared:
            known = reason in self._repeated
            self._repeated.add(reason)
        return self._insists or not known

    def run(self, case: Case, name: str) -> Outcome:
        """Run a check, with evidence of its own; whatever is raised around it makes a pass inconclusive."""
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
        return Outcome(verdict, reason, time.monotonic() - started, tuple(written))

    def alive_again(self) -> bool:
        """Tell whether guests had crashed and run again, so that a second look may see more.

        Where that is not why nothing was observed, it is not asked again in this run.
        """
        with self.shared:
            found: Sequence[str] = ()
            with self._trouble.kept("starting guests again that are silent"):
                found = self._revive() if self._revive else ()
            if not found:
                self._revive = None
                return False
            self._trouble.tell(f"started again, since their agents were silent: {', '.join(found)}")
            self.revived += found
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
        ):  # such as pytest.exit(): what it had set up would spoil every case behind it
            with suppress(Exception):
                case.item.session._setupstate.teardown_exact(None)
            raise
        return self._failure or (Verdict.PASS, "")


def _apart(case: Case) -> tuple[Verdict, str]:
    given = {
        "fleet": case.fleet,
        "node": case.fleet.machines[case.label],
        "machine": case.fleet.machines[case.label],
    }
    try:
        function: pytest.Function = case.item  # type: ignore[assignment] # only functions have a declaration
        function.obj(**{name: given[name] for name in function.fixturenames if name in given})
    except BaseException:  # noqa: BLE001 - as pytest takes them; an interrupt reaches the main thread alone
        return read(pytest.ExceptionInfo.from_current(), "call", case.item)
    return Verdict.PASS, ""


def read(found: pytest.ExceptionInfo[BaseException], when: str, item: pytest.Item) -> tuple[Verdict, str]:
    """Read an exception: only an assertion written in the check's own file is a fail."""
    error, where = found.value, Path(str(found.traceback[-1].path))
    if when == "call" and isinstance(error, AssertionError) and where == item.path:
        return Verdict.FAIL, str(error).partition("\nassert ")[0][:LONGEST]
    return Verdict.INCONCLUSIVE, f"in {when}: {told(error)}"[:LONGEST]
