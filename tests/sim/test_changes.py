"""Changes of a running lab: the plan names the costs, and is empty after `up`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.cli import consent
from testbed.drivers.host.workspace import Workspace
from testbed.engine.apply import converge
from testbed.engine.observe import Look, look, plan
from testbed.errors import Exit, ProvisioningError, UsageError
from testbed.lab import session
from testbed.model.numbers import Numbers
from testbed.model.resolve import resolve
from testbed.model.topology import Topology
from testbed.plan.diff import Plan, Verb, data_of
from testbed.plan.render import data, text
from testbed.plan.resources import OUTER, Key, Kind, Resource, desired, places
from testbed.topology_file.loader import load
from tests.golden.test_golden import _same
from tests.sim.simulator import INPUTS, Killed, World

GOLDEN = Path(__file__).parents[1] / "golden/changes"
BASE = """\
version: 1
name: lab
infrastructure: {management: 172.20.0.0/24, fabric: 172.20.1.0/24, storage: 172.20.2.0/24}
controller: {memory: 1 GiB}
nodes:
  node-a: {memory: 4 GiB}
  node-b: {memory: 4 GiB}
tenants:
  red:
    networks: {app: [10.0.0.0/24, "fd00:a::/64"]}
    guests:
      web: {node: node-a, volumes: {data: 64 MiB}}
      db: {node: node-b, volumes: {data: 64 MiB}}
    allow: [web -> db tcp/5432]
  blue:
    networks: {app: 10.0.0.0/24}
    guests:
      web: {node: node-b}
