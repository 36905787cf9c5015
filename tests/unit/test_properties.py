"""What must hold for any valid topology."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings

from testbed.apply import converge
from testbed.model.policy import ReachMatrix
from testbed.model.resolve import resolve
from testbed.model.testbed import Testbed
from testbed.observe import plan
from testbed.plan.acls import acls
from testbed.plan.resources import desired, places
from testbed.spec.load import load
from tests.sim.simulator import INPUTS, World
from tests.strategies import topologies

MANY = settings(max_examples=60, deadline=None)


def _lab(data: dict[str, Any]) -> Testbed:
    return resolve(load(json.dumps(data), "random").spec)


@MANY
@given(topologies())
def test_resolution_is_deterministic_and_collides_nowhere(data: dict[str, Any]) -> None:
    lab = _lab(data)
    assert lab == _lab(data)
    macs = [nic.mac for guest in lab.guests for nic in guest.nics] + [nic.mac for machine in lab.machines for nic in machine.nics]
    assert len(set(macs)) == len(macs)
    keys = [network.key for network in lab.switches()]
    assert len(set(keys)) == len(keys)
    for node in lab.nodes:
        uids = [guest.uid for guest in lab.guests_on(node.name)]
        assert len(set(uids)) == len(uids)
        assert 0 not in uids
    for tenant in lab.tenants:
        for network in tenant.networks:
            found = [nic.address for guest in tenant.guests for nic in guest.nics if nic.network == network.name]
            assert len(set(found)) == len(found)
            assert all(address in network.network and address != network.server for address in found)
    names = [nic.tap for guest in lab.guests for nic in guest.nics]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 15 for name in names)


@MANY
@given(topologies())
def test_the_plan_after_apply_is_empty(data: dict[str, Any]) -> None:
    lab, world = _lab(data), World()
    wanted, found = desired(lab, INPUTS), [world.place(name) for name in places(lab)]
    converge(wanted, found, lambda _: None)
    assert not plan(wanted, found)
    assert set(world.resources) == set(wanted)


@MANY
@given(topologies())
def test_the_matrix_is_symmetric_where_the_policy_is_and_denies_between_tenants(data: dict[str, Any]) -> None:
    for tenant in data["tenants"].values():
        tenant["allow"] += [
            line for line in (_reverse(item) for item in tenant["allow"]) if line not in tenant["allow"]
        ]
    matrix = ReachMatrix.of(_lab(data))
    allowed = {(c.source.label, c.target.label, c.protocol, c.port) for c in matrix.allowed()}
    assert {(target, source, protocol, port) for source, target, protocol, port in allowed} == allowed
    assert all(cell.source.tenant == cell.target.tenant for cell in matrix.allowed())
    pairs = {(cell.source.label, cell.target.label) for cell in matrix.cells}
    assert {(target, source) for source, target in pairs} == pairs


def _reverse(line: str) -> str:
    source, _, rest = line.partition(" -> ")
    target, _, service = rest.partition(" ")
    return f"{target} -> {source} {service}"


@MANY
@given(topologies())
def test_rules_and_matrix_tell_the_same(data: dict[str, Any]) -> None:
    lab = _lab(data)
    matrix = ReachMatrix.of(lab)
    accepted = {
        (f"{tenant.name}/{network.name}", rule.match)
        for tenant in lab.tenants
        for network in tenant.networks
        for rule in acls(tenant, network)
        if rule.direction == "to-lport" and rule.action == "allow-related"
    }
    expected = set()
    ports = {(guest.label, f"{guest.tenant}/{nic.network}"): nic.port for guest in lab.guests for nic in guest.nics}
    for cell in matrix.allowed():
        if cell.protocol != "arp":
            service = "icmp4" if cell.protocol == "icmp" else f"{cell.protocol}.dst == {cell.port}"
            port = ports[cell.target.guest, cell.target.network]
            expected.add((cell.target.network, f'outport == "{port}" && ip4.src == {cell.source.address} && {service}'))
    assert accepted == expected
