"""Tries breaches: opens a wall, runs the check, closes it, and runs the check again (D10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event

from testbed.engine.place import Step
from testbed.lab.breach_journal import Journal
from testbed.report.result import SOUND, ProofVerdict
from testbed.verify.check import Breach
from testbed.verify.runner.cases import Case
from testbed.verify.runner.execution import Looker
from testbed.verify.runner.proof import CheckOutcome, Trial, close_breach
from testbed.verify.runner.proof_cache import ProofCache
from testbed.verify.runner.trouble import Trouble, told


class Prover:
    """Tries breaches, until one of them is left open.

    Args:
        proven: proofs of earlier runs.
        journal: records a breach before it opens.
        publish: called whenever the proofs of a case have changed.
        halted: no breach is opened after it is set.
    """

    def __init__(
        self,
        looker: Looker,
        proven: ProofCache,
        journal: Journal,
        publish: Callable[[Case], None],
        trouble: Trouble,
        halted: Event,
    ) -> None:
        self.left_open = ""
        self._looker, self._proven, self._journal = looker, proven, journal
        self._publish, self._trouble, self._halted = publish, trouble, halted

    def of_this_part(self, cases: Sequence[Case]) -> list[Case]:
        """Return the cases whose breaches are to be tried; leave those of the others out."""
        part = self._proven.part
        for place, case in enumerate(cases):
            if not part.has(place):
                for breach in case.declared.breaches:
                    if self._possible(case, breach):
                        self._leave_out(case, breach, f"part {part} of the proofs was asked for")
        return [case for place, case in enumerate(cases) if part.has(place)]

    def _leave_out(self, case: Case, breach: Breach, reason: str) -> None:
        case.trials.append(Trial(breach.name))
        case.trials[-1].leave_out(reason)
        self._publish(case)

    def try_all(self, case: Case) -> None:
        """Try the breaches of a case that its topology can have, unless one is left open."""
        possible = [breach for breach in case.declared.breaches if self._possible(case, breach)]
        left_out = self._proven.left_out(case.item.path, [case.names(breach.name) for breach in possible])
        for breach in possible:
            if case.names(breach.name) in left_out:
                self._leave_out(case, breach, "one breach of each check was asked for")
            elif not self.left_open and not self._halted.is_set():
                self._try(case, breach)

    def _possible(self, case: Case, breach: Breach) -> bool:
        try:
            return breach.applies(case.context)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a breach that cannot be tried is no proof
            case.trials.append(Trial(breach.name))
            case.trials[-1].judge(None, f"whether there is such a wall cannot be told: {told(error)}")
            self._publish(case)
            return False

    def _try(self, case: Case, breach: Breach) -> None:
        """Try a breach, and once more if nothing was observed; `look_again` checks the closed wall."""
        before = self._proven.proven_at(case.item.path, *case.names(breach.name))
        if before:
            case.trials.append(Trial(breach.name))
            case.trials[-1].recall(before)
            self._publish(case)
            return
        trial = self._trial(case, breach)
        if trial.verdict is ProofVerdict.BROKEN_INSTRUMENT:
            self._looker.alive_again()
            self._trouble.tell(f"{case.name}: once more, since it observed nothing: {trial.reason}")
            case.trials.remove(trial)
            self._trial(case, breach, trial.steps)
        self._publish(case)

    def _trial(self, case: Case, breach: Breach, before: Sequence[str] = ("green",)) -> Trial:
        """Open a wall, run the check, close the wall."""
        self._trouble.tell(Step.note(f"{case.name}: its breaches", f"{case.name}: breach: {breach.name}"))
        red: CheckOutcome | None = None
        trial, trouble, left_open = Trial(breach.name, list(before)), "", ""
        case.trials.append(trial)
        try:
            with (
                case.fleet.interruptions.during("breaches"),
                self._journal.holding(
                    case.declared.id, case.label, breach.name, case.fleet.evidence.run
                ) as entry,
            ):
                try:
                    red = self._opened(case, breach, trial)
                finally:
                    left_open = self._close(case, breach, trial)
                    entry.closed = not left_open
        except (Exception, SystemExit) as error:  # noqa: BLE001 - no proof; the wall is closed
            trouble = told(error)
        if not left_open:
            trial.steps.append("reverted")
            trial.judge(red, trouble)
        return trial

    def _opened(self, case: Case, breach: Breach, trial: Trial) -> CheckOutcome | None:
        """Open a wall and run the check; return None if the breach is not in force."""
        breach.open(case.context)
        if not breach.in_force(case.context):
            return None
        trial.steps.append("breach in force")
        case.fleet.new_phase(case.declared.id)
        red = self._looker.run(case, f"{case.name}.breach{len(case.trials)}")
        trial.steps.append(f"check: {red.verdict}: {red.reason}"[:400])
        return red

    def _close(self, case: Case, breach: Breach, trial: Trial) -> str:
        """Close a wall; return the reason why it may still be open, or the empty string."""
        left_open = f"the breach '{breach.name}' could not be reverted: interrupted"
        try:
            left_open = close_breach(breach, case.context)
        finally:
            if left_open:
                self.left_open = self.left_open or left_open
                trial.left_open(left_open)
            case.fleet.new_phase()
        return left_open

    def look_again(self, case: Case) -> None:
        """Run the check again after all breaches are closed, if any was tried."""
        waiting = [trial for trial in case.trials if trial.verdict is None]
        if waiting:
            again = self._looker.look(case, f"{case.name}.reverted")
            for trial in waiting:
                trial.settle(again)
                if trial.verdict is ProofVerdict.PROVEN:
                    with (
                        self._trouble.kept(f"remembering what is proven of {case.name}"),
                        self._looker.shared,
                    ):
                        self._proven.remember(case.item.path, *case.names(trial.breach))
            self._publish(case)
        found = [trial.proof().verdict for trial in case.trials]
        self._trouble.tell(
            Step.note(
                case.name, f"{case.name}: {', '.join(found)}", well=all(item in SOUND for item in found)
            )
        )
