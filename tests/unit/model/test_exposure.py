"""What machines offer to whom: the oracle, and how answers are read."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DUID_LL, DHCP6_Advertise, DHCP6OptDNSServers, DHCP6OptServerId
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6
from scapy.layers.l2 import ARP, Ether

from testbed.errors import InstrumentError
from testbed.model.exposure import Contact, Plane, Site, Stand, contacts, machines, outer, rogue
from testbed.model.reachability import ReachMatrix
from testbed.model.resolve import resolve
from testbed.model.topology import Testbed
from testbed.payload.probe import scanner
from testbed.payload.probe.scanner import MAX_ASKS
from testbed.plan.host_config.identity import address_sets
from testbed.topology_file.loader import read
from testbed.topology_file.schema import Spec
from testbed.verify.attackers import service_scan
from testbed.verify.attackers.scan_result import Reading
from testbed.verify.attackers.scan_result import read as read_reading
from testbed.verify.attackers.service_scan import knock, listening, question
from testbed.verify.probe.liveness import OUTER
from testbed.verify.witnesses.dhcp_answers import read_offer
from testbed.verify.witnesses.firewall_log import Ledger, Passing, parse_ledger

TOPOLOGIES = sorted((Path(__file__).parents[3] / "topologies").glob("*.yaml"))


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
        *(
            f"{one}@fabric -> {two}@fabric udp/{port}"
            for one, two in (nodes, nodes[::-1])
            for port in (500, 6081)
        ),
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
            asked = {
                cell.address
                for cell in cells
                if cell.target.name == node.name and cell.source.plane is network.plane
            }
            assert asked == {nic.address for nic in node.nics}


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda path: path.stem)
def test_the_firewall_s_addresses_say_the_same_as_the_oracle(topology: Path) -> None:
    """Two derivations from one topology: who may use a service is who stands in the set of the rule for
    it.
    """
    lab = resolve(read(topology).spec)
    ports = {
        "administrators": 22,
        "tunnel_peers": 6081,
        "northbound_clients": 6641,
        "southbound_clients": 6642,
    }
    cells = [cell for cell in contacts(lab) if cell.allowed]
    for machine in lab.machines:
        for name, addresses in address_sets(lab, machine).items():
            allowed = {
                str(cell.source.address)
                for cell in cells
                if cell.target.name == machine.name and cell.port == ports[name]
            }
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
    """A rogue host collides with no machine, and the outer machine has no end but on the management
    network.
    """
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


def _ledger(refused: dict[tuple[str, str, str, int], float], packets: int, size: int = 4096) -> Ledger:
    return Ledger(refused, (Passing("udp", ((6081, 6081),), packets),), size)


def _reading(
    protocol: str, state: str, refused: float | None = None, passed: int = 0, **more: Any
) -> Reading:
    cell = Contact(
        _SOURCE, _TARGET, _TARGET.address, protocol, 6081, allowed=more.get("allowed", False), reason="-"
    )
    told = {} if refused is None else {("198.18.1.2", "198.18.1.11", protocol, 6081): refused}
    others = {("198.18.1.9", "198.18.1.11", "udp", port): 1.0 for port in range(more.get("others", 0))}
    ledgers = (_ledger({}, 4), _ledger({**others, **told}, 4 + passed))
    return read_reading(cell, state, *ledgers, more.get("within", 10.0), more.get("stood", {}))


def test_an_answer_or_a_rule_that_lets_pass_is_a_reach() -> None:
    """TCP and datagrams that answer or are refused by the stack itself were reached; so was a datagram that a
    rule let pass.
    """
    assert all(
        _reading(protocol, state).reached for protocol in ("tcp", "udp") for state in ("open", "refused")
    )
    assert _reading("udp", "silent", passed=1).reached
    assert not _reading("tcp", "silent", passed=1).reached
    assert not _reading("udp", "silent", refused=3.0, passed=1).reached


def test_silence_that_no_firewall_vouches_for_is_unclear() -> None:
    """What was refused before the question says nothing about the question, however long the questions
    took.
    """
    assert not _reading("tcp", "silent", refused=3.0).unclear
    assert _reading("tcp", "silent").unclear
    assert _reading("udp", "silent", refused=300.0).unclear
    assert _reading("tcp", "silent", within=3600.0).unclear


@pytest.mark.parametrize("name", ["node-a", "rogue", OUTER])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp", "nd", "tcp6"])
def test_the_silence_of_who_stood_still_says_nothing(protocol: str, name: str) -> None:
    """A pause of the target, of who asks, or of the outer machine is told apart from a wall; who answers has
    answered.
    """
    found = _reading(protocol, "silent", stood={name: 4.1})
    assert found.unclear
    assert f"{name} stood still for 4.1 s" in str(found)
    assert not _reading(protocol, "silent", stood={"node-b": 4.1}).blind
    assert not _reading(protocol, "silent", stood={name: 1.9}).blind
    assert not _reading(protocol, "open", stood={name: 4.1}).unclear
    assert _reading(protocol, "open", stood={name: 4.1}).reached


def test_a_firewall_without_room_to_remember_says_nothing() -> None:
    """Anybody on a network can fill it; then what it let pass meanwhile may have been anybody's."""
    found = _reading("udp", "silent", passed=1, others=4096)
    assert found.unclear
    assert not found.reached
    assert "4096 refusals of 4096 at most, 4096 of them of 198.18.1.9" in str(found)
    assert _reading("tcp", "silent", others=4096).unclear
    assert not _reading("tcp", "silent", refused=3.0, others=4095).unclear
    assert not _reading("icmp", "silent", others=4096).unclear, "the set holds no ICMP"
    assert not _reading("tcp", "silent", others=100).blind


