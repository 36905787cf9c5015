"""How a check says what it is: id, objective, severity, and the breaches that must turn it red (D10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

from testbed.verify.breach_context import Stage

ATTRIBUTE = "testbed_declaration"
_SEVERITIES = ("critical", "high", "medium", "low")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Effect(IntEnum):
    """What a check does to the world, from least to most: checks run in this order, for evidence comes first.

    A check without a declared effect runs after all that are declared harmless, and before all that disturb.
    """

    OBSERVES = 0  # reads what is there, and sends nothing
    PROBES = 1  # sends traffic, logs in, or tries what an attacker would; what it asks stays as it was
    UNDECLARED = 2
    DISTURBS = 3  # changes what walls are made of and puts it back, or makes a guest and takes it away
    FLOODS = 4  # uses up what all share
    RESTARTS = 5  # starts services anew, which then forget what is not theirs
    REBOOTS = 6  # starts machines anew


@dataclass(frozen=True, slots=True)
class Breach:
    """The smallest change that opens the wall a check watches.

    Args:
        name: what it does, in words.
        open: makes the change.
        close: takes it back; must also work when `open` was only half done.
        in_force: tells whether the wall is really open now, without using the check.
        applies: tells whether a topology has the wall at all; a breach of what is not there is not tried.

    """

    name: str
    open: Callable[[Stage], None]
    close: Callable[[Stage], None]
    in_force: Callable[[Stage], bool]
    applies: Callable[[Stage], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a check declares.

    Args:
        id: control id of CONTROLS.md, such as NET-01.
        objective: the statement that a pass confirms.
        unproven: reason why there is no breach; only then may `breaches` be empty.
        simulated: True for a statement about real hardware that is made under emulation.
        applies: returns why the check has nothing to look at in a topology, or None.
        slow: why it runs only when it is asked for; empty if it always does.
        local: it looks at the machine of its case alone, and so do its breaches: it may run beside those of
            other machines.
        effect: what it does to the world, breaches aside; the order of a run follows from it.

    """

    id: str
    objective: str
    severity: str
    breaches: tuple[Breach, ...]
    unproven: str
    simulated: bool
    applies: Callable[[Stage], str | None]
    slow: str = ""
    local: bool = False
    effect: Effect = Effect.UNDECLARED


def check(
    *,
    id: str,  # noqa: A002 - the field's own word
    objective: str,
    severity: str,
    breaches: tuple[Breach, ...] = (),
    unproven: str = "",
    simulated: bool = False,
    applies: Callable[[Stage], str | None] = lambda _: None,
    slow: str = "",
    local: bool = False,
    effect: Effect = Effect.UNDECLARED,
) -> Callable[[_Function], _Function]:
    """Declare a test function as a check.

    Raises:
        ValueError: the declaration is incomplete: a check without a breach says why.

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
