"""The proof of a check by one breach: red with it, then green (docs/design.md, section 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from testbed.report.result import Proof, ProofVerdict, Verdict
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach, Declaration
from testbed.verify.runner.trouble import told


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """The outcome of one run of one check."""

    verdict: Verdict
    reason: str
    duration: float
    evidence: tuple[str, ...]


@dataclass
class Trial:
    """One breach tried on one case of a check.

    Args:
        verdict: None until the check has run again with the wall closed, if everything before went well.
    """

    breach: str
    steps: list[str] = field(default_factory=lambda: ["green"])
    verdict: ProofVerdict | None = None
    reason: str = ""

    def judge(self, red: CheckOutcome | None, trouble: str) -> None:
        """Judge the outcome of the check with the breach in force.

        Args:
            red: None if the check was not run.
            trouble: why the breach could not be opened; empty if it could.
        """
        if trouble or red is None:
            self._end(ProofVerdict.BREACH_NOT_IN_FORCE, trouble or "the breach opened nothing")
        elif red.verdict is Verdict.PASS:
            self._end(ProofVerdict.CANNOT_FAIL, "the check passes while the wall is open")
        elif red.verdict is not Verdict.FAIL:
            self._end(ProofVerdict.BROKEN_INSTRUMENT, red.reason)
        else:
            self.reason = red.reason

    def settle(self, again: CheckOutcome) -> None:
        """Judge the outcome of the check after every breach was reverted."""
        self.steps.append(f"check: {again.verdict}")
        if again.verdict is Verdict.PASS:
            self.verdict = ProofVerdict.PROVEN
        else:
            kind = (
                ProofVerdict.DIRTY_REVERT if again.verdict is Verdict.FAIL else ProofVerdict.BROKEN_INSTRUMENT
            )
            self._end(kind, f"after the revert: {again.reason}")

    def recall(self, when: str) -> None:
        """Use an earlier proof for this run, since nothing that it depends on has changed."""
        self.steps, self.verdict, self.reason = (
            [],
            ProofVerdict.PROVEN_BEFORE,
            f"on {when}; nothing that it depends on has changed",
        )

    def leave_out(self, reason: str) -> None:
        """Record that the run did not ask for this breach."""
        self.steps = []
        self._end(ProofVerdict.LEFT_OUT, reason)

    def left_open(self, why: str) -> None:
        """Record that the breach could not be reverted."""
        self._end(ProofVerdict.DIRTY_REVERT, why)

    def _end(self, verdict: ProofVerdict, reason: str) -> None:
        self.verdict, self.reason = verdict, reason

    def proof(self) -> Proof:
        """Return the proof for the report."""
        if self.verdict is None:
            why = "the check was not run again after the breach was taken back"
            return Proof(ProofVerdict.BROKEN_INSTRUMENT, self.breach, why, tuple(self.steps))
        return Proof(self.verdict, self.breach, self.reason, tuple(self.steps))


def skipped_proofs(declared: Declaration, green: CheckOutcome) -> tuple[Proof, ...]:
    """Return the proofs of a check whose breaches are not worth trying; none if they are."""
    if not declared.breaches:
        return (Proof(ProofVerdict.UNPROVEN, "", declared.unproven, ()),)
    if green.verdict is Verdict.PASS:
        return ()
    why = f"the check is not green to begin with: {green.verdict}"
    return tuple(Proof(ProofVerdict.BROKEN_INSTRUMENT, breach.name, why, ()) for breach in declared.breaches)


def close_breach(breach: Breach, context: BreachContext) -> str:
    """Revert a breach; return the empty string, or why later observations do not count.

    A step that raises is tried once more: a connection may have been lost. A wall that cannot be observed
    counts as open.
    """

    def still() -> str:
        return "it is still in force" if breach.in_force(context) else ""

    fact = _tried_twice(lambda: breach.close(context)) or _tried_twice(still)
    return fact and f"the breach '{breach.name}' could not be reverted: {fact}"


def _tried_twice(do: Callable[[], str | None]) -> str:
    fact = ""
    for _ in range(2):
        try:
            return do() or ""
        except (Exception, SystemExit) as error:  # noqa: BLE001 - after any error, the wall may be open
            fact = told(error)
    return fact