def _port(right: object, protocol: str = "udp") -> dict[str, object]:
    return {
        "match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": "dport"}}, "right": right}
    }


def _counting(*parts: object, packets: int = 1, verdict: str = "accept") -> dict[str, object]:
    return {"rule": {"expr": [*parts, {"counter": {"packets": packets, "bytes": 99}}, {verdict: None}]}}


def test_the_firewall_s_own_words_are_read() -> None:
    """nft's JSON: refused connections with what is left of ten minutes, and counters of rules for a port."""
    address = {
        "match": {
            "op": "==",
            "left": {"payload": {"protocol": "ip", "field": "saddr"}},
            "right": "@tunnel_peers",
        }
    }
    element = {
        "elem": {"val": {"concat": ["198.18.0.2", "198.18.0.10", "tcp", 22]}, "timeout": 600, "expires": 590}
    }
    refused = {"set": {"name": "refused", "size": 4096, "elem": [element]}}
    told = parse_ledger(
        {
            "nftables": [
                {"metainfo": {"version": "1.1.3"}},
                {"set": {"name": "administrators", "elem": ["198.18.0.1"]}},
                refused,
                _counting(address, _port(6081), packets=7),
                _counting(packets=1, verdict="drop"),
                {"rule": {"expr": [_port(22, "tcp"), {"accept": None}]}},
            ]
        }
    )
    assert (told.passed("udp", 6081), told.passed("tcp", 6081), told.passed("udp", 500)) == (7, 0, 0)
    assert told.refuses("198.18.0.2", "198.18.0.10", "tcp", 22, 9.0)
    assert not told.refuses("198.18.0.2", "198.18.0.10", "tcp", 22, 5.0)
    assert (told.size, told.full) == (4096, "")
    for sets in ([], [refused, refused]):
        with pytest.raises(KeyError):
            parse_ledger({"nftables": sets})


def test_every_rule_that_lets_a_port_pass_counts() -> None:
    """A rule for the same port, for a range or a set of ports, for any port or in words that nobody knows
    hides no other one.
    """
    rules = [
        _counting(_port(6081), packets=1),
        _counting(_port(6081), packets=2),
        _counting(_port({"range": [6000, 7000]}), packets=4),
        _counting(_port({"set": [500, {"range": [6081, 6082]}]}), packets=8),
        _counting(_port("@some"), packets=16),
        _counting(packets=32),
        _counting(_port(6081, "th"), packets=64),
        _counting(_port(500), packets=128),
        _counting(_port(6081, "tcp"), packets=256),
    ]
    for order in (rules, rules[::-1]):
        told = parse_ledger({"nftables": [{"set": {"name": "refused"}}, *order]})
        assert told.passed("udp", 6081) == 127
        assert told.passed("udp", 500) == 8 + 16 + 32 + 128
        assert told.passed("tcp", 6081) == 32 + 64 + 256


class _Machine:
    def __init__(self, text: str) -> None:
        self.text = text

    def read(self, _: str) -> str:
        return self.text


_SSH = "tcp LISTEN 0 128 198.18.0.11:22 0.0.0.0:*"


def test_sockets_are_read_line_by_line() -> None:
    """What cannot be read, and a list in which our own login's socket is missing, is no list."""
    lines = (
        f"{_SSH}\nudp UNCONN 0 0 0.0.0.0:6081 0.0.0.0:*\ntcp LISTEN 0 1 127.0.0.1:7 0.0.0.0:*\ntcp LISTEN "
        "0 1 [::]:9 [::]:*"
    )
    fleet: Any = SimpleNamespace(machines={"node": _Machine(lines)})
    assert listening(fleet) == {"node": {("tcp", 22), ("udp", 6081), ("tcp", 9)}}
    for text in (
        "",
        lines.replace(":22 ", ":23 "),
        f"{_SSH}\nnonsense",
        f"{_SSH}\ntcp LISTEN 0 1 0.0.0.0:what *",
    ):
        fleet.machines["node"].text = text
        with pytest.raises(InstrumentError):
            listening(fleet)


