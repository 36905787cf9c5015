"""Frames that probes and attackers send, put together with scapy (docs/decisions/0006).

A frame is a function of its probe's token, which it carries somewhere that its protocol allows, so that every
sighting can be told from all other traffic. Addresses are text; nothing here looks at the outer machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import truediv

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Advertise,
    DHCP6_InfoRequest,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptElapsedTime,
    DHCP6OptIA_NA,
    DHCP6OptIAAddress,
    DHCP6OptOptReq,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption, IPOption_LSRR, IPOption_SSRR
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLDMultAddrRec,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    RouterAlert,
)
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw

from testbed.model.reachability import LINK, Cell, Endpoint

Frame = Callable[[bytes], bytes]

BROADCAST = "ff:ff:ff:ff:ff:ff"
TEST = 0x88B5  # IEEE 802 local experimental ethertype 1
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
_SERVERS, _SERVERS_MAC = "ff02::1:2", "33:33:00:01:00:02"  # DHCPv6 servers and relays of a link, RFC 8415
_MINIMUM = 60
_EXPERIMENT = 253  # ND option type for experiments, RFC 4727


def framed(*layers: Packet, tail: Callable[[bytes], Packet] = Raw) -> Frame:
    """Return a frame of some layers that ends with its token, padded to the minimum length of Ethernet."""
    stack = reduce(truediv, layers)
    return lambda token: bytes(stack / tail(token)).ljust(_MINIMUM, b"\0")


def _any_port() -> int:
    return 40000 + secrets.randbelow(20000)


def syn(port: int) -> Packet:
    """Return a TCP SYN; it may carry data (RFC 9293, 3.4)."""
    return TCP(sport=_any_port(), dport=port, flags="S", seq=secrets.randbits(32))


def datagram(port: int) -> Packet:
    """Return a UDP header to a port."""
    return UDP(sport=_any_port(), dport=port)


def nd_option(token: bytes) -> Packet:
    """Return a token as an option of Neighbor Discovery, so that the message stays well-formed (RFC 4861,
    4.6).
    """
    octets = (2 + len(token) + 7) // 8
    return Raw(bytes((_EXPERIMENT, octets)) + token.ljust(octets * 8 - 2, b"\0"))


def solicited(address: str) -> tuple[str, str]:
    """Return the multicast address, and its MAC address, at which the owner of an IPv6 address is asked (RFC
    4291, 2.7.1).
    """
    last = int.from_bytes(bytes(IPv6(dst=address))[-3:])
    text = f"{last:06x}"
    return f"ff02::1:ff{text[:2]}:{text[2:]}", f"33:33:ff:{text[:2]}:{text[2:4]}:{text[4:]}"


def of_cell(cell: Cell) -> Frame:
    """Return what asks a cell of the matrix, addressed so that only the wall can stop it."""
    return _PROBES[cell.protocol](cell.source, cell.target, cell.port or 0)


def _to_group(source: Endpoint, mac: str, address: str, port: int) -> Frame:
    return framed(
        Ether(src=source.mac, dst=mac), IP(src=str(source.address), dst=address), UDP(sport=port, dport=port)
    )


def _four(source: Endpoint, target: Endpoint, layer: Packet) -> Frame:
    packet = IP(src=str(source.address), dst=str(target.address), id=secrets.randbits(16))
    return framed(Ether(src=source.mac, dst=target.mac), packet, layer)


def _six(ends: Ends, layer: Packet) -> Frame:
    return framed(ends.link, IPv6(src=ends.own, dst=ends.other), layer)


@dataclass(frozen=True, slots=True)
class Ends:
    """Two endpoints, and the IPv6 addresses by which they are meant."""

    source: Endpoint
    target: Endpoint
    own: str
    other: str

    @classmethod
    def linked(cls, source: Endpoint, target: Endpoint) -> Ends:
        """Return two endpoints by their link-local addresses."""
        return cls(source, target, str(source.link_local), str(target.link_local))

    @classmethod
    def declared(cls, source: Endpoint, target: Endpoint) -> Ends:
        """Return two endpoints by the addresses that the topology gives them."""
        return cls(source, target, str(source.address6), str(target.address6))

    @property
    def link(self) -> Ether:
        """Honest Ethernet from one to the other."""
        return Ether(src=self.source.mac, dst=self.target.mac)


def neighbor_solicitation(source: str, target: str, mac: str) -> Packet:
    """Return a question for the MAC address of an IPv6 address, and its frame's MAC address (RFC 4861, 4.3).

    Args:
        mac: MAC address that the question tells of its source.

    """
    group, group_mac = solicited(target)
    return (
        Ether(src=mac, dst=group_mac) / IPv6(src=source, dst=group, hlim=255) / neighbor_question(target, mac)
    )


def neighbor_question(target: str, mac: str) -> Packet:
    """Return the body of a question for the MAC address of an IPv6 address, which tells that of its
    source.
    """
    return ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=mac)


def _families(
    kind: Callable[[Endpoint, Endpoint], Ends], suffix: str
) -> dict[str, Callable[[Endpoint, Endpoint, int], Frame]]:
    def solicitation(source: Endpoint, target: Endpoint, _: int) -> Frame:
        ends = kind(source, target)
        return framed(neighbor_solicitation(ends.own, ends.other, source.mac), tail=nd_option)

    return {
        f"nd{suffix}": solicitation,
        f"icmp6{suffix}": lambda source, target, _: _six(
            kind(source, target), ICMPv6EchoRequest(id=secrets.randbits(16))
        ),
        f"tcp6{suffix}": lambda source, target, port: _six(kind(source, target), syn(port)),
        f"udp6{suffix}": lambda source, target, port: _six(kind(source, target), datagram(port)),
    }


def _to_group6(source: Endpoint) -> Frame:
    packet = IPv6(src=str(source.address6), dst="ff02::fb")
    return framed(Ether(src=source.mac, dst="33:33:00:00:00:fb"), packet, UDP(sport=5353, dport=5353))


_PROBES: dict[str, Callable[[Endpoint, Endpoint, int], Frame]] = {
    "arp": lambda source, target, _: framed(
        Ether(src=source.mac, dst=BROADCAST), arp_request(source, str(target.address))
    ),
    "icmp": lambda source, target, _: _four(source, target, ICMP(id=secrets.randbits(16))),
    "tcp": lambda source, target, port: _four(source, target, syn(port)),
    "udp": lambda source, target, port: _four(source, target, datagram(port)),
    "raw": lambda source, target, _: framed(Ether(src=source.mac, dst=target.mac, type=TEST)),
    "broadcast": lambda source, _, __: _to_group(source, BROADCAST, "255.255.255.255", 7),
    "multicast": lambda source, _, __: _to_group(source, "01:00:5e:00:00:fb", "224.0.0.251", 5353),
    "multicast6": lambda source, _, __: _to_group6(source),
    **_families(Ends.declared, ""),
    **_families(Ends.linked, LINK),
}


def arp_request(source: Endpoint, address: str) -> Packet:
    """Return an honest ARP request (RFC 826)."""
    return ARP(op=1, hwsrc=source.mac, psrc=str(source.address), hwdst="00:00:00:00:00:00", pdst=address)


def arp_reply(mac: str, address: str, target: Endpoint) -> Packet:
    """Return an ARP reply that nobody asked for: an address is at a MAC address (RFC 826)."""
    return ARP(op=2, hwsrc=mac, psrc=address, hwdst=target.mac, pdst=str(target.address))


def dhcp_discover(mac: str, transaction: int, *, wanted: str = "", client: bytes = b"") -> Frame:
    """Return a DHCP discover message; it needs no token, since its answer repeats the transaction (RFC 2131).

    Args:
        mac: source MAC address of the frame.
        wanted: address to ask for.
        client: hardware address in the message, if not that of the frame (6 octets).

    """
    options: list[object] = [("message-type", "discover"), ("param_req_list", [1, 3, 51])]
    if wanted:
        options.append(("requested_addr", wanted))
    boot = BOOTP(chaddr=client or bytes.fromhex(mac.replace(":", "")), xid=transaction, flags=0x8000)
    packet = (
        Ether(src=mac, dst=BROADCAST)
        / IP(src="0.0.0.0", dst="255.255.255.255")  # noqa: S104 - a frame is no socket
        / UDP(sport=68, dport=67)
    )
    return lambda _: bytes(packet / boot / DHCP(options=[*options, "end"]))


def dhcp_offer(server: str, offered: str, client: Endpoint) -> Packet:
    """Return the body of a DHCP offer that makes its sender the client's server, router and name server (RFC
    2131).
    """
    boot = BOOTP(
        op=2,
        chaddr=bytes.fromhex(client.mac.replace(":", "")),
        yiaddr=offered,
        siaddr=server,
        xid=secrets.randbits(32),
    )
    told = [
        ("message-type", "offer"),
        ("server_id", server),
        ("router", server),
        ("name_server", server),
        "end",
    ]
    return UDP(sport=67, dport=68) / boot / DHCP(options=told)


def to_dhcp6(sender: Endpoint) -> Packet:
    """Return the head of a client's message to the DHCPv6 servers of its link (RFC 8415)."""
    return (
        Ether(src=sender.mac, dst=_SERVERS_MAC)
        / IPv6(src=str(sender.link_local), dst=_SERVERS)
        / UDP(sport=546, dport=547)
    )


