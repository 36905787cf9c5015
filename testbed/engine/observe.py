"""Observes a lab: collects the existing resources of all its places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from testbed.engine.place import Place
from testbed.plan.diff import Observed, Plan, diff, unseen_places
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


def _look(place: Place) -> Observed:
    place.wait()
    return place.observe()


def plan(desired: Mapping[Key, Resource], places: Sequence[Place]) -> Plan:
    """Return the actions that `testbed.engine.apply.converge` would do now."""
    observed, unseen = observe(desired, places)
    return diff(desired, observed, unseen)