class _Knocker:
    """Answers as the probe does, but for some questions; each is asked in one piece of those that it is
    given.
    """

    name = "node-a"

    def __init__(self, lost: int = 0) -> None:
        self.asked: list[int] = []
        self.lost = lost

    def listen(self, request: dict[str, Any]) -> dict[str, Any]:
        assert len(request["probes"]) <= MAX_ASKS
        self.asked.append(len(request["probes"]))
        told = [{"id": line["id"], "state": "silent"} for line in request["probes"]]
        return {"results": told[: len(told) - self.lost]}


def _seven() -> Testbed:
    nodes: dict[str, object] = {f"node-{letter}": {} for letter in "abcdefg"}
    red = {"networks": {"app": "10.0.0.0/24"}, "guests": {"web": {"node": "node-a"}}}
    return resolve(Spec.model_validate({"version": 1, "name": "x", "nodes": nodes, "tenants": {"red": red}}))


def _knock(lab: Testbed, lost: int = 0) -> tuple[list[_Knocker], int, list[str]]:
    told = {machine.name: frozenset({("tcp", 4567), ("udp", 4500)}) for machine in lab.machines}
    cells = [cell for cell in contacts(lab, told) if cell.source.stand is not Stand.OUTER]
    fleet: Any = SimpleNamespace(evidence=SimpleNamespace(record=lambda *_: None))
    names = {cell.source.label if cell.source.stand is Stand.ROGUE else cell.source.name for cell in cells}
    at: Any = {name: _Knocker(lost) for name in names}
    return list(at.values()), len(cells), knock(fleet, at, cells)


def test_a_large_fleet_is_asked_everything() -> None:
    """With seven nodes there are more questions than fit into one go; each gets its answer."""
    knockers, asked, states = _knock(_seven())
    assert max(sum(item.asked) for item in knockers) > MAX_ASKS
    assert len(states) == asked == sum(sum(item.asked) for item in knockers)


def test_an_answer_less_than_there_are_questions_is_told() -> None:
    with pytest.raises(InstrumentError, match="did not ask everything"):
        _knock(_lab("one-node"), lost=1)


def test_a_knocker_leaves_no_question_out() -> None:
    """What is too much for one go is refused, and not cut."""
    line = {"id": "k", "kind": "tcp", "mac": "-", "address": "-", "ip": "-", "port": 1}
    with pytest.raises(ValueError, match="401 questions, and 400 at most"):
        scanner.knock({"probes": [line] * (MAX_ASKS + 1), "window": 0})


def test_what_was_silent_is_asked_once_more() -> None:
    """A service that answers late is there; one that is silent twice is not; of datagrams the firewall
    tells.
    """
    cells = [cell for cell in contacts(_lab()) if cell.allowed and cell.protocol in ("arp", "udp")]
    cells = [
        *[cell for cell in cells if cell.protocol == "arp"][:3],
        *[cell for cell in cells if cell.protocol == "udp"][:1],
    ]
    asked: list[Any] = []

    def again(_fleet: Any, _at: Any, some: Any) -> list[str]:
        asked.extend(some)
        return ["open", "silent"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service_scan, "knock", again)
        fleet: Any = None
        assert service_scan._once_more(fleet, {}, cells, ["silent", "open", "silent", "silent"]) == [
            "open",
            "open",
            "silent",
            "silent",
        ]
    assert asked == [cells[0], cells[2]]


def test_questions_expect_answers_and_not_themselves() -> None:
    """A question that its own sender sees on the wire is no answer."""
    for protocol, port in (
        ("arp", None),
        ("icmp", None),
        ("nd", None),
        ("icmp6", None),
        ("tcp6", 22),
        ("udp6", 7),
    ):
        asked = question(
            Contact(_SOURCE, _TARGET, _TARGET.address, protocol, port, allowed=False, reason="-"), "k0"
        )
        assert not re.search(str(asked["expect"]), str(asked["frame"])), protocol
        back = question(
            Contact(_TARGET, _SOURCE, _SOURCE.address, protocol, port, allowed=False, reason="-"), "k0"
        )
        assert not re.search(str(asked["expect"]), str(back["frame"])), (
            f"{protocol}: a question of the target is no answer"
        )
    reply = Ether(src=_TARGET.mac, dst=_SOURCE.mac) / ARP(
        op=2, hwsrc=_TARGET.mac, psrc="198.18.1.11", pdst="198.18.1.2"
    )
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
    assert dict(found.options) == {
        2: bytes.fromhex("000300010a0000000009"),
        23: IPv6Address("fd00::1").packed,
    }
    assert read_offer(bytes(six / ICMPv6ND_RA())).service == "ICMPv6 type 86"
    for whole in (offer, advertised):
        for length in range(len(whole)):
            read_offer(whole[:length])
            read_offer(whole[:length] + b"\xff" * 20)
