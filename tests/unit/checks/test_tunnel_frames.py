"""The frames of a rogue host on the fabric, and the questions of guests to the fleet."""

from __future__ import annotations

import json
import re
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from checks.support.attacker_positions import positions
from checks.support.tunnel_frames import injections, inners
from checks.test_guest_services import _beyond, _questions
from testbed.model.exposure import machines, rogue
from testbed.model.resolve import resolve
from testbed.model.topology import Plane
from testbed.payload.probe.frame_parser import find_token
from testbed.payload.probe.sender import MAX_PROBES
from testbed.topology_file.loader import read
from testbed.verify.probe.tokens import Tokens
from testbed.verify.witnesses.dhcp_answers import Offer

TOPOLOGIES = sorted((Path(__file__).parents[3] / "topologies").glob("*.yaml"))
TOKENS = Tokens("tb-0123abcd-", b"key")


def _fleet(name: str) -> Any:
    topology = resolve(read(next(path for path in TOPOLOGIES if path.stem == name)).spec)
    numbers = count(1)
    rows = [[nic.port, next(numbers)] for guest in topology.guests for nic in guest.nics]
    controller = SimpleNamespace(
        read=lambda _: json.dumps({"headings": ["logical_port", "tunnel_key"], "data": rows})
    )
    return SimpleNamespace(topology=topology, machines={topology.controller.name: controller})


def test_every_network_is_attacked_on_every_node_with_its_key_and_ports() -> None:
    """Where a flow leads to a node, its packets are injected.

    The option names OVN's ports (ovn-architecture(7)).
    """
    fleet = _fleet("two-tenants")
    found = list(inners(fleet))
    keys = {network.label: network.key for network in fleet.topology.switches()}
    assert {item.key for item in found} == set(keys.values())
    assert sum(item.flows for item in found) == 2
    for item in found:
        carried = bytes(item.geneve(b"x"))
        option = bytes.fromhex("0102") + b"\x80\x01" + b"".join(port.to_bytes(2) for port in item.ports)
        assert option in carried
        assert carried[4:7] == item.key.to_bytes(3)


def test_a_node_without_guests_is_attacked_as_well_and_a_flow_inside_a_node_is_a_control() -> None:
    """A packet that a node sends through its own tunnel arrives, wherever the flow's source is."""
    fleet = _fleet("separated")
    found = list(inners(fleet))
    assert [(item.node, item.target.guest, item.flows) for item in found] == [
        ("node-a", "red/web", False), ("node-b", "red/db", True), ("node-c", "blue/web", False),
    ]  # fmt: skip
    stranger = rogue(fleet.topology.lab_network(Plane.FABRIC))
    assert {item.node for item in injections(fleet, stranger, found, TOKENS)} == {
        "node-a",
        "node-b",
        "node-c",
    }


def test_flows_of_datagrams_and_echo_requests_are_injected() -> None:
    """In a lab without a flow of TCP, packets of the declared protocols are injected.

    Only the tunnel's wall stops those.
    """
    found = [item.frame(b"x") for item in inners(_fleet("udp-and-icmp")) if item.flows]
    assert {kind for kind in (UDP, ICMP) for frame in found if kind in frame} == {UDP, ICMP}


def test_a_stranger_comes_as_itself_as_a_peer_and_in_pieces() -> None:
    """Each disguise of both kinds of tunnels is sent to the receiver's node.

    Fragments carry the token together.
    """
    fleet = _fleet("two-tenants")
    stranger = rogue(fleet.topology.lab_network(Plane.FABRIC))
    found = list(injections(fleet, stranger, list(inners(fleet)), TOKENS))
    assert len({item.mark for item in found}) == len(found)
    addresses = {
        site.name: str(site.address) for site in machines(fleet.topology) if site.plane is Plane.FABRIC
    }
    for item in found:
        first = Ether(item.packets[0])
        assert (first.src, first[IP].src, first[IP].dst) == (stranger.mac, item.source, addresses[item.node])
        assert item.source in {str(stranger.address), *addresses.values()} - {addresses[item.node]}
        assert first[UDP].dport == item.port
        payload = b"".join(octets[34:] for octets in item.packets)
        assert find_token(payload, TOKENS.prefix) == TOKENS.of(item.mark)
        assert (len(item.packets) > 1) == ("fragments" in item.meaning)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda path: path.stem)
def test_questions_of_guests_are_bounded_and_told_apart(topology: Path) -> None:
    """Each question has a mark of its own, and IPv6 is used where a guest has it.

    A guest's script stays within the limits of its sender.
    """
    fleet = _fleet(topology.stem)
    for position in positions(fleet):
        asked = list(_questions(position, [("tcp", 22), ("udp", 53)], ["web", "db.blue"]))
        assert len({probe.mark for probe in asked}) == len(asked) < MAX_PROBES
        assert all(re.fullmatch("[a-z0-9]+", probe.mark) for probe in asked)
        assert all(
            probe.frame is not None and Ether(probe.frame(b"tb-0123abcd-x.")).src == position.sender.mac
            for probe in asked
        )
        assert any(IPv6 in Ether(probe.frame(b"")) for probe in asked if probe.frame) == (
            position.sender.address6 is not None
        )


def test_only_an_address_by_dhcp_is_offered() -> None:
    """Another sender or service, an extra option, and a foreign server are beyond the offer."""
    position = positions(_fleet("one-node"))[0]
    server = position.server.address
    fine = ((1, bytes(4)), (26, bytes(2)), (51, bytes(4)), (53, b"\2"), (54, server.packed))
    assert list(_beyond(position, [Offer(str(server), "DHCP", "05000000", fine)])) == []
    for odd in (
        Offer("10.9.9.9", "DHCP", "", fine),
        Offer(str(server), "TCP port 80", "", ()),
        Offer(str(server), "DHCP", "", (*fine, (3, server.packed))),
        Offer(str(server), "DHCP", "", ((54, bytes(4)),)),
        Offer(str(server), "DHCP", "", ((53, b"\6"),)),
    ):
        assert len(list(_beyond(position, [odd]))) == 1
    lan = bytes((0, 3, 0, 1)) + bytes.fromhex(position.server.mac.replace(":", ""))
    fine6 = ((1, bytes(10)), (2, lan), (3, bytes(40)))
    own = str(position.server.link_local)
    assert list(_beyond(position, [Offer(own, "DHCPv6", "050000", fine6)])) == []
    for odd in (
        Offer("fe80::bad", "DHCPv6", "", fine6),
        Offer(own, "DHCPv6", "", (*fine6, (23, bytes(16)))),
        Offer(own, "DHCPv6", "", ((2, bytes(10)),)),
        Offer(own, "ICMPv6 type 86", "", ()),
    ):
        assert len(list(_beyond(position, [odd]))) == 1
