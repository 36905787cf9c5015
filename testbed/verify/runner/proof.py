"""What became of a breach: whether the check saw it, and saw the wall closed again afterwards (DESIGN.md,
section 6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from testbed.report.result import Proof, ProofVerdict, Verdict
from testbed.verify.breach_context import Stage
from testbed.verify.check import Breach, Declaration
from testbed.verify.runner.trouble import told


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of one check came to."""

    verdict: Verdict
    reason: str
    duration: float
    evidence: tuple[str, ...]


@dataclass
class Trial:
    """One breach tried on one case of a check.

    Args:
        verdict: None as long as all that is missing is a look at the wall closed again.

    """

    breach: str
    steps: list[str] = field(default_factory=lambda: ["green"])
    verdict: ProofVerdict | None = None
    reason: str = ""

    def judge(self, red: Outcome | None, trouble: str) -> None:
        """Read what the check said while the breach was in force.

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

    def settle(self, again: Outcome) -> None:
        """Read what the check said after every breach was reverted."""
        self.steps.append(f"check: {again.verdict}")
        if again.verdict is Verdict.PASS:
            self.verdict = ProofVerdict.PROVEN
        else:
            kind = (
                ProofVerdict.DIRTY_REVERT if again.verdict is Verdict.FAIL else ProofVerdict.BROKEN_INSTRUMENT
            )
            self._end(kind, f"after the revert: {again.reason}")

    def recall(self, when: str) -> None:
        """Take what was proven before for this run's proof, since nothing that it depends on has changed."""
        self.steps, self.verdict, self.reason = (
            [],
            ProofVerdict.PROVEN_BEFORE,
            f"on {when}; nothing that it depends on has changed",
        )

    def leave_out(self) -> None:
        """Note that it was not asked for."""
        self.steps = []
        self._end(ProofVerdict.LEFT_OUT, "one breach of each check was asked for")

    def left_open(self, why: str) -> None:
        """Remember that the breach could not be taken back."""
        self._end(ProofVerdict.DIRTY_REVERT, why)

    def _end(self, verdict: ProofVerdict, reason: str) -> None:
        self.verdict, self.reason = verdict, reason

    def proof(self) -> Proof:
        """Return it for the report."""
        if self.verdict is None:
            why = "the check was not run again after the breach was taken back"
            return Proof(ProofVerdict.BROKEN_INSTRUMENT, self.breach, why, tuple(self.steps))
        return Proof(self.verdict, self.breach, self.reason, tuple(self.steps))


def untried(declared: Declaration, green: Outcome) -> tuple[Proof, ...]:
    """Return the proofs of a check whose breaches are not worth trying; none if they are."""
    if not declared.breaches:
        return (Proof(ProofVerdict.UNPROVEN, "", declared.unproven, ()),)
    if green.verdict is Verdict.PASS:
        return ()
    why = f"the check is not green to begin with: {green.verdict}"
    return tuple(Proof(ProofVerdict.BROKEN_INSTRUMENT, breach.name, why, ()) for breach in declared.breaches)


def take_back(breach: Breach, stage: Stage) -> str:
    """Take a breach back; return the empty string, or why nothing observed on this lab counts any more.

    What raises is tried once more: a connection may have been lost. A wall that cannot be seen counts as
    open.
    """

    def still() -> str:
        return "it is still in force" if breach.in_force(stage) else ""

    fact = _tried_twice(lambda: breach.close(stage)) or _tried_twice(still)
    return fact and f"the breach '{breach.name}' could not be reverted: {fact}"


def _tried_twice(do: Callable[[], str | None]) -> str:
    fact = ""
    for _ in range(2):
        try:
            return do() or ""
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the wall may be open
            fact = told(error)
    return fact
