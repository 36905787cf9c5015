"""Silent guests are started again during checks, and nothing else of the lab is changed."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.engine import observe
from testbed.lab.guest_recovery import restart_crashed_guests
from testbed.plan.diff import Action, Plan, Verb
from testbed.plan.resources import Key, Kind
from tests.shapes import lab_of

LAB = lab_of("two-tenants")
WEB = LAB.guests[0]
DEPARTING = f"{WEB.label}.departing"


def _action(verb: Verb, kind: Kind, name: str, place: str = WEB.node) -> Action:
    return Action(verb, Key(place, kind, name), "-", None, (), ("state",))


SILENT = _action(Verb.RESTART, Kind.GUEST, WEB.label)
LIMIT = _action(Verb.UPDATE, Kind.LIMIT, f"{WEB.label}/app")
LIMITS = _action(Verb.UPDATE, Kind.COMPUTE, WEB.label)
STRANGE = [
    _action(Verb.DELETE, Kind.GUEST, DEPARTING),
    _action(Verb.DELETE, Kind.VOLUME, f"{DEPARTING}.qcow2"),
    _action(Verb.UPDATE, Kind.LIMIT, f"{DEPARTING}/app"),
    _action(Verb.UPDATE, Kind.SETTING, "guest-records"),
]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that lets plans be found in turn, and returns the guests and the actions."""

    def run(*plans: list[Action]) -> tuple[tuple[str, ...], list[Action]]:
        found: Iterator[Plan] = iter([Plan(tuple(actions)) for actions in plans])
        monkeypatch.setattr(observe, "plan", lambda *_: next(found))
        performed: list[Action] = []
        nodes = {name: SimpleNamespace(console=lambda *_: b"") for name in ("node-a", "node-b")}
        places = [SimpleNamespace(name=name, perform=performed.append) for name in ("outer", *nodes)]
        lab: Any = SimpleNamespace(topology=LAB, desired={}, places=places, nodes=nodes)
        return restart_crashed_guests(lab, lambda _: None), performed

    return run


def test_a_silent_guest_is_restarted_and_gets_its_limits(done: Any) -> None:
    assert done([SILENT, LIMIT], [LIMIT, LIMITS]) == ((WEB.label,), [SILENT, LIMIT, LIMIT, LIMITS])


def test_what_another_check_makes_meanwhile_stays(done: Any) -> None:
    """Two checks run at the same time: a guest of the other one had its volumes deleted."""
    assert done([SILENT], [LIMIT, *STRANGE]) == ((WEB.label,), [SILENT, LIMIT])


@pytest.mark.parametrize("other", [STRANGE[0], STRANGE[3]])
def test_a_lab_with_other_drift_is_left_as_it_is(done: Any, other: Action) -> None:
    assert done([SILENT, other]) == ((), [])
    assert done([LIMIT]) == ((), [])
