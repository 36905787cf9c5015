"""Desired minus observed: what must change, and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from testbed.gc_pause import uncollected
from testbed.plan import descriptions
from testbed.plan.resources import OUTER, Key, Kind, Properties, Resource, Value

Observed = Mapping[Key, Properties]

_IN_PLACE = {
    Kind.SETTING,
    Kind.SWITCH,
    Kind.PORT,
    Kind.POOL,
    Kind.VOLUME,
    Kind.TAP,
    Kind.NETWORK,
    Kind.LIMIT,
    Kind.DATABASE,
}
# What brings an object back whose only difference is its state, and nothing of it is lost.
_REVIVAL = {"paused": "resume", "silent": "restart"}
_REMOVAL_ORDER = (
    Kind.GUEST,
    Kind.VOLUME,
    Kind.POOL,
    Kind.PORT,
    Kind.SWITCH,
    Kind.MACHINE,
    Kind.TAP,
    Kind.NETWORK,
)


class Verb(StrEnum):
    """What an action does to its resource."""

    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"
    RESUME = "resume"
    RESTART = "restart"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Difference:
    """One property of a resource that is not what it must be.

    Args:
        name: of the property; empty if the resource is missing or is not in the topology.
        found: None if there is nothing.
        wanted: None if there must be nothing.

    """

    key: Key
    name: str
    found: Value | None
    wanted: Value | None

    def told(self, guests: Mapping[str, str]) -> str:
        """Return it in words: which resource, where, and what differs.

        Args:
            guests: see `testbed.plan.descriptions.owners`.

        """
        what = descriptions.resource(self.key)
        if not self.name:
            return f"{what} {'does not exist' if self.found is None else 'is not in the topology'}"
        return f"{what}: {descriptions.change(self.name, self.found, self.wanted, guests)}"


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
    guests = descriptions.owners(desired)
    actions = [
        action for key in desired if (action := _wanted(desired[key], observed.get(key), unseen, guests))
    ]
    doomed = [key for key in observed if key not in desired]
    doomed.sort(key=lambda key: (_REMOVAL_ORDER.index(key.kind) if key.kind in _REMOVAL_ORDER else 0, key))
    removals: list[Action] = []
    for key in doomed:
        earlier = tuple(action.key for action in removals if action.key.place == key.place)
        removals.append(Action(Verb.DELETE, key, "it is not in the topology", None, earlier))
    return Plan((*removals, *actions))


def differences(desired: Mapping[Key, Resource], observed: Observed) -> list[Difference]:
    """Return what is not as it must be, property by property; places that were not observed must not be among
    the desired.
    """
    found = [item for key in desired for item in _different(desired[key], observed.get(key))]
    return found + [Difference(key, "", key.name, None) for key in observed if key not in desired]


def _different(resource: Resource, found: Properties | None) -> list[Difference]:
    if found is None:
        return [Difference(resource.key, "", None, resource.key.name)]
    wanted = resource.properties
    return [
        Difference(resource.key, name, found.get(name), wanted[name])
        for name in wanted
        if found.get(name) != wanted[name]
    ]


def _wanted(
    resource: Resource, found: Properties | None, unseen: frozenset[str], guests: Mapping[str, str]
) -> Action | None:
    key = resource.key
    if found is None:
        reason = "its machine is not up yet" if key.place in unseen else "it does not exist"
        return Action(Verb.CREATE, key, reason, resource, resource.after)
    different = _different(resource, found)
    if not different:
        return None
    reason = "; ".join(descriptions.change(item.name, item.found, item.wanted, guests) for item in different)
    if key.kind in _IN_PLACE:
        verb = Verb.UPDATE
    else:
        revival = (
            _REVIVAL.get(str(found.get("state"))) if [item.name for item in different] == ["state"] else None
        )
        verb = Verb(revival) if revival else Verb.REPLACE
    return Action(verb, key, reason, resource, resource.after)


def unseen_places(desired: Mapping[Key, Resource], observed: Observed) -> frozenset[str]:
    """Return the machines that are not running, or will be replaced: nothing in them counts as existing."""
    gone = set()
    for key, resource in desired.items():
        if key.place == OUTER and key.kind is Kind.MACHINE:
            action = _wanted(resource, observed.get(key), frozenset(), {})
            if action is not None:
                gone.add(key.name)
    return frozenset(gone)