def dhcp6_solicit(sender: Endpoint, transaction: int, client: bytes, wanted: str = "") -> Frame:
    """Return a DHCPv6 solicit message; it needs no token, since its answer repeats the transaction (RFC
    8415).

    Args:
        transaction: 24 bits.
        client: hardware address that the client is known by (6 octets).
        wanted: address to ask for.

    """
    told = DHCP6OptClientId(duid=DUID_LL(lladdr=client.hex(":"))) / DHCP6OptElapsedTime()
    asked = DHCP6OptIA_NA(iaid=1, ianaopts=[DHCP6OptIAAddress(addr=wanted)] if wanted else [])
    return lambda _: bytes(to_dhcp6(sender) / DHCP6_Solicit(trid=transaction) / told / asked)


def dhcp6_question(sender: Endpoint, transaction: int) -> Frame:
    """Return a DHCPv6 information request that asks for every name server and domain (RFC 8415, 18.2.6; RFC
    3646).
    """
    told = (
        DHCP6OptClientId(duid=DUID_LL(lladdr=sender.mac))
        / DHCP6OptElapsedTime()
        / DHCP6OptOptReq(reqopts=[23, 24])
    )
    return lambda _: bytes(to_dhcp6(sender) / DHCP6_InfoRequest(trid=transaction) / told)


