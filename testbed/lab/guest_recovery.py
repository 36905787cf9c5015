"""Brings guests back that have crashed while they were observed; under emulation, nested guests do so now and
then.
"""

from __future__ import annotations

from testbed.engine import apply, observe
from testbed.engine.place import Progress
from testbed.errors import TestbedError
from testbed.lab.session import Lab
from testbed.plan.diff import Verb
from testbed.plan.resources import Kind
from testbed.untrusted.text import clean

_LAST = 600  # octets of a console


def revive(lab: Lab, progress: Progress) -> tuple[str, ...]:
    """Start guests again whose agents are silent, if nothing else is wrong with a lab: what differs otherwise
    is a finding.

    Returns:
        Their labels.

    """
    try:
        plan = observe.plan(lab.desired, lab.places)
        silent = tuple(action.key.name for action in plan.actions if action.verb is Verb.RESTART)
        others = [
            action
            for action in plan.actions
            if action.verb is not Verb.RESTART and action.key.kind is not Kind.LIMIT
        ]
        if not silent or others:
            return ()
        for guest in (item for item in lab.testbed.guests if item.label in silent):
            last = clean(lab.nodes[guest.node].console(guest, _LAST).decode(errors="replace")).strip()
            progress(f"{guest.label} is silent; the last it has written to its console:\n{last or 'nothing'}")
        for _ in range(2):  # their interfaces are new, and get their limits afterwards
            apply.converge(lab.desired, lab.places, progress)
    except TestbedError as error:
        progress(f"guests cannot be started again: {error.what}: {error.fact}")
        return ()
    return silent
