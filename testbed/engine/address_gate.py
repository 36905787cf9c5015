"""Holds guests back while the controller may still give them their old addresses."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

from testbed.plan.diff import Action, Observed, Plan, Verb
from testbed.plan.resources import Key, Kind, Resource

_STARTS = frozenset({Verb.CREATE, Verb.REPLACE, Verb.RESTART})


class AddressGate:
    """Lets guests start when every place that gives addresses gives those of the topology.

    A guest asks for its addresses when it starts, and keeps them for the day of its lease. So a guest that
    starts beside a place with old addresses would have one of these, and nothing would start it again.

    Args:
        desired: all resources that must exist.
        running: places whose machine ran before; a new machine has no old addresses.

    """

    def __init__(self, desired: Mapping[Key, Resource], running: Collection[str]) -> None:
        self._desired = desired
        self._correct: dict[str, Future[bool]] = {
            key.place: Future() for key in desired if key.kind is Kind.PORT and key.place in running
        }

    @contextmanager
    def watching(self, place: str) -> Iterator[None]:
        """Change a place during the block; after an error, its addresses are not known to be correct."""
        correct = False
        try:
            yield
            correct = True
        finally:
            self._tell(place, correct)

    def saw(self, place: str, observed: Observed) -> None:
        """Note what exists in a place; guests need not wait for it if its addresses are correct."""
        ports = [key for key in observed if key.kind is Kind.PORT and key in self._desired]
        wanted = {key: self._desired[key].properties["addresses"] for key in ports}
        if all(observed[key].get("addresses") == wanted[key] for key in ports):
            self._tell(place, True)

    def _tell(self, place: str, correct: bool) -> None:
        told = self._correct.get(place)
        if told is not None and not told.done():
            told.set_result(correct)

    def passed(self, plan: Plan) -> Plan:
        """Return a plan whose guests may start, after a wait if it starts any.

        Guests do not start if a place failed before its addresses were correct.
        """
        starts = [action for action in plan.actions if _starts_guest(action)]
        if not starts or all(told.result() for told in self._correct.values()):
            return plan
        return replace(plan, actions=tuple(action for action in plan.actions if action not in starts))


def _starts_guest(action: Action) -> bool:
    return action.key.kind is Kind.GUEST and action.verb in _STARTS
