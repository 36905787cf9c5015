"""Carries out plans: places side by side, and in each place the actions in the order of their dependencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter

from testbed.errors import ProvisioningError, TestbedError
from testbed.plan.diff import Action, Observed, Plan, diff
from testbed.plan.resources import OUTER, Key, Resource
from testbed.ports import Place, Progress

_WORKERS = 4


def converge(desired: Mapping[Key, Resource], places: Sequence[Place], progress: Progress) -> list[Action]:
    """Make the world what it must be, and return what was done.

    The outer machine comes first; then every other place is waited for, observed and changed on its own, so
    that no place waits for another.

    Raises:
        ProvisioningError: something could not be done; what was done stays, and another run resumes.

    """
    outer = next(place for place in places if place.name == OUTER)
    done = converge_place(desired, outer, progress)
    inner = [place for place in places if place.name != OUTER]
    failures: list[TestbedError] = []
    with ThreadPoolExecutor(max_workers=max(1, len(inner))) as pool:
        for future in [pool.submit(converge_place, desired, place, progress) for place in inner]:
            try:
                done += future.result()
            except TestbedError as error:
                failures.append(error)
    if failures:
        raise _joined(failures)
    return done


def _joined(failures: list[TestbedError]) -> TestbedError:
    if len(failures) == 1:
        return failures[0]
    what = f"{len(failures)} parts of the lab could not be provisioned"
    return ProvisioningError(what, fact="\n".join(map(str, failures)), remedy="correct the causes and run the command again")


def converge_place(desired: Mapping[Key, Resource], place: Place, progress: Progress) -> list[Action]:
    """Make one place what it must be, as soon as it answers, and return what was done.

    Raises:
        ProvisioningError: something could not be done; what was done stays.

    """
    here = {key: resource for key, resource in desired.items() if key.place == place.name}
    place.wait()
    for started in place.recover():
        progress(f"restart {place.name}: {started} (it did not run)")
    observed: Observed = place.observe()
    return perform(diff(here, observed), place, progress)


def perform(plan: Plan, place: Place, progress: Progress) -> list[Action]:
    """Carry out a plan in one place; actions that do not depend on one another run side by side.

    Raises:
        ProvisioningError: an action failed; those that it does not hinder were carried out.

    """
    actions = {action.key: action for action in plan.actions}
    order = TopologicalSorter(
        {key: [other for other in action.after if other in actions] for key, action in actions.items()}
    )
    order.prepare()
    running: dict[Future[None], Action] = {}
    done: list[Action] = []
    failures: list[TestbedError] = []
    with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        while order.is_active():
            for key in order.get_ready():
                progress(str(actions[key]))
                running[pool.submit(place.perform, actions[key])] = actions[key]
            if not running:
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                action = running.pop(future)
                try:
                    future.result()
                except TestbedError as error:
                    progress(f"failed: {action.key}: {error.what}: {error.fact}")
                    failures.append(error)
                    continue
                done.append(action)
                order.done(action.key)
    if failures:
        raise _joined(failures)
    return done
