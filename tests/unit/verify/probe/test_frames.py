"""Frames: built according to the RFCs, and parsed by the probe without trust."""

from __future__ import annotations

import json
import os
import zlib
from ipaddress import IPv4Address, IPv6Address
from types import SimpleNamespace
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP
from scapy.layers.dhcp6 import DHCP6_Advertise, DHCP6OptIA_NA, DHCP6OptIAAddress, DHCP6OptServerId
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptUnknown, IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot3, Ether

from testbed.model.reachability import Cell, Endpoint, services
from testbed.payload.probe import sender
from testbed.payload.probe.frame_parser import parse
from testbed.verify.probe import frames
from testbed.verify.probe.client import compose

WEB = Endpoint("red/web", "red/app", "0a:00:00:00:00:01", IPv4Address("10.0.0.2"), IPv6Address("fd00::2"))
DB = Endpoint("red/db", "red/app", "0a:00:00:00:00:02", IPv4Address("10.0.0.3"), IPv6Address("fd00::3"))
PREFIX, TOKEN = "tb-0123abcd-", "tb-0123abcd-c1."
PROTOCOLS = tuple(dict.fromkeys(protocol for protocol, _ in services(WEB, DB, {"tcp": (1,), "udp": (1,)})))


def _of(protocol: str, token: str = TOKEN) -> bytes:
    port = 5432 if protocol.startswith(("tcp", "udp")) else None
    return frames.of_cell(Cell(WEB, DB, protocol, port, allowed=False, reason="-"))(token.encode())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_probe_finds_who_sent_a_frame(protocol: str) -> None:
    """The parser finds token and sender in every frame of the matrix.

    Each frame is long enough for Ethernet.
    """
    seen = parse(_of(protocol), PREFIX)
    assert seen is not None
    assert (seen.token, seen.mac) == (TOKEN, WEB.mac)
    assert len(_of(protocol)) >= 60


@pytest.mark.parametrize(("protocol", "kind", "ends"), [
    ("arp", "arp-request", ("10.0.0.2", "10.0.0.3")),
    ("icmp", "icmp", ("10.0.0.2", "10.0.0.3")),
    ("tcp", "tcp", ("10.0.0.2", "10.0.0.3")),
    ("udp6-link", "ip6", ("fe80::800:ff:fe00:1", "fe80::800:ff:fe00:2")),
    ("udp6", "ip6", ("fd00::2", "fd00::3")),
    ("multicast6", "ip6", ("fd00::2", "ff02::fb")),
    ("nd-link", "nd-request", ("fe80::800:ff:fe00:1", "fe80::800:ff:fe00:2")),
    ("nd", "nd-request", ("fd00::2", "fd00::3")),
    ("raw", "raw", ("", "")),
])  # fmt: skip
def test_the_probe_reads_what_a_frame_says(protocol: str, kind: str, ends: tuple[str, str]) -> None:
    """Kind, source and target of frames that scapy built."""
    seen = parse(_of(protocol), PREFIX)
    assert seen is not None
    assert (seen.kind, (seen.ip, seen.target)) == (kind, ends)


def test_a_frame_says_whom_it_is_for() -> None:
    """Unicast and multicast are distinguished."""
    to = {name: parse(_of(name), PREFIX).to for name in ("tcp", "broadcast", "multicast", "nd-link")}  # type: ignore[union-attr]
    assert to == {
        "tcp": DB.mac,
        "broadcast": "ff:ff:ff:ff:ff:ff",
        "multicast": "01:00:5e:00:00:fb",
        "nd-link": "33:33:ff:00:00:02",
    }


def test_a_token_in_neighbor_discovery_leaves_the_message_well_formed() -> None:
    """The token is an option of whole octets, so that no switch drops the message for its form."""
    head = IPv6(src=str(WEB.link_local), dst=frames.ALL_NODES, hlim=255)
    made = frames.framed(
        Ether(src=WEB.mac),
        head,
        IPv6ExtHdrHopByHop(),
        frames.router_advertisement(WEB.mac),
        tail=frames.nd_option,
    )
    read = Ether(made(TOKEN.encode()))
    assert read[ICMPv6ND_RA].routerlifetime == 1800
    assert TOKEN.encode() in read[ICMPv6NDOptUnknown].data
    assert len(bytes(read[ICMPv6NDOptUnknown])) == read[ICMPv6NDOptUnknown].len * 8


@pytest.mark.parametrize("tags", [(0,), (0, 0), (1, 4094)])
@pytest.mark.parametrize("service", [True, False])
def test_tags_do_not_hide_a_token(tags: tuple[int, ...], service: bool) -> None:
    """A packet in one or two VLAN tags, plain or service, is read as the packet that it is."""
    layers = (
        Ether(src=WEB.mac, dst=DB.mac),
        frames.tagged(*tags, service=service),
        IP(src="10.0.0.2", dst="10.0.0.3"),
        frames.syn(1),
    )
    seen = parse(frames.framed(*layers)(TOKEN.encode()), PREFIX)
    assert seen is not None
    assert (seen.kind, seen.token) == ("tcp", TOKEN)


def test_a_packet_behind_llc_and_snap_has_a_length_and_a_token() -> None:
    """The field that holds an ethertype elsewhere holds the true length, or what was asked for."""
    reply = frames.arp_reply(WEB.mac, "10.0.0.9", DB)
    true, false = (
        frames.snap(WEB.mac, DB.mac, reply, 0x0806, length=length)(TOKEN.encode()) for length in (None, 3)
    )
    assert Dot3(true).len == 8 + 28 + len(TOKEN)
    assert Dot3(false).len == 3
    assert {parse(frame, PREFIX).token for frame in (true, false)} == {TOKEN}  # type: ignore[union-attr]


