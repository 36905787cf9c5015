"""Carries out plans: places side by side, and in each place the actions in the order of their
dependencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from graphlib import TopologicalSorter
from queue import SimpleQueue

from testbed.engine.place import Place, Progress
from testbed.engine.timing import Trace
from testbed.errors import ProvisioningError, TestbedError
from testbed.plan.diff import Action, Observed, Plan, diff
from testbed.plan.resources import OUTER, Key, Kind, Resource

_WORKERS = 4


def converge(
    desired: Mapping[Key, Resource], places: Sequence[Place], progress: Progress, trace: Trace | None = None
) -> list[Action]:  # fmt: skip
    """Make the world what it must be, and return what was done.

    The outer machine comes first; then every other place is waited for, observed and changed on its own, so
    that no place waits for another.

    Args:
        trace: learns what took how long.

    Raises:
        ProvisioningError: something could not be done; what was done stays, and another run resumes.

    """
    outer = next(place for place in places if place.name == OUTER)
    done = converge_place(desired, outer, progress, trace)
    inner = [place for place in places if place.name != OUTER]
    failures: list[TestbedError] = []
    with ThreadPoolExecutor(max_workers=max(1, len(inner))) as pool:
        for future in [pool.submit(converge_place, desired, place, progress, trace) for place in inner]:
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
    return ProvisioningError(
        what, fact="\n".join(map(str, failures)), remedy="correct the causes and run the command again"
    )


def converge_place(
    desired: Mapping[Key, Resource], place: Place, progress: Progress, trace: Trace | None = None
) -> list[Action]:  # fmt: skip
    """Make one place what it must be, as soon as it answers, and return what was done.

    Raises:
        ProvisioningError: something could not be done; what was done stays.

    """
    here, trace = (
        {key: resource for key, resource in desired.items() if key.place == place.name},
        trace or Trace(),
    )
    waited, recovered, seen = (f"{place.name}: {step}" for step in ("waited for", "set right", "observed"))
    with trace.span(waited, [str(Key(OUTER, Kind.MACHINE, place.name))]):
        place.wait()
    with trace.span(recovered, [waited]):
        for told in place.recover():
            progress(f"{place.name}: {told}")
    with trace.span(seen, [recovered]):
        observed: Observed = place.observe()
    return perform(diff(here, observed), place, progress, trace, seen)


def perform(plan: Plan, place: Place, progress: Progress, trace: Trace, seen: str) -> list[Action]:
    """Carry out a plan in one place; actions that do not depend on one another run side by side.

    Args:
        trace: learns what took how long.
        seen: what came before, in the trace.

    Raises:
        ProvisioningError: an action failed; those that it does not hinder were carried out.

    """
    actions = {action.key: action for action in plan.actions}
    order = TopologicalSorter(
        {key: [other for other in action.after if other in actions] for key, action in actions.items()}
    )
    order.prepare()

    def do(action: Action) -> None:
        with trace.span(str(action.key), [str(key) for key in action.after if key in actions] or [seen]):
            place.perform(action)

    running: dict[Future[None], Action] = {}
    ended: SimpleQueue[Future[None]] = SimpleQueue()
    done: list[Action] = []
    failures: list[TestbedError] = []
    with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        while order.is_active():
            for key in order.get_ready():
                progress(str(actions[key]))
                future = pool.submit(do, actions[key])
                running[future] = actions[key]
                future.add_done_callback(ended.put)
            if not running:
                break
            future = ended.get()
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