"""
RED = BASE[BASE.index("  red:") : BASE.index("  blue:")]
WEB = "web: {node: node-a, volumes: {data: 64 MiB}}"
# Name of a change: what is replaced, by what, which guests or machines start again and how, and what is lost.
CHANGES: dict[str, tuple[str, str, set[str], set[str]]] = {
    "volume-shrinks": (WEB, WEB.replace("64", "32"), {"restart red/web"}, {"volume data of red/web"}),
    "volume-grows": (WEB, WEB.replace("64", "128"), set(), set()),
    "volume-goes": (WEB, "web: {node: node-a}", {"restart red/web"}, {"volume data of red/web"}),
    "volume-comes": (
        "web: {node: node-b}",
        "web: {node: node-b, volumes: {data: 64 MiB}}",
        {"restart blue/web"},
        set(),
    ),
    "network-moves": ("10.0.0.0/24, ", "10.0.9.0/24, ", {"restart red/web", "restart red/db"}, set()),
    "ipv6-comes": ("app: 10.0.0.0/24}", 'app: [10.0.0.0/24, "fd00:b::/64"]}', {"restart blue/web"}, set()),
    "ipv6-goes": (
        '[10.0.0.0/24, "fd00:a::/64"]',
        "10.0.0.0/24",
        {"restart red/web", "restart red/db"},
        set(),
    ),
    "ipv6-moves": ("fd00:a::", "fd00:c::", {"restart red/web", "restart red/db"}, set()),
    "node-memory": (
        "node-b: {memory: 4 GiB}",
        "node-b: {memory: 5 GiB}",
        {"replace node-b", "create red/db", "create blue/web"},
        {"root disk of red/db", "volume data of red/db", "root disk of blue/web"},
    ),
    "fabric-moves": (
        "fabric: 172.20.1.",
        "fabric: 172.20.7.",
        {"replace node-a", "replace node-b", "create red/web", "create red/db", "create blue/web"},
        {
            "root disk of red/web",
            "volume data of red/web",
            "root disk of red/db",
            "volume data of red/db",
            "root disk of blue/web",
        },
    ),
    "guest-memory": (
        "web: {node: node-b}",
        "web: {node: node-b, memory: 256 MiB}",
        {"restart blue/web"},
        set(),
    ),
    "guest-moves": (
        WEB,
        WEB.replace("node-a", "node-b"),
        {"delete red/web", "create red/web"},
        {"root disk of red/web", "volume data of red/web"},
    ),
    "tenant-goes": (
        RED,
        "",
        {"delete red/web", "delete red/db"},
        {"root disk of red/web", "volume data of red/web", "root disk of red/db", "volume data of red/db"},
    ),
    "controller-memory": (
        "controller: {memory: 1 GiB}",
        "controller: {memory: 2 GiB}",
        {"replace controller"},
        set(),
    ),
    "flow-changes": ("tcp/5432", "tcp/5433", set(), set()),
}


def _lab(source: str, given: Numbers | None = None) -> Topology:
    return resolve(load(source, "lab.yaml").spec, given)


def _wanted(topology: Topology) -> dict[Key, Resource]:
    return desired(topology, INPUTS)


def _places(world: World, lab: Topology) -> list[Any]:
    """Return the places of a lab; machines report settings and limits only when asked."""
    wanted = _wanted(lab)
    for key in [
        key
        for key in world.resources
        if key.kind in (Kind.SETTING, Kind.LIMIT, Kind.COMPUTE) and key not in wanted
    ]:
        del world.resources[key]
    return [world.place(name) for name in places(lab)]


def _built(source: str = BASE) -> tuple[World, Topology]:
    world, lab = World(), _lab(source)
    converge(_wanted(lab), _places(world, lab), lambda _: None)
    return world, lab


def _planned(world: World, before: Topology, after: Topology) -> Plan:
    return plan(_wanted(after), _places(world, after), data_of(_wanted(before)))


def _started(found: Plan) -> set[str]:
    return {
        f"{action.verb} {action.key.name}"
        for action in found.actions
        if action.key.kind in (Kind.GUEST, Kind.MACHINE)
    }


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_costs_what_its_plan_says_and_leaves_nothing_to_do(name: str) -> None:
    old, new, starts, losses = CHANGES[name]
    assert BASE.count(old) == 1
    world, before = _built()
    after = _lab(BASE.replace(old, new), Numbers.of(before))
    found = _planned(world, before, after)
    assert found
    assert not found.blocked
    assert _started(found) == starts
    assert {loss for action in found.actions for loss in action.loses} == losses
    _same(GOLDEN / f"{name}.txt", text(found) + "\n")
    done = converge(
        _wanted(after),
        _places(world, after),
        lambda _: None,
        seen=look(_wanted(after), _places(world, after)),
    )
    assert {str(action) for action in done if action.key.place == OUTER} == {
        str(action) for action in found.actions if action.key.place == OUTER
    }
    assert not _planned(world, after, after)
    assert set(world.resources) == set(_wanted(after))


@pytest.mark.parametrize("name", ["volume-shrinks", "network-moves", "guest-moves", "node-memory"])
@pytest.mark.parametrize("fuse", [1, 2, 3])
def test_a_killed_change_resumes(name: str, fuse: int) -> None:
    old, new, _, _ = CHANGES[name]
    world, before = _built()
    after = _lab(BASE.replace(old, new), Numbers.of(before))
    world.fuse = len(world.performed) + fuse
    with suppress(Killed):
        converge(
            _wanted(after),
            _places(world, after),
            lambda _: None,
            seen=look(_wanted(after), _places(world, after)),
        )
    world.fuse = None
    converge(_wanted(after), _places(world, after), lambda _: None)
    assert not _planned(world, after, after)
    assert set(world.resources) == set(_wanted(after))


def test_another_node_replaces_those_that_must_learn_of_it() -> None:
    world, before = _built()
    node = "  node-b: {memory: 4 GiB}\n"
    after = _lab(BASE.replace(node, node + node.replace("node-b", "node-c")), Numbers.of(before))
    found = _planned(world, before, after)
    assert {"replace node-a", "replace node-b", "create node-c"} <= _started(found)
    converge(_wanted(after), _places(world, after), lambda _: None)
    assert not _planned(world, after, after)


def test_a_node_that_goes_takes_everything_with_it() -> None:
    one = BASE.replace("  node-b: {memory: 4 GiB}\n", "").replace("node-b", "node-a")
    world, before = _built()
    after = _lab(one, Numbers.of(before))
    (gone,) = [
        action
        for action in _planned(world, before, after).actions
        if action.verb is Verb.DELETE and action.key.name == "node-b"
    ]
    assert set(gone.loses) == {"root disk of red/db", "volume data of red/db", "root disk of blue/web"}
    (unknown,) = [
        action for action in plan(_wanted(after), _places(world, after)).actions if action.key == gone.key
    ]
    assert unknown.loses == ("everything on node-b",)
    converge(_wanted(after), _places(world, after), lambda _: None)
    assert not _planned(world, after, after)


def test_moved_management_addresses_need_a_lab_that_is_down() -> None:
    world, before = _built()
    after = _lab(BASE.replace("management: 172.20.0.", "management: 172.20.8."), Numbers.of(before))
    found = _planned(world, before, after)
    assert [action.key for action in found.blocked] == [Key(OUTER, Kind.NETWORK, "management")]
    assert data(found)["possible"] is False
    _same(GOLDEN / "management-moves.txt", text(found) + "\n")
    with pytest.raises(ProvisioningError, match="cannot do"):
        converge(_wanted(after), _places(world, after), lambda _: None)


@pytest.mark.parametrize("order", ["tenants", "guests", "nodes"])
def test_another_order_changes_nothing(order: str) -> None:
    lines = BASE.splitlines(keepends=True)
    pairs = {"nodes": ("node-a: {m", "node-b: {m"), "guests": ("web: {node: node-a", "db: {")}
    if order == "tenants":
        other = BASE.replace(RED, "") + RED
    else:
        one, two = (
            next(index for index, line in enumerate(lines) if line.strip().startswith(start))
            for start in pairs[order]
        )
        lines[one], lines[two] = lines[two], lines[one]
        other = "".join(lines)
    world, before = _built()
    assert [str(action) for action in _planned(world, before, _lab(other)).actions] == []


def test_the_controller_comes_before_guests_that_ask_for_new_addresses() -> None:
    world, before = _built()
    after = _lab(BASE.replace("10.0.0.0/24, ", "10.0.9.0/24, "), Numbers.of(before))
    start = len(world.performed)
    converge(
        _wanted(after),
        _places(world, after),
        lambda _: None,
        seen=look(_wanted(after), _places(world, after)),
    )
    order = [action.key.place for action in world.performed[start:]]
    assert "controller" in order
    assert order.index("node-a") > max(index for index, place in enumerate(order) if place == "controller")


@pytest.fixture
def readdressed() -> tuple[World, Topology, Look]:
    """A lab whose `up` was killed after it stored other addresses, and what the next one has seen."""
    world, before = _built()
    after = _lab(BASE.replace("10.0.0.0/24, ", "10.0.9.0/24, "), Numbers.of(before))
    return world, after, look(_wanted(after), _places(world, after)[:1])


def _acted_on(world: World, start: int) -> list[tuple[Kind, str]]:
    return [(action.key.kind, action.key.name) for action in world.performed[start:]]


def test_after_a_kill_guests_start_when_the_controller_gives_the_stored_addresses(
    readdressed: tuple[World, Topology, Look], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, after, seen = readdressed
    known, start = _places(world, after), len(world.performed)
    controller = next(place for place in known if place.name == "controller")
    observe = controller.observe

    def slowly() -> object:
        time.sleep(0.3)
        return observe()

    monkeypatch.setattr(controller, "observe", slowly)
    converge(_wanted(after), known, lambda _: None, seen=seen)
    acted = _acted_on(world, start)
    ports = [index for index, (kind, _) in enumerate(acted) if kind is Kind.PORT]
    guests = [index for index, (kind, _) in enumerate(acted) if kind is Kind.GUEST]
    assert len(guests) == 2
    assert max(ports) < min(guests)


@pytest.mark.parametrize("early", [False, True])
def test_guests_do_not_start_beside_a_controller_that_fails(
    readdressed: tuple[World, Topology, Look], monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    world, after, seen = readdressed
    known, start = _places(world, after), len(world.performed)
    controller, told = next(place for place in known if place.name == "controller"), list[str]()

    def fail(*_: object) -> None:
        raise ProvisioningError("the controller fails", fact="-", remedy="-")

    monkeypatch.setattr(controller, "wait" if early else "perform", fail)
    world.resources[Key("node-a", Kind.SETTING, "memory-deduplication")]["value"] = "1"
    with pytest.raises(ProvisioningError):
        converge(_wanted(after), known, told.append, seen=seen)
    assert _acted_on(world, start) == [(Kind.SETTING, "memory-deduplication")]
    assert {line for line in told if "old addresses" in line} == {
        f"{node}: guests are not started, since they could get old addresses" for node in ("node-a", "node-b")
    }


def test_a_place_that_had_to_be_set_right_is_observed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world, lab = _built()
    known = _places(world, lab)
    seen = look(_wanted(lab), known)
    node = next(place for place in known if place.name == "node-a")
    setting = Key("node-a", Kind.SETTING, "memory-deduplication")

    def recover() -> tuple[str, ...]:
        world.resources[setting]["value"] = "1"
        return ("set the clock",)

    monkeypatch.setattr(node, "recover", recover)
    assert [action.key for action in converge(_wanted(lab), known, lambda _: None, seen=seen)] == [setting]


def test_what_was_seen_is_not_observed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world, lab = _built()
    known = _places(world, lab)
    seen = look(_wanted(lab), known)
    assert set(seen.found) == set(places(lab))
    for place in known:
        monkeypatch.setattr(type(place), "observe", lambda _: pytest.fail("observed again"))
    assert converge(_wanted(lab), known, lambda _: None, seen=seen) == []


def test_a_place_that_cannot_be_observed_hinders_no_other() -> None:
    world, lab = _built()
    known = _places(world, lab)
    broken = next(place for place in known if place.name == "node-b")
    error = ProvisioningError("node-b does not answer", fact="-", remedy="-")

    def fail() -> None:
        raise error

    broken.wait = fail
    seen = look(_wanted(lab), known)
    assert seen.failed == {"node-b": error}
    assert set(seen.found) == {OUTER, "controller", "node-a"}


Open = Callable[[Topology], Any]


@pytest.fixture
def running(tmp_path: Path) -> tuple[World, Topology, Open]:
    """A lab that runs in a simulated world, and a way to open it with another topology."""
    world, before = _built()
    workspace = Workspace(tmp_path / "state", before.name)
    workspace.create()
    workspace.topology_file.write_text(BASE)
    session.remember_numbers(workspace, Numbers.of(before))

    def opened(after: Topology) -> Any:
        return SimpleNamespace(
            topology=after,
            workspace=workspace,
            inputs=SimpleNamespace(plan_inputs=INPUTS),
            desired=_wanted(after),
            places=_places(world, after),
        )

    return world, before, opened


def _folder(opened: Any) -> dict[str, bytes]:
    folder = opened.workspace.folder
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_a_terminal_nothing_is_destroyed(
    running: tuple[World, Topology, Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, before, opened = running
    monkeypatch.setattr(consent, "attended", lambda: False)
    after = _lab(BASE.replace(WEB, WEB.replace("64", "32")), Numbers.of(before))
    lab = opened(after)
    count, files = len(world.performed), _folder(lab)
    with pytest.raises(UsageError, match="would destroy data in the lab lab") as caught:
        consent.agree(lab, yes=False)
    assert caught.value.exit_code is Exit.USAGE
    assert "volume data of red/web" in caught.value.fact
    assert "--yes" in caught.value.remedy
    assert (len(world.performed), _folder(lab)) == (count, files)
    assert set(consent.agree(lab, yes=True).found) == set(places(after))


@pytest.mark.parametrize("answer", [True, False])
def test_a_person_is_asked(
    running: tuple[World, Topology, Open], monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    _, before, opened = running
    asked: list[str] = []
    monkeypatch.setattr(consent, "attended", lambda: True)

    def agreed(question: str) -> bool:
        asked.append(question)
        return answer

    monkeypatch.setattr(consent, "agreed", agreed)
    lab = opened(_lab(BASE.replace(RED, ""), Numbers.of(before)))
    if answer:
        assert isinstance(consent.agree(lab, yes=False), Look)
    else:
        with pytest.raises(UsageError, match="was not changed"):
            consent.agree(lab, yes=False)
    assert len(asked) == 1


def test_there_is_no_question_where_nothing_is_lost(
    running: tuple[World, Topology, Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, before, opened = running
    monkeypatch.setattr(consent, "attended", lambda: pytest.fail("asked"))
    consent.agree(opened(_lab(BASE.replace("tcp/5432", "tcp/5433"), Numbers.of(before))), yes=False)
    world.resources[Key("node-a", Kind.GUEST, "red/web")]["confinement"] = (
        "none"  # `up` of the same topology repairs it
    )
    seen = consent.agree(opened(before), yes=False)
    assert set(seen.found) == {OUTER}


def test_another_image_destroys_data_although_the_topology_is_the_same(
    running: tuple[World, Topology, Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, before, opened = running
    monkeypatch.setattr(consent, "attended", lambda: False)
    world.resources[Key(OUTER, Kind.MACHINE, "node-a")]["images"] = ["an older one"]
    with pytest.raises(UsageError, match="would destroy data") as caught:
        consent.agree(opened(before), yes=False)
    assert "volume data of red/web" in caught.value.fact
    world.resources[Key(OUTER, Kind.MACHINE, "node-a")]["state"] = "crashed"  # then all of it was lost before
    consent.agree(opened(before), yes=False)


def test_a_place_that_cannot_be_observed_is_taken_for_what_its_topology_says(
    running: tuple[World, Topology, Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before, opened = running
    monkeypatch.setattr(consent, "attended", lambda: False)
    lab = opened(_lab(BASE.replace(WEB, "web: {node: node-a}"), Numbers.of(before)))

    def fail() -> None:
        raise ProvisioningError("node-a does not answer", fact="-", remedy="-")

    next(place for place in lab.places if place.name == "node-a").wait = fail
    with pytest.raises(UsageError, match="would destroy data") as caught:
        consent.agree(lab, yes=False)
    assert "volume data of red/web" in caught.value.fact


def test_what_a_running_lab_cannot_become_is_refused_even_with_yes(
    running: tuple[World, Topology, Open],
) -> None:
    world, before, opened = running
    lab = opened(_lab(BASE.replace("management: 172.20.0.", "management: 172.20.8."), Numbers.of(before)))
    count, files = len(world.performed), _folder(lab)
    with pytest.raises(UsageError, match="cannot become that while it runs") as caught:
        consent.agree(lab, yes=True)
    assert "172.20.8.1/24" in caught.value.fact
    assert "testbed down lab" in caught.value.remedy
    assert (len(world.performed), _folder(lab)) == (count, files)