def test_a_dhcp_answer_is_told_by_its_transaction_and_says_what_it_hands_out() -> None:
    """Only answers without a token (operation 2 from port 67) are the network's own."""
    offer = frames.dhcp_offer("10.0.0.1", "10.0.0.9", WEB)
    offer.xid = 0xDEADBEEF
    packet = bytes(Ether(src=DB.mac, dst=WEB.mac) / IP(src="10.0.0.1", dst="10.0.0.2") / offer)
    assert parse(packet, PREFIX) == ("dhcp", "deadbeef", DB.mac, "10.0.0.1", "10.0.0.9", WEB.mac)
    assert parse(frames.dhcp_discover(WEB.mac, 0xDEADBEEF)(b""), PREFIX) is None
    forged = parse(packet + TOKEN.encode(), PREFIX)
    assert forged is not None
    assert (forged.kind, forged.token) == ("udp", TOKEN)


def test_an_advertisement_says_whose_address_it_tells_of() -> None:
    """The network's own answers carry no token; their address and receiver are parsed."""
    head = IPv6(src="fd00::3", dst="fd00::2", hlim=255)
    told = bytes(Ether(src=DB.mac, dst=WEB.mac) / head / frames.neighbor_advertisement("fd00::3", DB.mac))
    assert parse(told, PREFIX) == ("nd-reply", "", DB.mac, "fd00::3", "fd00::2", WEB.mac)
    assert parse(told[:70], PREFIX) is None


def test_a_dhcp_request_names_its_sender_unless_it_names_another() -> None:
    own, other = (bytes.fromhex(item.mac.replace(":", "")) for item in (WEB, DB))
    for client, named in ((b"", own), (other, other)):
        packet = Ether(frames.dhcp_discover(WEB.mac, 1, client=client)(b""))
        assert (packet.src, packet[BOOTP].chaddr[:6]) == (WEB.mac, named)


def test_an_answer_of_dhcpv6_says_what_it_hands_out() -> None:
    """The address is two options deep.

    A request is no answer, and no truncation breaks the parser.
    """
    lease = DHCP6OptIA_NA(iaid=1, ianaopts=[DHCP6OptIAAddress(addr="fd00::9")])
    answer = DHCP6_Advertise(trid=0x030102) / DHCP6OptServerId() / lease
    packet = bytes(
        Ether(src=DB.mac, dst=WEB.mac)
        / IPv6(src="fe80::1", dst="fe80::2")
        / UDP(sport=547, dport=546)
        / answer
    )
    assert parse(packet, PREFIX) == ("dhcp6", "030102", DB.mac, "fe80::1", "fd00::9", WEB.mac)
    assert parse(frames.dhcp6_solicit(WEB, 0x030102, bytes(6), "fd00::9")(b""), PREFIX) is None
    for length in range(len(packet)):
        parse(packet[:length], PREFIX)


def test_foreign_tokens_are_not_ours() -> None:
    """Another run's token, a token that never ends, and no token are not recorded."""
    for token in ("tb-ffffffff-c1.", f"{PREFIX}{'a' * 99}.", "hello"):
        assert parse(_of("udp", token), PREFIX) is None


def test_no_frame_breaks_the_parser() -> None:
    """Truncated frames, random bytes, and frames with one wrong byte are parsed or ignored."""
    for frame in map(_of, PROTOCOLS):
        for length in range(len(frame)):
            parse(frame[:length], PREFIX)
            parse(frame[:length] + b"\xff" + frame[length + 1 :], PREFIX)
            parse(frame[:length] + TOKEN.encode(), PREFIX)
    for _ in range(500):
        parse(_of("udp")[:14] + os.urandom(40), PREFIX)


def test_copies_come_from_many_strangers() -> None:
    """The first frame of a flood is as given; the others differ in their source MAC only."""
    sent: list[bytes] = []
    outlets: Any = SimpleNamespace(at=lambda _: SimpleNamespace(send=sent.append))
    frame = _of("raw")
    sender._attempt({"kind": "frame", "mac": WEB.mac, "frame": frame.hex(), "copies": 20}, outlets)
    assert sent[0] == frame
    assert len({item[6:12] for item in sent}) == len(sent) == 20
    assert {item[:6] + item[12:] for item in sent} == {frame[:6] + frame[12:]}


def test_a_request_is_carried_as_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Quotes and line ends of a request stay inside its literal; the program compiles."""
    nasty = {
        "phase": "stop",
        "token": PREFIX,
        "folder": str(tmp_path_factory.mktemp("f")),
        "x": "'\"\\\n'''\u2028); 1/0",
    }
    program = zlib.decompress(compose(nasty)).decode()
    compile(program, "probe", "exec")
    literal = program.rsplit("json.loads(", 1)[1].rsplit(")))", 1)[0]
    assert json.loads(eval(literal)) == nasty


def test_arp_asks_and_answers_by_its_operation() -> None:
    """RFC 826: 1 is a request, 2 a reply."""
    end: Any = SimpleNamespace(mac="0a:00:00:00:00:01", address=IPv4Address("10.0.0.1"))
    assert frames.arp_request(end, "10.0.0.2").op == 1
    assert frames.arp_reply("0a:00:00:00:00:02", "10.0.0.2", end).op == 2
