"""What must hold for any valid topology."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings

from testbed.engine.apply import converge
from testbed.engine.observe import plan
from testbed.model.reachability import LINK, RESOLUTION, ReachMatrix
from testbed.model.resolve import resolve
from testbed.model.topology import Testbed
from testbed.plan.host_config.nd_guard import allowed
from testbed.plan.ovn_acls import acls
from testbed.plan.resources import desired, places
from testbed.topology_file.loader import load
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
    macs = [nic.mac for guest in lab.guests for nic in guest.nics] + [
        nic.mac for machine in lab.machines for nic in machine.nics
    ]
    assert len(set(macs)) == len(macs)
    keys = [network.key for network in lab.switches()]
    assert len(set(keys)) == len(keys)
    for node in lab.nodes:
        uids = [guest.uid for guest in lab.guests_on(node.name)]
        assert len(set(uids)) == len(uids)
        assert 0 not in uids
    for tenant in lab.tenants:
        for network in tenant.networks:
            found = [
                nic.address for guest in tenant.guests for nic in guest.nics if nic.network == network.name
            ]
            assert len(set(found)) == len(found)
            assert all(address in network.network and address != network.server for address in found)
            six = [
                nic.address6 for guest in tenant.guests for nic in guest.nics if nic.network == network.name
            ]
            if network.network6 is None:
                assert set(six) <= {None}
            else:
                assert len(set(six)) == len(six)
                assert all(
                    address in network.network6 and address != network.server6 for address in six if address
                )
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
    reached = {(c.source.label, c.target.label, c.protocol, c.port) for c in matrix.allowed()}
    assert {(target, source, protocol, port) for source, target, protocol, port in reached} == reached
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
    ports = {
        (guest.label, f"{guest.tenant}/{nic.network}"): nic.port for guest in lab.guests for nic in guest.nics
    }
    for cell in matrix.allowed():
        if cell.protocol not in RESOLUTION:
            six = cell.protocol.endswith("6")
            name = cell.protocol.removesuffix("6")
            service = {"icmp": f"icmp{6 if six else 4}.type == {128 if six else 8}"}.get(
                name, f"{name}.dst == {cell.port}"
            )
            port = ports[cell.target.guest, cell.target.network]
            ends = (
                f"ip6.src == {cell.source.address6} && ip6.dst == {cell.target.address6}"
                if six
                else f"ip4.src == {cell.source.address}"
            )
            expected.add((cell.target.network, f'outport == "{port}" && {ends} && {service}'))
    assert accepted == expected


@MANY
@given(topologies())
def test_the_guard_and_the_matrix_tell_the_same(data: dict[str, Any]) -> None:
    lab = _lab(data)
    taps = {nic.mac: nic.tap for guest in lab.guests for nic in guest.nics}
    expected = {
        (taps[cell.source.mac], str(cell.target.address6))
        for cell in ReachMatrix.of(lab).allowed()
        if cell.protocol == "nd"
    }
    assert {pair for node in lab.nodes for pair in allowed(lab, node)} == expected


@MANY
@given(topologies())
def test_only_declared_addresses_are_ever_allowed(data: dict[str, Any]) -> None:
    cells = ReachMatrix.of(_lab(data)).cells
    never = [
        cell for cell in cells if LINK in cell.protocol or cell.protocol in ("raw", "broadcast", "multicast6")
    ]
    assert not [str(cell) for cell in never if cell.allowed]
    six = {"nd", "icmp6", "tcp6", "udp6"}
    assert all(cell.source.address6 and cell.target.address6 for cell in cells if cell.protocol in six)
