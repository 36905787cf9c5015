"""A walk that sees nothing is no wall, whatever flows a topology has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.verify.openflow import fleet_paths, flow_table
from testbed.verify.openflow.fleet_paths import Bridge
from testbed.verify.openflow.header_space import cube
from tests.shapes import lab_of

DHCP = "table=0, priority=9,udp,tp_src=68,tp_dst=67 actions=controller(userdata=00.00.00.02,pause)"
OTHER = "table=0, priority=9,udp,tp_src=546,tp_dst=547 actions=controller(userdata=00.00.00.05,pause)"


def _arrivals(shape: str, *rules: str, **more: str) -> list[fleet_paths.Arrival]:
    """Return the result of a walk in which every node has some rules, and one of its own.

    Each tunnel to another node is port 9.
    """
    topology = lab_of(shape)
    found = {}
    for node in topology.nodes:
        own = (*rules, more.get(node.name.replace("-", "_"), ""), "table=0, priority=1 actions=drop")
        text = "\n".join(f" cookie=0x1, {rule}" for rule in own if rule)
        taps = [nic.tap for guest in topology.guests_on(node.name) for nic in guest.nics]
        tunnels = {other.name: 9 for other in topology.nodes if other != node}
        found[node.name] = Bridge(
            node.name,
            flow_table.read(text),
            {str(number): tap for number, tap in enumerate(taps, 1)},
            tunnels,
        )
    fleet: Any = SimpleNamespace(topology=topology)
    return fleet_paths.arrivals(fleet, found)


def test_a_program_must_be_given_each_question_to_dhcp() -> None:
    assert _arrivals("no flow", DHCP) == []


@pytest.mark.parametrize("rules", [(), (OTHER,), (DHCP.replace("priority=9,", "priority=9,in_port=1,"),)])
def test_a_walk_that_finds_no_way_to_dhcp_is_blind(rules: tuple[str, ...]) -> None:
    with pytest.raises(InstrumentError, match="does not find how DHCP hears"):
        _arrivals("no flow", *rules)


def test_a_shortcut_through_a_tunnel_is_found() -> None:
    """By the key that no network has, from the attacker's node to the victim's."""
    sent = (
        "table=0, priority=200,in_port=1,dl_dst=0a:00:00:00:00:01 actions=set_field:0xb4eac4->tun_id,output:9"
    )
    received = "table=0, priority=200,tun_id=0xb4eac4,in_port=9 actions=output:1"
    (found,) = _arrivals("one guest on each node", DHCP, node_a=sent, node_b=received)
    assert not isinstance(found.target, str)
    assert (found.source.guest, found.target.guest) == ("red/web", "blue/web")
    assert _arrivals("one guest on each node", DHCP, node_a=sent) == []


@pytest.mark.parametrize(
    "table",
    [
        "no json",
        '{"headings": ["name"], "data": [["br-int"]]}',
        '{"headings": ["name", "ofport", "options"], "data": [["a", "no number", ["map", []]]]}',
        '{"headings": ["name", "ofport", "options"], "data": [["a", 1, 7]]}',
    ],
)
def test_interfaces_that_cannot_be_read_are_an_error(table: str) -> None:
    machine: Any = SimpleNamespace(name="node", read=lambda _: f"\n{table}")
    with pytest.raises(InstrumentError, match="interfaces of node cannot be read"):
        fleet_paths._bridge(machine, {})


@pytest.mark.parametrize(
    ("fields", "service"),
    [
        ({}, ("anything", None)),
        ({"dl_type": 0x0806}, ("arp", None)),
        ({"dl_type": 0x0800}, ("anything", None)),
        ({"dl_type": 0x88CC}, ("anything", None)),
        ({"dl_type": 0x0800, "nw_proto": 1}, ("icmp", None)),
        ({"dl_type": 0x0800, "nw_proto": 6}, ("anything", None)),
        ({"dl_type": 0x0800, "nw_proto": 6, "tp_dst": 22}, ("tcp", 22)),
        ({"dl_type": 0x86DD, "nw_proto": 58, "icmp_type": 135}, ("guarded", None)),
        ({"dl_type": 0x86DD, "nw_proto": 58, "icmp_type": 128}, ("icmp6", None)),
    ],
)
def test_packets_are_named_by_the_service_that_they_are_for(
    fields: dict[str, int], service: tuple[str, int | None]
) -> None:
    source: Any = SimpleNamespace(label="red/web")
    assert fleet_paths.Arrival(source, "-", cube(**fields), "-").service == service
