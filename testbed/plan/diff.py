"""Desired state minus observed state: the changes to make, each with its reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from testbed.gc_pause import gc_disabled
from testbed.plan import descriptions
from testbed.plan.resources import OUTER, Key, Kind, Properties, Resource, Value

Observed = Mapping[Key, Properties]
Held = Mapping[str, tuple[str, ...]]  # by machine, the data on it in words

_IN_PLACE = {
    Kind.SETTING,
    Kind.SWITCH,
    Kind.PORT,
    Kind.POOL,
    Kind.VOLUME,
    Kind.VOLUME_KEY,
    Kind.TAP,
    Kind.LIMIT,
    Kind.COMPUTE,
    Kind.DATABASE,
}
# What a guest gets with another start, and its root disk stays.
_AT_START = frozenset({"memory", "vcpus", "interfaces", "addresses", "volumes"})
REBUILD = "to be rebuilt"  # state of a machine that a person wants to have replaced
# What brings an object back whose only difference is its state, and nothing of it is lost.
_REVIVAL = {"paused": "resume", "silent": "restart"}
WITH_THEIR_GUEST = frozenset({Kind.LIMIT, Kind.COMPUTE})  # they end when it does
_REMOVAL_ORDER = (
    Kind.GUEST,
    Kind.VOLUME,
    Kind.VOLUME_KEY,
    Kind.POOL,
    Kind.PORT,
    Kind.SWITCH,
    Kind.MACHINE,
    Kind.TAP,
    Kind.NETWORK,
)


class Verb(StrEnum):
    """The effect of an action on its resource."""

    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"
    RESUME = "resume"
    RESTART = "restart"
    DELETE = "delete"
    BLOCKED = "blocked"  # cannot be done while the lab runs


@dataclass(frozen=True, slots=True)
class Difference:
    """One property of a resource that differs from its desired value.

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
        """Return the difference in words: the resource, its place, and the property.

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
        changes: names of the properties that differ.
        loses: data that is lost, in words.

    """

    verb: Verb
    key: Key
    reason: str
    resource: Resource | None
    after: tuple[Key, ...]
    changes: tuple[str, ...] = ()
    loses: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.verb} {self.key} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered actions; empty if the observed state is the desired one."""

    actions: tuple[Action, ...]

    def __bool__(self) -> bool:
        return bool(self.actions)

    @property
    def blocked(self) -> tuple[Action, ...]:
        """Actions that cannot be carried out while the lab runs."""
        return tuple(action for action in self.actions if action.verb is Verb.BLOCKED)

    @property
    def destructive(self) -> tuple[Action, ...]:
        """Actions that destroy data."""
        return tuple(action for action in self.actions if action.loses)


@gc_disabled()
def diff(
    desired: Mapping[Key, Resource],
    observed: Observed,
    unseen: frozenset[str] = frozenset(),
    held: Held | None = None,
) -> Plan:
    """Return the plan that leads from the observed to the desired state.

    Args:
        desired: every resource that must exist.
        observed: every resource of ours that exists, with live properties.
        unseen: places that could not be observed because their machine does not run; what must exist there
            is planned as to be created.
        held: what is lost with each machine; that of the desired resources if left out.

    """
    guests = descriptions.owners(desired)
    held = data_of(desired) if held is None else held
    actions: dict[Key, Action] = {}
    for key, resource in desired.items():  # a guest comes after its volumes
        action = _wanted(resource, observed.get(key), unseen, guests)
        above = actions.get(Key(OUTER, Kind.MACHINE, key.place))
        if action is not None and above is not None and above.verb is Verb.REPLACE:
            action = replace(action, reason="its machine is replaced")
        action = _losing(action or _restarted(resource, observed, actions), observed, held)
        if action is not None:
            actions[key] = action
    elsewhere = {(key.kind, key.name): key.place for key in desired}
    doomed = [key for key in observed if key not in desired and key.kind not in WITH_THEIR_GUEST]
    doomed.sort(key=lambda key: (_REMOVAL_ORDER.index(key.kind) if key.kind in _REMOVAL_ORDER else 0, key))
    removals: list[Action] = []
    for key in doomed:
        earlier = tuple(action.key for action in removals if action.key.place == key.place)
        other = elsewhere.get((key.kind, key.name))
        reason = (
            f"it moves to {other}"
            if other and key.kind in (Kind.GUEST, Kind.VOLUME)
            else "it is not in the topology"
        )
        action = Action(Verb.DELETE, key, reason, None, earlier)
        removals.append(_losing(action, observed, held) or action)
    return Plan((*removals, *actions.values()))


def data_of(desired: Mapping[Key, Resource]) -> dict[str, tuple[str, ...]]:
    """Return, for each machine, the data on it in words: volumes and root disks of its guests."""
    found: dict[str, list[str]] = {key.name: [] for key in desired if key.kind is Kind.MACHINE}
    for key in desired:
        if key.kind is Kind.VOLUME:
            found.setdefault(key.place, []).append(descriptions.volume(key.name))
    return {place: tuple(items) for place, items in found.items()}


def _restarted(resource: Resource, observed: Observed, actions: Mapping[Key, Action]) -> Action | None:
    """Return the restart of a guest that is what it must be, and has a volume that is replaced."""
    if resource.key.kind is not Kind.GUEST or resource.key not in observed:
        return None
    replaced = [key for key in resource.after if key in actions and actions[key].verb is Verb.REPLACE]
    reason = f"replaced: {', '.join(descriptions.volume(key.name) for key in replaced)}"
    return (
        Action(Verb.RESTART, resource.key, reason, resource, resource.after, ("volumes",))
        if replaced
        else None
    )


def _losing(action: Action | None, observed: Observed, held: Held) -> Action | None:
    """Return the same action with what is lost by it.

    Of a machine that has ended, everything was lost before.
    """
    if action is None or action.verb not in (Verb.REPLACE, Verb.DELETE):
        return action
    key, name = action.key, action.key.name
    lost: tuple[str, ...] = ()
    if key.kind is Kind.VOLUME:
        lost = (descriptions.volume(name),)
    elif key.kind is Kind.GUEST and action.verb is Verb.REPLACE:
        lost = (f"root disk of {name}",)
    elif key.kind is Kind.MACHINE and observed[key].get("state") in ("running", "paused", REBUILD):
        lost = held.get(name, (f"everything on {name}",))
    return replace(action, loses=lost)


def differences(desired: Mapping[Key, Resource], observed: Observed) -> list[Difference]:
    """Return every difference between desired and observed state, property by property.

    Places that were not observed must not be among the desired resources.
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
    names = tuple(item.name for item in different)
    return Action(_verb(key, names, found, resource.properties), key, reason, resource, resource.after, names)


