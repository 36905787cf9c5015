"""Objects made by checks are removed, whatever is raised in between; leftovers are reported."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checks.support import disruptions
from testbed.errors import InstrumentError, ProvisioningError
from testbed.model.resolve import resolve
from testbed.topology_file.loader import read
from testbed.verify.attackers.ephemeral_guest import Throwaway
from testbed.verify.cleanup import Leavings
from testbed.verify.probe.tokens import Tokens
from testbed.verify.runner import leftovers

LAB = resolve(read(Path(__file__).parents[3] / "topologies/one-node.yaml").spec)
EXCEPTIONS = (
    AssertionError,
    InstrumentError("no", fact="-", remedy="-"),
    KeyboardInterrupt,
    SystemExit,
    MemoryError,
    GeneratorExit,
)


class World:
    """A node, OVN's database and libvirt; each step can raise, before or after its effect."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.steps: list[str] = []
        self.raises: dict[str, BaseException] = {}
        self.clings: set[str] = set()
        host = SimpleNamespace(must=self.must)
        self.node: Any = SimpleNamespace(topology=LAB, name="node", host=host, hypervisor=self)
        machine = SimpleNamespace(read=lambda *_, **__: "", name="node")
        central = SimpleNamespace(northbound=self)
        self.fleet: Any = SimpleNamespace(
            topology=LAB,
            machines={"node": machine},
            leavings=Leavings(),
            lab=SimpleNamespace(nodes={"node": self.node}, central=central),
        )
        self.guest = Throwaway.beside(self.fleet, LAB.guests[0], IPv4Address("10.0.0.250"))

    def step(self, name: str, do: Callable[[], object]) -> str:
        self.steps.append(name)
        error = self.raises.pop(f"before {name}", None)
        if error is not None:
            raise error
        do()
        error = self.raises.pop(f"after {name}", None)
        if error is not None:
            raise error
        return ""

    def _gone(self, *things: str) -> None:
        stuck = self.clings.intersection(things) & self.there
        self.there.difference_update(set(things) - stuck)
        if stuck:
            raise ProvisioningError("cannot remove", fact=f"{', '.join(stuck)} stays", remedy="-")

    def must(self, command: str, stdin: bytes = b"") -> str:
        if stdin:
            return self.step("unpack", lambda: self.there.add("files"))
        if command.startswith("rm "):
            return self.step("remove files", lambda: self._gone("files"))
        assert command.startswith(
            "ovs-vsctl -- --if-exists del-port tapfirst0 -- --if-exists del-port tapfirst1"
        )
        return self.step("remove interfaces", lambda: self._gone("interfaces"))

    def create(self, _: str, *, paused: bool = False) -> None:
        self.step("create", lambda: self.there.update({"domain", "interfaces"}))

    def attach(self, *_: str) -> None:
        self.step("attach", lambda: self.there.add("interfaces"))

    def reset(self, _: str) -> None:
        self.step("reset", lambda: None)

    def destroy(self, _: str) -> None:
        self.step(
            "destroy", lambda: self._gone("domain")
        )  # on a damaged lab, the interface stays in the switch

    def set_port(self, *_: object) -> None:
        self.step("bind", lambda: self.there.add("port"))

    def sync(self) -> None:
        self.step("sync", lambda: None)

    def delete_port(self, _: str) -> None:
        self.step("remove port", lambda: self._gone("port"))

    def attack(self) -> None:
        """Do what NET-13 does with a guest that attacks from its first frame."""
        with self.guest.present(self.fleet):
            self.guest.start([])
            disruptions._bind(self.fleet, self.guest)
            self.guest.reset_attacking()
            self.guest.plug_attacking()


MAKING = ("unpack", "create", "bind", "sync", "reset", "attach")
REMOVING = ("destroy", "remove port", "remove interfaces", "remove files")


def test_nothing_is_left_of_a_guest_that_attacked() -> None:
    world = World()
    world.attack()
    assert set(MAKING) <= set(world.steps)
    assert world.there == set()
    assert world.fleet.leavings.clear() == []


