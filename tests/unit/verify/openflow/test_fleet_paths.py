"""A walk that sees nothing is no wall, whatever flows a topology has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.verify.openflow import fleet_paths, flow_table
from testbed.verify.openflow.fleet_paths import Bridge
from tests.shapes import lab_of

DHCP = "table=0, priority=9,udp,tp_src=68,tp_dst=67 actions=controller(userdata=00.00.00.02,pause)"
OTHER = "table=0, priority=9,udp,tp_src=546,tp_dst=547 actions=controller(userdata=00.00.00.05,pause)"


def _arrivals(shape: str, *rules: str, **more: str) -> list[fleet_paths.Arrival]:
    """Return what a walk finds where every node has some rules, and one more of its own; each tunnel to
    another node is port 9.
    """
    lab = lab_of(shape)
    found = {}
    for node in lab.nodes:
        own = (*rules, more.get(node.name.replace("-", "_"), ""), "table=0, priority=1 actions=drop")
        text = "\n".join(f" cookie=0x1, {rule}" for rule in own if rule)
        taps = [nic.tap for guest in lab.guests_on(node.name) for nic in guest.nics]
        tunnels = {other.name: 9 for other in lab.nodes if other != node}
        found[node.name] = Bridge(
            node.name,
            flow_table.read(text),
            {str(number): tap for number, tap in enumerate(taps, 1)},
            tunnels,
        )
    fleet: Any = SimpleNamespace(testbed=lab)
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
