"""The engine against a simulated world: it converges, resumes, repairs, and says why."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.cli.output.display import Board
from testbed.engine.apply import converge
from testbed.engine.observe import plan
from testbed.engine.place import Step
from testbed.errors import ProvisioningError
from testbed.model.resolve import resolve
from testbed.model.topology import Topology
from testbed.plan import render
from testbed.plan.diff import Action, Plan, Verb
from testbed.plan.resources import OUTER, Key, Kind, Resource, desired, places
from testbed.topology_file.loader import load, read
from tests.sim.simulator import INPUTS, Killed, World

TOPOLOGIES = Path(__file__).parents[2] / "topologies"


def _lab(name: str = "two-tenants.yaml") -> Topology:
    return resolve(read(TOPOLOGIES / name).spec)


def _wanted(topology: Topology) -> dict[Key, Resource]:
    return desired(topology, INPUTS)


def _up(world: World, topology: Topology) -> list[Key]:
    done = converge(_wanted(topology), [world.place(name) for name in places(topology)], lambda _: None)
    return [action.key for action in done]


def _plan(world: World, topology: Topology) -> list[str]:
    return [
        str(action)
        for action in plan(_wanted(topology), [world.place(name) for name in places(topology)]).actions
    ]


@pytest.mark.parametrize("name", ["one-node.yaml", "two-tenants.yaml", "three-tenants-dual-stack.yaml"])
def test_up_makes_everything_and_a_second_one_nothing(name: str) -> None:
    lab, world = _lab(name), World()
    assert set(_up(world, lab)) == set(_wanted(lab))
    assert _up(world, lab) == []
    assert _plan(world, lab) == []


@settings(max_examples=40, deadline=None)
@given(st.integers(min_value=0, max_value=75))
def test_a_killed_up_resumes_where_it_was(fuse: int) -> None:
    lab, world = _lab(), World(fuse=fuse)
    with suppress(Killed):
        _up(world, lab)
    made = len(world.performed)
    world.fuse = None
    assert len(_up(world, lab)) == len(_wanted(lab)) - made
    assert _plan(world, lab) == []


def test_a_failure_is_told_and_the_rest_is_done_first() -> None:
    lab, world = _lab(), World()
    guest = Key("node-a", Kind.GUEST, "red/web")
    world.failing.add(guest)
    with pytest.raises(ProvisioningError, match="cannot create"):
        _up(world, lab)
    assert Key("node-b", Kind.GUEST, "red/db") in world.resources
    assert Key("node-a", Kind.GUEST, "blue/db") in world.resources
    world.failing.clear()
    limits = [Key("node-a", Kind.COMPUTE, "red/web"), Key("node-a", Kind.LIMIT, "red/web/app")]
    assert _up(world, lab) == [guest, *limits]


@pytest.mark.parametrize("fails", [False, True])
def test_a_display_can_count_what_is_planned_and_what_has_ended(fails: bool) -> None:
    lab, world, board, told = _lab(), World(), Board(), list[str]()
    if fails:
        world.failing.add(Key("node-a", Kind.GUEST, "red/web"))
    with suppress(ProvisioningError):
        converge(_wanted(lab), [world.place(name) for name in places(lab)], told.append)
    for step in told:
        assert isinstance(step, Step)
        board.take(step)
    assert board.planned == len(_wanted(lab)) + len(places(lab))
    # limits of the guest that was not made wait for it
    assert board.done == board.planned - (2 if fails else 0)
    assert board.running == []
    assert board.wrong == fails
    assert len([step for step in told if step]) == board.done - len(places(lab)) + fails


def test_a_breach_shows_as_drift_and_up_repairs_it() -> None:
    lab, world = _lab(), World()
    _up(world, lab)
    ksm = Key("node-a", Kind.SETTING, "memory-deduplication")
    world.resources[ksm]["value"] = "1"
    assert _plan(world, lab) == ["update node-a: setting memory-deduplication (found '1', wanted '0')"]
    assert _up(world, lab) == [ksm]
    assert _plan(world, lab) == []


def test_a_foreign_rule_in_a_switch_is_named() -> None:
    lab, world = _lab(), World()
    _up(world, lab)
    rules = world.resources[Key("controller", Kind.SWITCH, "red/app")]["acls"]
    assert isinstance(rules, list)
    rules.append("from-lport 2000 allow: 1")
    (line,) = _plan(world, lab)
    told = "rules: too many: every guest may send anything (from-lport, priority 2000, allow)"
    assert line == f"update controller: logical-switch red/app ({told})"


def test_a_changed_file_changes_only_what_differs() -> None:
    lab, world = _lab(), World()
    _up(world, lab)
    text = (TOPOLOGIES / "two-tenants.yaml").read_text()
    changed = resolve(load(text.replace("tcp/5432", "tcp/5433", 1), "changed").spec)
    assert _up(world, changed) == [Key("controller", Kind.SWITCH, "red/app")]
    grown = resolve(
        load(text.replace("db: {node: node-b, volumes: {data: 64 MiB}}", "db: {node: node-b}", 1), "x").spec
    )
    _up(world, lab)
    done = {(str(action.verb), action.key.name) for action in _done(world, grown)}
    assert ("delete", "red/db.data.luks") in done
    assert ("restart", "red/db") in done
    assert ("delete", "red") in done  # its key: the tenant has no other volume on the node
    assert {name for _, name in done} == {"red/db.data.luks", "red/db", "red"}


def test_a_new_guest_leaves_the_others_in_place() -> None:
    lab, world = _lab(), World()
    _up(world, lab)
    text = (TOPOLOGIES / "two-tenants.yaml").read_text()
    web = "web: {node: node-a"
    grown = resolve(load(text.replace(web, f"aaa: {{node: node-a}}\n      {web}", 1), "grown").spec)
    done = {(str(action.verb), str(action.key.kind), action.key.name) for action in _done(world, grown)}
    assert {item for item in done if item[1] != "logical-switch"} == {
        ("create", "logical-port", "red/aaa/app"),
        ("create", "volume", "red/aaa.qcow2"),
        ("create", "guest", "red/aaa"),
        ("create", "limit", "red/aaa/app"),
        ("create", "compute-limits", "red/aaa"),
        ("update", "pool", "red"),
    }


def _done(world: World, topology: Topology) -> list:  # type: ignore[type-arg]
    return converge(_wanted(topology), [world.place(name) for name in places(topology)], lambda _: None)


@pytest.mark.parametrize(
    ("place", "kind", "state", "verb"),
    [
        (OUTER, Kind.MACHINE, "paused", Verb.RESUME),
        ("node-a", Kind.GUEST, "silent", Verb.RESTART),
        ("node-a", Kind.GUEST, "crashed", Verb.REPLACE),
    ],
)
def test_what_is_only_in_another_state_is_brought_back_with_what_it_has(
    place: str, kind: Kind, state: str, verb: Verb
) -> None:
    lab, world = _lab(), World()
    _up(world, lab)
    key = next(key for key in world.resources if (key.place, key.kind) == (place, kind))
    world.resources[key]["state"] = state
    found = plan(_wanted(lab), [world.place(name) for name in places(lab)])
    assert (found.actions[0].verb, found.actions[0].key) == (verb, key)


def test_a_lost_node_is_rebuilt_with_everything_in_it_and_nothing_else() -> None:
    lab, world = _lab(), World()
    _up(world, lab)
    for key in [key for key in world.resources if key.place == "node-b" or key.name == "node-b"]:
        del world.resources[key]
    assert any("its machine is not up yet" in line for line in _plan(world, lab))
    done = _up(world, lab)
    assert {key.place for key in done} == {OUTER, "node-b"}
    assert _plan(world, lab) == []


def test_every_action_can_be_put_into_words() -> None:
    key = Key("node-a", Kind.GUEST, "red/web")
    lines = render.text(Plan(tuple(Action(verb, key, "a reason", None, ()) for verb in Verb))).splitlines()
    assert all(any(f" {verb} " in line for line in lines) for verb in Verb)