def _verb(key: Key, names: tuple[str, ...], found: Properties, wanted: Properties) -> Verb:
    """Return the verb that corrects a resource.

    Args:
        names: the properties that differ.

    """
    if key.kind is Kind.NETWORK:
        return Verb.BLOCKED
    if key.kind is Kind.VOLUME and _shrinks(found.get("size"), wanted.get("size")):
        return Verb.REPLACE
    if key.kind in _IN_PLACE:
        return Verb.UPDATE
    revival = _REVIVAL.get(str(found.get("state")))
    if names == ("state",):
        return Verb(revival) if revival else Verb.REPLACE
    kept = key.kind is Kind.GUEST and {*names} <= {*_AT_START, *(["state"] if revival else [])}
    return Verb.RESTART if kept else Verb.REPLACE


def _shrinks(found: Value | None, wanted: Value | None) -> bool:
    return isinstance(found, int) and isinstance(wanted, int) and found > wanted


def unseen_places(desired: Mapping[Key, Resource], observed: Observed) -> frozenset[str]:
    """Return the machines that are not running, or will be replaced.

    Nothing in them counts as existing.
    """
    gone = set()
    for key, resource in desired.items():
        if key.place == OUTER and key.kind is Kind.MACHINE:
            action = _wanted(resource, observed.get(key), frozenset(), {})
            if action is not None:
                gone.add(key.name)
    return frozenset(gone)
