"""Carries out plans: places in parallel, actions of a place in the order of dependencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from graphlib import TopologicalSorter
from queue import SimpleQueue

from testbed.engine.address_gate import AddressGate
from testbed.engine.observe import Look
from testbed.engine.place import Place, Progress, Step
from testbed.engine.timing import Trace
from testbed.errors import ProvisioningError, TestbedError
from testbed.plan.diff import Action, Observed, Plan, Verb, diff
from testbed.plan.resources import OUTER, Key, Kind, Resource

_WORKERS = 4
_BOOTS = frozenset({Verb.CREATE, Verb.REPLACE})  # a machine after these has nothing in it


def converge(
    desired: Mapping[Key, Resource],
    places: Sequence[Place],
    progress: Progress,
    trace: Trace | None = None,
    seen: Look | None = None,
) -> list[Action]:
    """Bring all places to the desired state and return the actions that were done.

    The outer machine comes first; then every other place is waited for, observed and changed on its own, so
    that no place waits for another. One thing is an exception: guests start when the controller gives out
    the addresses of the topology, since they ask it for their addresses when they start.

    Args:
        trace: records the duration of each step.
        seen: the state of some places that was observed just before; it is not observed again, unless a
            place had to be set right.

    Raises:
        ProvisioningError: an action failed; completed actions stay, and another run continues.

    """
    outer = next(place for place in places if place.name == OUTER)
    progress(Step.planned(len(places)))
    known = seen.found if seen else {}
    done = converge_place(desired, outer, progress, trace, known.get(OUTER))
    started = {
        action.key.name for action in done if action.key.kind is Kind.MACHINE and action.verb in _BOOTS
    }
    inner = [place for place in places if place.name != OUTER]
    gate = AddressGate(desired, {place.name for place in inner} - started)
    failures: list[TestbedError] = []
    with ThreadPoolExecutor(max_workers=max(1, len(inner))) as pool:
        for future in [
            pool.submit(converge_place, desired, place, progress, trace, known.get(place.name), gate)
            for place in inner
        ]:
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
    desired: Mapping[Key, Resource],
    place: Place,
    progress: Progress,
    trace: Trace | None = None,
    known: Observed | None = None,
    gate: AddressGate | None = None,
) -> list[Action]:
    """Wait for one place, bring it to the desired state, and return the actions that were done.

    Args:
        known: what exists there, if it was observed just before.
        gate: holds back guests; no guest waits if it is left out.

    Raises:
        ProvisioningError: an action failed; completed actions stay.

    """
    here = {key: resource for key, resource in desired.items() if key.place == place.name}
    gate, trace = gate or AddressGate({}, ()), trace or Trace()
    seen = f"{place.name}: observed"
    with gate.watching(place.name):
        observed = _look(place, progress, trace, seen, known)
        gate.saw(place.name, observed)
        plan = diff(here, observed)
        passed = gate.passed(plan)
        if passed != plan:
            progress(f"{place.name}: guests are not started, since they could get old addresses")
        return perform(passed, place, progress, trace, seen)


def _look(place: Place, progress: Progress, trace: Trace, seen: str, known: Observed | None) -> Observed:
    """Wait for one place, set it right, and return what exists there.

    Args:
        seen: name of the last step, in the trace.
        known: what was observed just before; it counts unless something was set right since.

    """
    waited, recovered = (f"{place.name}: {step}" for step in ("waited for", "set right"))
    progress(Step.begun(place.name))
    with trace.span(waited, [str(Key(OUTER, Kind.MACHINE, place.name))]):
        place.wait()
    with trace.span(recovered, [waited]):
        repairs = place.recover()
        for told in repairs:
            progress(f"{place.name}: {told}")
    with trace.span(seen, [recovered]):
        observed = place.observe() if known is None or repairs else known
    progress(Step.ended(place.name))
    return observed


def perform(plan: Plan, place: Place, progress: Progress, trace: Trace, seen: str) -> list[Action]:
    """Carry out a plan in one place; independent actions run in parallel.

    Args:
        plan: the plan.
        place: the place.
        progress: receives messages.
        trace: records the duration of each action.
        seen: name of the step before the plan, in the trace.

    Raises:
        ProvisioningError: an action failed; all actions that do not depend on it were carried out.

    """
    actions = {action.key: action for action in plan.actions}
    order = TopologicalSorter(
        {key: [other for other in action.after if other in actions] for key, action in actions.items()}
    )
    order.prepare()

    def do(action: Action) -> None:
        with trace.span(str(action.key), [str(key) for key in action.after if key in actions] or [seen]):
            place.perform(action)

    progress(Step.planned(len(actions)))
    running: dict[Future[None], Action] = {}
    ended: SimpleQueue[Future[None]] = SimpleQueue()
    done: list[Action] = []
    failures: list[TestbedError] = []
    with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        while order.is_active():
            for key in order.get_ready():
                progress(Step.begun(str(key), str(actions[key])))
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
                progress(
                    Step.ended(
                        str(action.key), f"failed: {action.key}: {error.what}: {error.fact}", well=False
                    )
                )
                failures.append(error)
                continue  # not `order.done`: actions that depend on this one never become ready
            progress(Step.ended(str(action.key)))
            done.append(action)
            order.done(action.key)
    if failures:
        raise _joined(failures)
    return done
