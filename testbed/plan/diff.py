"""Desired minus observed: what must change, and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from testbed.garbage import uncollected
from testbed.plan.resources import OUTER, Key, Kind, Properties, Resource, Value
from testbed.spec.schema import format_size

Observed = Mapping[Key, Properties]

_IN_PLACE = {Kind.SETTING, Kind.SWITCH, Kind.PORT, Kind.POOL, Kind.VOLUME, Kind.TAP, Kind.NETWORK, Kind.LIMIT}
# What brings an object back whose only difference is its state, and nothing of it is lost.
_REVIVAL = {"paused": "resume", "silent": "restart"}
_REMOVAL_ORDER = (Kind.GUEST, Kind.VOLUME, Kind.POOL, Kind.PORT, Kind.SWITCH, Kind.MACHINE, Kind.TAP, Kind.NETWORK)


class Verb(StrEnum):
    """What an action does to its resource."""

    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"
    RESUME = "resume"
    RESTART = "restart"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a plan.

    Args:
        reason: why, in words, with both values where something differs.
        resource: desired content; None for a removal.
        after: keys whose actions, if there are any, must have been done before.

    """

    verb: Verb
    key: Key
    reason: str
    resource: Resource | None
    after: tuple[Key, ...]

    def __str__(self) -> str:
        return f"{self.verb} {self.key} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered actions; empty when everything is as it must be."""

    actions: tuple[Action, ...]

    def __bool__(self) -> bool:
        return bool(self.actions)


@uncollected()
def diff(desired: Mapping[Key, Resource], observed: Observed, unseen: frozenset[str] = frozenset()) -> Plan:
    """Return what must change.

    Args:
        desired: every resource that must exist.
        observed: every resource of ours that exists, with live properties.
        unseen: places that could not be observed because their machine does not run; what must exist there
            is planned as to be created.

    """
    actions = [action for key in desired if (action := _wanted(desired[key], observed.get(key), unseen))]
    doomed = [key for key in observed if key not in desired]
    doomed.sort(key=lambda key: (_REMOVAL_ORDER.index(key.kind) if key.kind in _REMOVAL_ORDER else 0, key))
    removals: list[Action] = []
    for key in doomed:
        earlier = tuple(action.key for action in removals if action.key.place == key.place)
        removals.append(Action(Verb.DELETE, key, "it is not in the topology", None, earlier))
    return Plan((*removals, *actions))


def _wanted(resource: Resource, found: Properties | None, unseen: frozenset[str]) -> Action | None:
    key = resource.key
    if found is None:
        reason = "its machine is not up yet" if key.place in unseen else "it does not exist"
        return Action(Verb.CREATE, key, reason, resource, resource.after)
    different = [name for name, value in resource.properties.items() if found.get(name) != value]
    if not different:
        return None
    reason = "; ".join(_difference(name, found.get(name), resource.properties[name]) for name in different)
    if key.kind in _IN_PLACE:
        verb = Verb.UPDATE
    else:
        revival = _REVIVAL.get(str(found.get("state"))) if different == ["state"] else None
        verb = Verb(revival) if revival else Verb.REPLACE
    return Action(verb, key, reason, resource, resource.after)


def _difference(name: str, found: Value | None, wanted: Value) -> str:
    if isinstance(wanted, list) and isinstance(found, list):
        extra = [item for item in found if item not in wanted]
        missing = [item for item in wanted if item not in found]
        parts = [f"{len(items)} {word}, such as '{items[0]}'" for items, word in ((extra, "extra"), (missing, "missing")) if items]
        return f"{name}: {' and '.join(parts) or 'another order'}"
    return f"{name}: found {_show(name, found)}, wanted {_show(name, wanted)}"


def _show(name: str, value: Value | None) -> str:
    if name in ("memory", "size") and isinstance(value, int):
        return format_size(value)
    text = str(value).replace("\n", " / ")
    return "nothing" if value in (None, "") else f"'{text[:80]}'"


def unseen_places(desired: Mapping[Key, Resource], observed: Observed) -> frozenset[str]:
    """Return the machines that are not running, or will be replaced: nothing in them counts as existing."""
    gone = set()
    for key, resource in desired.items():
        if key.place == OUTER and key.kind is Kind.MACHINE:
            action = _wanted(resource, observed.get(key), frozenset())
            if action is not None:
                gone.add(key.name)
    return frozenset(gone)
