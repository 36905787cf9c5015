"""One case of a check: its pytest item, its machine, and the trials of its breaches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from testbed.report.result import CheckResult, Verdict
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Declaration
from testbed.verify.fleet import Fleet
from testbed.verify.inventory import MACHINES, WHOLE
from testbed.verify.runner.proof import CheckOutcome, Trial

FIXTURES = frozenset({"fleet", *MACHINES, "request"})  # fixtures that a local check may request


@dataclass
class Case:
    """One case of a check, and the trials of its breaches.

    Args:
        place: its position among the results.
        fleet: the view of the lab through which it observes.
        proving: whether its breaches are to be tried.
    """

    item: pytest.Item
    declared: Declaration
    label: str
    context: BreachContext
    place: int
    fleet: Fleet
    proving: bool = False
    trials: list[Trial] = field(default_factory=list)

    @classmethod
    def of(cls, item: pytest.Item, declared: Declaration, fleet: Fleet, place: int) -> Case:
        """Return the case of a pytest item."""
        label = label_of(item)
        return cls(
            item, declared, label, BreachContext(fleet.lab, "" if label == WHOLE else label), place, fleet
        )

    @property
    def name(self) -> str:
        """Control and case, as in messages and names of files."""
        return f"{self.declared.id}.{self.label}"

    def names(self, breach: str) -> tuple[str, str, str]:
        """Return the names that identify the proof by a breach."""
        return self.name, self.declared.objective, breach

    def result(self, outcome: CheckOutcome, **more: Any) -> CheckResult:  # noqa: ANN401 - fields of a result
        """Return the result that reports an outcome."""
        return CheckResult(
            id=self.declared.id,
            case=self.label,
            objective=self.declared.objective,
            severity=self.declared.severity,
            verdict=outcome.verdict,
            reason=outcome.reason,
            simulated=self.declared.simulated,
            duration_s=round(outcome.duration, 2),
            evidence=outcome.evidence,
            **more,
        )


def label_of(item: pytest.Item) -> str:
    """Return the label of a pytest item's case."""
    parameters = getattr(item, "callspec", None)
    return str(parameters.id) if parameters is not None else WHOLE


def beyond_local(item: pytest.Item) -> list[str]:
    """Return the fixtures that a check requests and a local check must not."""
    return sorted(set(getattr(item, "fixturenames", ())) - FIXTURES)


def aside(case: Case, *, slow: bool) -> tuple[CheckOutcome, bool] | None:
    """Return the reason why a case does not run, and whether it is slowness; None if it runs.

    Args:
        slow: whether checks that take minutes were requested.

    Raises:
        TypeError: its declaration gives no reason where it must.
    """
    reason = case.declared.applies(case.context)
    if reason is not None and (not isinstance(reason, str) or not reason.strip()):
        msg = f"whether it applies is told by {reason!r}, which is neither None nor a reason"
        raise TypeError(msg)
    left_out = reason is None and bool(case.declared.slow) and not slow
    if left_out:
        reason = f"{case.declared.slow}: ask for it with --slow"
    return None if reason is None else (CheckOutcome(Verdict.NOT_APPLICABLE, reason, 0.0, ()), left_out)
