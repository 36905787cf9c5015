"""Restarts guests that crashed during checks; under emulation, nested guests sometimes do."""

from __future__ import annotations

from testbed.engine import apply, observe
from testbed.engine.place import Progress
from testbed.errors import TestbedError
from testbed.lab.session import Lab
from testbed.plan.diff import Verb
from testbed.plan.resources import Kind
from testbed.untrusted.text import clean

_LAST = 600  # octets of a console


def restart_crashed_guests(lab: Lab, progress: Progress) -> tuple[str, ...]:
    """Restart guests whose agents are silent, if this is the lab's only drift.

    Any other drift is a finding for the checks, and must not be repaired here.

    Returns:
        Labels of the restarted guests.

    """
    try:
        plan = observe.plan(lab.desired, lab.places)
        restarts = [
            action for action in plan.actions if action.verb is Verb.RESTART and action.changes == ("state",)
        ]
        silent = tuple(action.key.name for action in restarts)
        others = [
            action for action in plan.actions if action not in restarts and action.key.kind is not Kind.LIMIT
        ]
        if not silent or others:
            return ()
        for guest in (item for item in lab.topology.guests if item.label in silent):
            last = clean(lab.nodes[guest.node].console(guest, _LAST).decode(errors="replace")).strip()
            progress(f"{guest.label} is silent; the last it has written to its console:\n{last or 'nothing'}")
        for _ in range(2):  # the second pass sets the limits of their new interfaces
            apply.converge(lab.desired, lab.places, progress)
    except TestbedError as error:
        progress(f"guests cannot be started again: {error.what}: {error.fact}")
        return ()
    return silent
