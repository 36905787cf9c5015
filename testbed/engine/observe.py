"""Observes a lab: collects the existing resources of all its places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from testbed.engine.place import Place
from testbed.errors import TestbedError
from testbed.plan.diff import Held, Observed, Plan, diff, unseen_places
from testbed.plan.resources import OUTER, Key, Properties, Resource


def observe(desired: Mapping[Key, Resource], places: Sequence[Place]) -> tuple[Observed, frozenset[str]]:
    """Return the existing resources, and the places whose machine does not run.

    Raises:
        ProvisioningError: a machine runs and cannot be observed.

    """
    outer = next(place for place in places if place.name == OUTER)
    observed: dict[Key, Properties] = dict(outer.observe())
    unseen = unseen_places(desired, observed)
    inner = [place for place in places if place.name != OUTER and place.name not in unseen]
    if inner:
        with ThreadPoolExecutor(max_workers=len(inner)) as pool:
            for found in pool.map(_look, inner):
                observed.update(found)
    return observed, unseen


@dataclass(frozen=True, slots=True)
class Look:
    """The observed state of each place before a change.

    Args:
        found: what exists, by place.
        unseen: places whose machine does not run, or will be replaced.
        failed: why a place whose machine runs could not be observed.

    """

    found: Mapping[str, Observed]
    unseen: frozenset[str]
    failed: Mapping[str, TestbedError]


def look(desired: Mapping[Key, Resource], places: Sequence[Place]) -> Look:
    """Observe some places, the outer machine among them.

    A place that cannot be observed hinders none of the others.
    """
    found: dict[str, Observed] = {OUTER: next(place for place in places if place.name == OUTER).observe()}
    failed: dict[str, TestbedError] = {}
    unseen = unseen_places(desired, found[OUTER])
    inner = [place for place in places if place.name != OUTER and place.name not in unseen]
    with ThreadPoolExecutor(max_workers=max(1, len(inner))) as pool:
        for place, future in [(place, pool.submit(_look, place)) for place in inner]:
            try:
                found[place.name] = future.result()
            except TestbedError as error:
                failed[place.name] = error
    return Look(found, unseen, failed)


def _look(place: Place) -> Observed:
    place.wait()
    return place.observe()


def plan(desired: Mapping[Key, Resource], places: Sequence[Place], held: Held | None = None) -> Plan:
    """Return the plan that `testbed.engine.apply.converge` would carry out now.

    Args:
        held: see `testbed.plan.diff.diff`.

    """
    observed, unseen = observe(desired, places)
    return diff(desired, observed, unseen, held)