@pytest.mark.parametrize("error", EXCEPTIONS, ids=repr)
@pytest.mark.parametrize("when", [f"{side} {name}" for name in MAKING for side in ("before", "after")])
def test_nothing_is_left_whatever_breaks_off(when: str, error: Any) -> None:
    """Each object is recorded before it is made, and the original error is raised."""
    world = World()
    world.raises[when] = error if isinstance(error, BaseException) else error()
    with pytest.raises(type(world.raises[when])):
        world.attack()
    assert world.there == set()
    assert world.fleet.leavings.clear() == []


@pytest.mark.parametrize("stuck", ["domain", "port", "interfaces", "files"])
def test_what_cannot_be_taken_away_keeps_nothing_else_and_is_told(stuck: str) -> None:
    """A check's own verdict stays; the end of the run tries again, and reports."""
    world = World()
    world.clings = {stuck}
    world.attack()
    assert world.there == {stuck}
    (told,) = world.fleet.leavings.clear()
    assert "is left behind" in told
    assert f"{stuck} stays" in told
    world.clings = set()
    assert world.fleet.leavings.clear() == []
    assert world.there == set()


@pytest.mark.parametrize("name", REMOVING)
@pytest.mark.parametrize("side", ["before", "after"])
def test_an_interrupt_while_it_is_taken_away_leaves_it_noted(name: str, side: str) -> None:
    world = World()
    world.raises[f"{side} {name}"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.attack()
    assert world.fleet.leavings.clear() == []
    assert world.there == set()


def test_a_removal_that_fails_hides_no_exception_of_the_check() -> None:
    leavings, tries = Leavings(), [RuntimeError("a bug"), ValueError("another"), None]

    def remove() -> None:
        error = tries.pop(0)
        if error:
            raise error

    def check() -> None:
        with leavings.made("a thing", remove):
            raise AssertionError("the wall is open")

    with pytest.raises(AssertionError, match="the wall is open"):
        check()
    assert leavings.clear() == ["a thing is left behind: ValueError: another"]
    assert leavings.clear() == []
    assert leavings.clear() == []
    assert not tries


def test_rules_that_were_taken_away_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow's rules are given back whatever happens; if the database refuses, the run says so."""
    changes: list[tuple[Any, Any]] = []
    refusals = [False, True, True]

    def change(_: str, gone: Any, new: Any) -> None:
        changes.append((gone, new))
        if refusals.pop(0):
            raise ProvisioningError("no", fact="the database is gone", remedy="-")

    northbound = SimpleNamespace(change_rules=change)
    fleet: Any = SimpleNamespace(
        topology=LAB, leavings=Leavings(), lab=SimpleNamespace(central=SimpleNamespace(northbound=northbound))
    )
    instrument = SimpleNamespace(ask=lambda _: {"answers": [1, 0], "turned": True})
    monkeypatch.setattr(disruptions, "in_guest", lambda *_: instrument)
    monkeypatch.setattr(disruptions, "_require_used", lambda *_: None)
    monkeypatch.setattr(disruptions, "_WHILE", 0)
    disruptions._change_policy(fleet, Tokens("tb-", b"key"))
    assert [bool(gone) for gone, _ in changes] == [True, False]
    assert changes[1][1] == changes[0][0]
    (told,) = fleet.leavings.clear()
    assert (
        "red/app without the rules of its flow to tcp/5432 is left behind: ProvisioningError: the "
        "database is gone"
    ) in told


class _Place:
    """A machine, a guest or a library that gives fixed answers, or raises."""

    def __init__(self, *shown: Any) -> None:
        self.shown = list(shown)
        self.name = "node"  # both machines of these tests are looked at as one

    def __call__(self, *_: object) -> Any:
        found = self.shown.pop(0) if len(self.shown) > 1 else self.shown[0]
        if isinstance(found, Exception):
            raise found
        return found

    read = __call__


def _fleet(tmp_path: Path, **places: Any) -> Any:
    machine = places.get("machine", _Place("the interface lo"))
    northbound = SimpleNamespace(
        switches=places.get("switches", _Place({})), ports=places.get("ports", _Place({}))
    )
    node = SimpleNamespace(hypervisor=SimpleNamespace(domains=places.get("domains", _Place([]))))
    outer = SimpleNamespace(fabric=SimpleNamespace(links=places.get("links", _Place([]))))
    lab = SimpleNamespace(nodes={"node": node}, central=SimpleNamespace(northbound=northbound), outer=outer,
                          workspace=SimpleNamespace(folder=tmp_path))  # fmt: skip
    files = places.get("files", _Place(None))
    machines = {"node": machine, "controller": places.get("controller", _Place("active"))}
    return SimpleNamespace(
        topology=LAB,
        machines=machines,
        lab=lab,
        instruments={},
        leavings=Leavings(),
        files_of=lambda _: files,
    )


def _link(name: str, resource: str) -> Any:
    return SimpleNamespace(name=name, resource=resource)


@pytest.mark.parametrize(
    ("place", "before", "after", "told"),
    [
        (
            "machine",
            "the interface lo",
            "the interface lo\nthe interface tapfirst0 in the switch",
            "tapfirst0 in the switch is left",
        ),
        ("machine", "", "the file /run/testbed-probe", "the file /run/testbed-probe is left behind at node"),
        (
            "domains",
            [],
            [SimpleNamespace(name="red.first.frame")],
            "the guest red.first.frame is left behind at libvirt of node",
        ),
        (
            "ports",
            {},
            {"red/first.frame/app": {"port": "p"}},
            r"the port red/first.frame/app \(p\) is left behind",
        ),
        ("switches", {}, {"red/app": {}}, "the switch red/app is left behind"),
        (
            "links",
            [_link("tap", "tap=x")],
            [_link("tap", "tap=x"), _link("rogue-fabric", "rogue=fabric")],
            "rogue-fabric is left behind",
        ),
    ],
)
def test_what_was_not_there_before_is_named(
    tmp_path: Path, place: str, before: Any, after: Any, told: str
) -> None:
    fleet = _fleet(tmp_path, **{place: _Place(before, after)})
    (line,) = leftovers.left_behind(fleet, leftovers.look(fleet))
    assert re.search(told, line)
    same = _fleet(tmp_path, **{place: _Place(after)})
    assert leftovers.left_behind(same, leftovers.look(same)) == [], "what was there before was left by nobody"


def test_a_probe_that_does_not_end_and_keys_that_stay_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "_PAUSE", 0)
    fleet = _fleet(tmp_path, files=_Place(b"12", b"12", None))
    before = leftovers.look(fleet)
    fleet.instruments["red/web"] = None
    assert leftovers.left_behind(fleet, before) == [], "it has ended in time"
    fleet = _fleet(tmp_path, files=_Place(b"12"))
    fleet.instruments["red/web"] = None
    (tmp_path / "strangers").mkdir()
    lines = leftovers.left_behind(fleet, before)
    assert [line.partition(" is left behind at ")[2] for line in lines] == ["the outer machine", "red/web"]


def test_a_controller_that_is_not_there_is_not_waited_for(tmp_path: Path) -> None:
    """Its database is not connected to: that would wait for as long as a slow machine may take."""
    asked: list[object] = []
    silence = InstrumentError("cannot log in to controller", fact="no route", remedy="-")
    fleet = _fleet(tmp_path, controller=_Place(silence), switches=asked.append, ports=asked.append)
    assert "no route" in leftovers.look(fleet)["OVN's database"]
    assert not asked


@pytest.mark.parametrize(
    "error", [InstrumentError("no", fact="silence", remedy="-"), OSError("netlink"), RuntimeError("a bug")]
)
@pytest.mark.parametrize("place", ["machine", "domains", "ports", "links"])
def test_what_cannot_be_looked_at_is_told_and_stops_nothing(
    tmp_path: Path, place: str, error: Exception
) -> None:
    fleet = _fleet(tmp_path, **{place: _Place(error)})
    removed: list[str] = []
    fleet.leavings._things.append(SimpleNamespace(what="x", remove=partial(removed.append, "x")))
    (line,) = leftovers.left_behind(fleet, leftovers.look(_fleet(tmp_path)))
    assert "is not known" in line
    assert removed == ["x"]
