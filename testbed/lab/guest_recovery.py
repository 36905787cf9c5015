"""Restarts guests that crashed during checks; under emulation, nested guests sometimes do."""

from __future__ import annotations

from collections.abc import Collection

from testbed.engine import apply, observe
from testbed.engine.place import Progress
from testbed.engine.timing import Trace
from testbed.errors import TestbedError
from testbed.lab.session import Lab
from testbed.plan.diff import WITH_THEIR_GUEST, Plan, Verb
from testbed.plan.resources import Key, Kind
from testbed.untrusted.text import clean

_LAST = 600  # octets of a console


def restart_crashed_guests(lab: Lab, progress: Progress) -> tuple[str, ...]:
    """Restart guests whose agents are silent, if this is the lab's only drift, and set their limits.

    Any other drift is a finding for the checks, or a guest that another check has made meanwhile. It is never
    repaired here.

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
            action
            for action in plan.actions
            if action not in restarts and action.key.kind not in WITH_THEIR_GUEST
        ]
        if not silent or others:
            return ()
        for guest in (item for item in lab.topology.guests if item.label in silent):
            last = clean(lab.nodes[guest.node].console(guest, _LAST).decode(errors="replace")).strip()
            progress(f"{guest.label} is silent; the last it has written to its console:\n{last or 'nothing'}")
        _perform(lab, plan, silent, progress)
        _perform(lab, observe.plan(lab.desired, lab.places), silent, progress)  # limits of new interfaces
    except TestbedError as error:
        progress(f"guests cannot be started again: {error.what}: {error.fact}")
        return ()
    return silent


def _perform(lab: Lab, plan: Plan, labels: Collection[str], progress: Progress) -> None:
    """Carry out the part of a plan that is about guests and their limits."""
    for place in lab.places:
        chosen = tuple(
            action for action in plan.actions if action.key.place == place.name and _about(action.key, labels)
        )
        apply.perform(Plan(chosen), place, progress, Trace(), "")


def _about(key: Key, labels: Collection[str]) -> bool:
    guest = key.name if key.kind is not Kind.LIMIT else key.name.rpartition("/")[0]
    return key.kind in (Kind.GUEST, *WITH_THEIR_GUEST) and guest in labels
