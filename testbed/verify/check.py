"""Declaration of a check: id, objective, severity, and breaches that must turn it red (D10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

from testbed.verify.breach_context import BreachContext

ATTRIBUTE = "testbed_declaration"
_SEVERITIES = ("critical", "high", "medium", "low")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Effect(IntEnum):
    """How much a check changes the lab, from least to most.

    Checks run in this order, since evidence comes first.

    A check without a declared effect runs after all that are declared harmless, and before all that disturb.
    """

    OBSERVES = 0  # only reads
    PROBES = 1  # sends traffic, logs in or attempts attacks; changes no configuration
    UNDECLARED = 2
    DISTURBS = 3  # changes a wall's configuration and restores it, or creates a guest and removes it
    FLOODS = 4  # exhausts shared resources
    RESTARTS = 5  # restarts services, which then drop rules that are not theirs
    REBOOTS = 6  # reboots machines


@dataclass(frozen=True, slots=True)
class Breach:
    """The smallest change that opens the wall a check watches.

    Args:
        name: the change, in words.
        open: makes the change.
        close: reverts it; must also work when `open` was only half done.
        in_force: returns whether the wall is really open now, without using the check.
        applies: returns whether a topology has the wall at all; otherwise the breach is not tried.
    """

    name: str
    open: Callable[[BreachContext], None]
    close: Callable[[BreachContext], None]
    in_force: Callable[[BreachContext], bool]
    applies: Callable[[BreachContext], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class Declaration:
    """The declaration of one check.

    Args:
        id: control id of docs/controls.md, such as NET-01.
        objective: the statement that a pass confirms.
        unproven: reason why there is no breach; only then may `breaches` be empty.
        simulated: True for a statement about real hardware that is made under emulation.
        applies: returns the reason why the check has nothing to observe in a topology, or None.
        slow: reason why it runs only on request; empty if it always runs.
        local: it observes only the machine of its case, and so do its breaches: it may run beside those of
            other machines.
        effect: how much it changes the lab, breaches aside; the order of a run follows from it.
    """

    id: str
    objective: str
    severity: str
    breaches: tuple[Breach, ...]
    unproven: str
    simulated: bool
    applies: Callable[[BreachContext], str | None]
    slow: str = ""
    local: bool = False
    effect: Effect = Effect.UNDECLARED


def check(
    *,
    id: str,  # noqa: A002 - the name of the declaration's field
    objective: str,
    severity: str,
    breaches: tuple[Breach, ...] = (),
    unproven: str = "",
    simulated: bool = False,
    applies: Callable[[BreachContext], str | None] = lambda _: None,
    slow: str = "",
    local: bool = False,
    effect: Effect = Effect.UNDECLARED,
) -> Callable[[_Function], _Function]:
    """Declare a test function as a check.

    Raises:
        ValueError: the declaration is incomplete: a check without a breach must give a reason.
    """
    if not breaches and not unproven:
        msg = f"{id} declares no breach; a check that nobody can turn red proves nothing"
        raise ValueError(msg)
    if severity not in _SEVERITIES:
        msg = f"{id}: severity {severity!r} is none of {', '.join(_SEVERITIES)}"
        raise ValueError(msg)

    def attach(function: _Function) -> _Function:
        declared = Declaration(
            id, objective, severity, breaches, unproven, simulated, applies, slow, local, effect
        )
        setattr(function, ATTRIBUTE, declared)
        return function

    return attach