def dhcp6_advertise() -> Packet:
    """Return the head of a DHCPv6 advertisement (RFC 8415)."""
    return UDP(sport=547, dport=546) / DHCP6_Advertise(trid=secrets.randbits(24))


def source_route(kind: str, via: str) -> IPOption:
    """Return an IPv4 option that names an address to pass by: ``loose`` or ``strict`` (RFC 791, 3.1; RFC
    7126, 4.3).
    """
    return {"loose": IPOption_LSRR, "strict": IPOption_SSRR}[kind](routers=[via])


def routing_header(via: str) -> Packet:
    """Return an IPv6 routing header of type 0 that names an address to go to next (RFC 5095)."""
    return IPv6ExtHdrRouting(type=0, segleft=1, addresses=[via])


def router_advertisement(mac: str) -> Packet:
    """Return a router advertisement with a lifetime and a prefix (RFC 4861, 4.2)."""
    prefix = ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::", prefixlen=64)
    return ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptSrcLLAddr(lladdr=mac) / prefix


def neighbor_advertisement(address: str, mac: str, *, solicited_: int = 0) -> Packet:
    """Return an advertisement that overrides what neighbours know of an address (RFC 4861, 4.4)."""
    return ICMPv6ND_NA(tgt=address, R=0, S=solicited_, O=1) / ICMPv6NDOptDstLLAddr(lladdr=mac)


def redirect(router: str, destination: str) -> Packet:
    """Return an ICMPv6 redirect of a destination to a router (RFC 4861, 4.5)."""
    return ICMPv6ND_Redirect(tgt=router, dst=destination)


def listener_report(mac: str, source: str) -> tuple[Packet, ...]:
    """Return a report that its sender listens to a group, as its layers (RFC 9777)."""
    head = IPv6(src=source, dst="ff02::16", hlim=1) / IPv6ExtHdrHopByHop(options=[RouterAlert()])
    return (
        Ether(src=mac, dst="33:33:00:00:00:16"),
        head,
        ICMPv6MLReport2(records=[ICMPv6MLDMultAddrRec(rtype=4, dst="ff02::fb")]),
    )


def tagged(*tags: int, service: bool = False) -> Packet:
    """Return VLAN tags, outermost first (IEEE 802.1Q).

    Args:
        service: the outermost is a service tag (802.1ad).

    """
    layers = [(Dot1AD if service and number == 0 else Dot1Q)(vlan=tag) for number, tag in enumerate(tags)]
    return reduce(truediv, layers)


def snap(source: str, target: str, payload: Packet, ethertype: int, *, length: int | None = None) -> Frame:
    """Return an IEEE 802.3 frame whose payload stands behind LLC and SNAP headers (RFC 1042).

    Args:
        length: what the length field claims; the truth if None.

    """
    return framed(
        Dot3(src=source, dst=target, len=length),
        LLC(dsap=0xAA, ssap=0xAA, ctrl=3),
        SNAP(OUI=0, code=ethertype),
        payload,
    )
