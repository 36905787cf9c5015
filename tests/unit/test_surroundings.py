"""What machines offer to whom: the oracle, and how answers are read."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DUID_LL, DHCP6_Advertise, DHCP6OptDNSServers, DHCP6OptServerId
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6
from scapy.layers.l2 import ARP, Ether

from testbed.model.policy import ReachMatrix
from testbed.model.resolve import resolve
from testbed.model.surroundings import Contact, Plane, Site, Stand, contacts, machines, outer, rogue
from testbed.model.testbed import Testbed
from testbed.plan.identity import address_sets
from testbed.spec.load import read
from testbed.verify.ledger import Ledger, parse_ledger
from testbed.verify.offers import read_offer
from testbed.verify.surroundings import Reading, question
from testbed.verify.surroundings import read as read_reading

TOPOLOGIES = sorted((Path(__file__).parents[2] / "topologies").glob("*.yaml"))


def _lab(name: str = "two-tenants") -> Testbed:
    return resolve(read(next(path for path in TOPOLOGIES if path.stem == name)).spec)


def test_exactly_these_services_are_offered() -> None:
    """Whatever is not in this list is denied, from everybody; ARP apart."""
    found = {str(cell) for cell in contacts(_lab()) if cell.allowed and cell.protocol != "arp"}
    nodes = ("node-a", "node-b")
    assert found == {
        *(f"outer@management -> {name}@management tcp/22" for name in ("controller", *nodes)),
        "outer@management -> controller@management tcp/6641",
        *(f"{name}@management -> controller@management tcp/6642" for name in nodes),
        *(f"{one}@fabric -> {two}@fabric udp/{port}" for one, two in (nodes, nodes[::-1]) for port in (500, 6081)),
    }


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda path: path.stem)
def test_a_rogue_host_is_offered_nothing_but_arp(topology: Path) -> None:
    """It asks every machine on its network for everything, by every address that the machine has."""
    lab = resolve(read(topology).spec)
    cells = [cell for cell in contacts(lab) if cell.source.stand is Stand.ROGUE]
    assert {cell.protocol for cell in cells if cell.allowed} == {"arp"}
    assert all(cell.address == cell.target.address for cell in cells if cell.allowed)
    for node in lab.nodes:
        for network in lab.networks:
            asked = {cell.address for cell in cells if cell.target.name == node.name and cell.source.plane is network.plane}
            assert asked == {nic.address for nic in node.nics}


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda path: path.stem)
def test_the_firewall_s_addresses_say_the_same_as_the_oracle(topology: Path) -> None:
    """Two derivations from one topology: who may use a service is who stands in the set of the rule for it."""
    lab = resolve(read(topology).spec)
    ports = {"administrators": 22, "tunnel_peers": 6081, "northbound_clients": 6641, "southbound_clients": 6642}
    cells = [cell for cell in contacts(lab) if cell.allowed]
    for machine in lab.machines:
        for name, addresses in address_sets(lab, machine).items():
            allowed = {str(cell.source.address) for cell in cells if cell.target.name == machine.name and cell.port == ports[name]}
            assert allowed == set(addresses), (machine.name, name)


def test_what_a_machine_listens_on_becomes_a_question() -> None:
    """A socket that nobody declared is denied to all."""
    lab = _lab()
    cells = [cell for cell in contacts(lab, {"node-a": frozenset({("tcp", 16509)})}) if cell.port == 16509]
    assert cells
    assert not any(cell.allowed for cell in cells)
    assert {cell.target.name for cell in cells} == {"node-a"}
    assert {cell.protocol for cell in cells} == {"tcp", "tcp6"}


def test_strangers_have_addresses_that_nobody_else_has() -> None:
    """A rogue host collides with no machine, and the outer machine has no end but on the management network."""
    lab = _lab()
    taken = {site.address for site in machines(lab)} | {site.address for site in outer(lab)}
    strangers = [rogue(network) for network in lab.networks]
    assert not taken & {site.address for site in strangers}
    assert len({site.mac for site in strangers}) == len(strangers)
    assert [site.plane for site in outer(lab)] == [Plane.MANAGEMENT]


def test_rows_are_those_of_the_matrix() -> None:
    """matrix.json has one kind of row."""
    rows = [cell.as_row() for cell in contacts(_lab())]
    assert {frozenset(row) for row in rows} == {frozenset(ReachMatrix.of(_lab()).cells[0].as_row())}
    assert len({(row["source"], row["target"], row["protocol"], row["port"]) for row in rows}) == len(rows)


_SOURCE = Site("rogue", Stand.ROGUE, Plane.FABRIC, "0e:72:c6:12:01:00", IPv4Address("198.18.1.2"))
_TARGET = Site("node-a", Stand.NODE, Plane.FABRIC, "0a:00:00:00:00:01", IPv4Address("198.18.1.11"))


def _reading(protocol: str, state: str, refused: float | None = None, passed: int = 0) -> Reading:
    cell = Contact(_SOURCE, _TARGET, _TARGET.address, protocol, 6081, allowed=False, reason="-")
    told = {} if refused is None else {("198.18.1.2", "198.18.1.11", protocol, 6081): refused}
    return read_reading(cell, state, Ledger({}, {6081: 4}), Ledger(told, {6081: 4 + passed}), 10.0)


def test_an_answer_or_a_rule_that_lets_pass_is_a_reach() -> None:
    """TCP and datagrams that answer or are refused by the stack itself were reached; so was a datagram that a rule let pass."""
    assert all(_reading(protocol, state).reached for protocol in ("tcp", "udp") for state in ("open", "refused"))
    assert _reading("udp", "silent", passed=1).reached
    assert not _reading("tcp", "silent", passed=1).reached
    assert not _reading("udp", "silent", refused=3.0, passed=1).reached


def test_silence_that_no_firewall_vouches_for_is_unclear() -> None:
    """What was refused before the question says nothing about the question."""
    assert not _reading("tcp", "silent", refused=3.0).unclear
    assert _reading("tcp", "silent").unclear
    assert _reading("udp", "silent", refused=300.0).unclear


def test_the_firewall_s_own_words_are_read() -> None:
    """nft's JSON: refused connections with what is left of ten minutes, and counters of rules for a port."""
    port = {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 6081}}
    address = {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@tunnel_peers"}}
    element = {"elem": {"val": {"concat": ["198.18.0.2", "198.18.0.10", "tcp", 22]}, "timeout": 600, "expires": 590}}
    told = parse_ledger({"nftables": [
        {"metainfo": {"version": "1.1.3"}}, {"set": {"name": "administrators", "elem": ["198.18.0.1"]}},
        {"set": {"name": "refused", "elem": [element]}},
        {"rule": {"expr": [address, port, {"counter": {"packets": 7, "bytes": 99}}, {"accept": None}]}},
        {"rule": {"expr": [{"counter": {"packets": 1, "bytes": 9}}, {"drop": None}]}},
    ]})  # fmt: skip
    assert told.passed == {6081: 7}
    assert told.refuses("198.18.0.2", "198.18.0.10", "tcp", 22, 9.0)
    assert not told.refuses("198.18.0.2", "198.18.0.10", "tcp", 22, 5.0)
    with pytest.raises(KeyError):
        parse_ledger({"nftables": []})


def test_questions_expect_answers_and_not_themselves() -> None:
    """A question that its own sender sees on the wire is no answer."""
    for protocol, port in (("arp", None), ("icmp", None), ("nd", None), ("icmp6", None), ("tcp6", 22), ("udp6", 7)):
        asked = question(Contact(_SOURCE, _TARGET, _TARGET.address, protocol, port, allowed=False, reason="-"), "k0")
        assert not re.search(str(asked["expect"]), str(asked["frame"])), protocol
        back = question(Contact(_TARGET, _SOURCE, _SOURCE.address, protocol, port, allowed=False, reason="-"), "k0")
        assert not re.search(str(asked["expect"]), str(back["frame"])), f"{protocol}: a question of the target is no answer"
    reply = Ether(src=_TARGET.mac, dst=_SOURCE.mac) / ARP(op=2, hwsrc=_TARGET.mac, psrc="198.18.1.11", pdst="198.18.1.2")
    asked = question(Contact(_SOURCE, _TARGET, _TARGET.address, "arp", None, allowed=True, reason="-"), "k0")
    assert re.search(str(asked["expect"]), bytes(reply).hex())


def test_offers_are_read_by_bounds() -> None:
    """What answers a guest is read as far as it is well-formed, and named whatever it is."""
    options = [("message-type", "offer"), ("server_id", "10.0.0.1"), ("router", "169.254.169.254"), "end"]
    head = Ether(src="0a:00:00:00:00:09") / IP(src="10.0.0.1", dst="10.0.0.2")
    offer = bytes(head / UDP(sport=67, dport=68) / BOOTP(op=2, xid=0x05000001) / DHCP(options=options))
    found = read_offer(offer)
    assert (found.source, found.service, found.transaction) == ("10.0.0.1", "DHCP", "05000001")
    assert dict(found.options) == {53: b"\x02", 54: bytes((10, 0, 0, 1)), 3: bytes((169, 254, 169, 254))}
    assert read_offer(bytes(head / UDP(sport=53, dport=4000))).service == "UDP port 53"
    assert read_offer(bytes(Ether() / ARP(op=2, psrc="10.0.0.1"))).service == "ARP"
    six = Ether(src="0a:00:00:00:00:09") / IPv6(src="fe80::1", dst="fe80::2")
    server = DHCP6OptServerId(duid=DUID_LL(lladdr="0a:00:00:00:00:09"))
    told = DHCP6_Advertise(trid=0x050001) / server / DHCP6OptDNSServers(dnsservers=["fd00::1"])
    advertised = bytes(six / UDP(sport=547, dport=546) / told)
    found = read_offer(advertised)
    assert (found.source, found.service, found.transaction) == ("fe80::1", "DHCPv6", "050001")
    assert dict(found.options) == {2: bytes.fromhex("000300010a0000000009"), 23: IPv6Address("fd00::1").packed}
    assert read_offer(bytes(six / ICMPv6ND_RA())).service == "ICMPv6 type 86"
    for whole in (offer, advertised):
        for length in range(len(whole)):
            read_offer(whole[:length])
            read_offer(whole[:length] + b"\xff" * 20)
