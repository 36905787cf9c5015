"""The guest that comes and goes: its identity, and the actions that make and remove it (RES-02)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import ProvisioningError
from testbed.model.topology import FIRST_WORKER_UID
from testbed.plan.diff import Action, Verb
from testbed.plan.resources import Kind
from testbed.verify.attackers.departing_guest import Departing
from tests.shapes import lab_of
from tests.sim.simulator import INPUTS

LIMITS = (Kind.LIMIT, Kind.COMPUTE)  # they end with their guest


class Place:
    """Records its actions."""

    def __init__(self, name: str, log: list[Action]) -> None:
        self.name, self._log = name, log
        self.topologies: list[Any] = []

    def in_topology(self, topology: Any) -> Place:
        self.topologies.append(topology)
        return self

    def perform(self, action: Action) -> None:
        self._log.append(action)

    def close_hypervisor(self) -> None:
        self._log.append(None)  # type: ignore[arg-type]

    close_northbound = close_hypervisor


def departing() -> tuple[Departing, list[Any], Any]:
    topology = lab_of("two-tenants")
    log: list[Any] = []
    lab = SimpleNamespace(
        central=Place("controller", log),
        nodes={node.name: Place(node.name, log) for node in topology.nodes},
        inputs=SimpleNamespace(plan_inputs=INPUTS),
    )
    machines = {machine.name: SimpleNamespace(name=machine.name) for machine in topology.machines}
    fleet: Any = SimpleNamespace(topology=topology, lab=lab, machines=machines)
    return Departing(fleet, "node-a"), log, topology


def test_it_shares_nothing_with_a_guest_of_the_lab() -> None:
    made, _, topology = departing()
    guests = topology.guests_on("node-a")
    assert made.guest.uid not in {guest.uid for guest in guests}
    assert made.guest.worker == f"worker{made.guest.uid - FIRST_WORKER_UID:02d}"
    own = made.guest.nics[0]
    for guest in topology.guests:
        assert not {own.mac, own.port, own.tap} & {guest.nics[0].mac, guest.nics[0].port, guest.nics[0].tap}
        assert not {*made.guest.disks} & {*guest.disks}
        assert guest.tenant != made.guest.tenant or own.address != guest.nics[0].address
    assert len(own.tap) <= 15


def test_what_is_created_is_removed() -> None:
    made, log, _ = departing()
    made.arrive()
    created = {action.key for action in log if action and action.verb is Verb.CREATE}
    assert {key.kind for key in created} == {Kind.PORT, Kind.VOLUME, Kind.GUEST, *LIMITS}
    assert log[-2:] == [None, None]
    log.clear()
    made.leave()
    removed = {action.key for action in log if action and action.verb is Verb.DELETE}
    assert removed == {key for key in created if key.kind not in LIMITS}
    order = [action.key.kind for action in log if action and action.verb is Verb.DELETE]
    assert order.index(Kind.GUEST) < order.index(Kind.VOLUME)


def test_a_volume_grows_and_its_guest_stays() -> None:
    made, log, _ = departing()
    made.arrive()
    before = made.guest
    log.clear()
    made.grow(2 * before.volumes[0].size)
    assert [(action.verb, action.key.kind, action.changes) for action in log if action] == [
        (Verb.UPDATE, Kind.VOLUME, ("size",))
    ] * len(before.volumes)
    log.clear()
    made.leave()
    assert {action.key.name for action in log if action and action.key.kind is Kind.VOLUME} == {
        f"{made.guest.tenant}/{path.rpartition('/')[2]}" for path in before.disks
    }


def test_a_guest_leaves_once() -> None:
    made, log, _ = departing()
    made.leave()
    assert log == []
    made.arrive()
    made.leave()
    log.clear()
    made.leave()
    assert log == []


def test_connections_are_closed_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made, log, _ = departing()

    def fail(*_: object) -> None:
        raise ProvisioningError("a port cannot be made", fact="refused", remedy="look")

    monkeypatch.setattr(Place, "perform", fail)
    with pytest.raises(ProvisioningError):
        made.arrive()
    assert log == [None, None]
