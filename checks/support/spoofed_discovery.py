"""Forged ARP and Neighbor Discovery, and the extension headers that may hide it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from checks.support.attacker_positions import Position, six_of
from testbed.verify.probe import frames
from testbed.verify.probe.frames import BROADCAST, Frame, framed


def invented_mac() -> str:
    """Return a locally administered MAC address that no lab assigns."""
    return "0e:" + secrets.token_bytes(5).hex(":")


def extension_headers() -> dict[str, tuple[Packet, ...]]:
    """Return the headers that can precede an IPv6 payload, by a description."""
    return {
        "": (),
        " behind hop-by-hop options": (IPv6ExtHdrHopByHop(),),
        " behind destination options": (IPv6ExtHdrDestOpt(),),
        " in a fragment": (IPv6ExtHdrFragment(id=secrets.randbits(32)),),
    }


def false_resolutions(position: Position) -> Iterator[tuple[str, Frame]]:
    """Yield ARP with a false sender, in every encapsulation (NET-03, CERT/CC VU#855201)."""
    own, server, peer = position.sender, str(position.server.address), position.peer
    yield (
        "an ARP reply with an invented MAC address",
        framed(position.broadcast_link, frames.arp_reply(invented_mac(), str(own.address), peer)),
    )
    yield (
        "an ARP reply in its peer's name",
        framed(position.broadcast_link, frames.arp_reply(own.mac, str(peer.address), peer)),
    )
    ask = ARP(op=1, hwsrc=own.mac, psrc=server, hwdst="00:00:00:00:00:00", pdst=str(peer.address))
    yield "an ARP request in its network's name", framed(position.broadcast_link, ask)
    forgery = frames.arp_reply(own.mac, server, peer)
    meaning = "an ARP reply in its network's name"
    yield meaning, framed(position.broadcast_link, forgery)
    yield f"{meaning} in a priority tag", framed(position.broadcast_link, frames.tagged(0), forgery)
    yield (
        f"{meaning} in two priority tags",
        framed(position.broadcast_link, frames.tagged(0, 0, service=True), forgery),
    )
    yield f"{meaning} behind LLC and SNAP", frames.snap(own.mac, BROADCAST, forgery, 0x0806)
    yield (
        f"{meaning} behind LLC, SNAP and a false length",
        frames.snap(own.mac, BROADCAST, forgery, 0x0806, length=3),
    )


def false_routers(position: Position) -> Iterator[tuple[str, Frame]]:
    """Yield Neighbor Discovery that only a router or an address's owner may send (NET-05).

    It is sent plain, behind extension headers and in fragments (RFC 6105, RFC 7113).
    """
    own, peer = position.sender, six_of(position.peer)
    link, head = Ether(src=own.mac, dst=frames.ALL_NODES_MAC), _to_all_nodes(str(own.link_local))
    router = frames.router_advertisement(own.mac)
    override = frames.neighbor_advertisement(peer, own.mac)
    for wrap, headers in extension_headers().items():
        yield f"a router advertisement{wrap}", framed(link, head, *headers, router, tail=frames.nd_option)
        told = _to_all_nodes(six_of(own))
        yield (
            f"an advertisement of its peer's address{wrap}",
            framed(link, told, *headers, override, tail=frames.nd_option),
        )
    defend = ICMPv6ND_NA(tgt=peer, R=0, S=0, O=1)
    yield "a denial of its peer's address", framed(link, _to_all_nodes(peer), defend, tail=frames.nd_option)
    aim = position.link / position.six(str(own.link_local), hops=255)
    yield (
        "a redirect to itself",
        framed(aim, frames.redirect(str(own.link_local), "2001:db8::1"), tail=frames.nd_option),
    )
    yield from _false_neighbors(position)


def _false_neighbors(position: Position) -> Iterator[tuple[str, Frame]]:
    """Yield Neighbor Discovery to a flow's end with false options, or about third parties."""
    own, peer, server = position.sender, six_of(position.peer), six_of(position.server)
    mac = invented_mac()
    meaning = "a solicitation with an invented MAC address"
    ask = frames.neighbor_solicitation(six_of(own), peer, mac)
    ask.src = own.mac
    yield meaning, framed(ask, tail=frames.nd_option)
    to_peer = position.link / position.six(hops=255)
    yield (
        f"{meaning} to its peer alone",
        framed(to_peer, frames.neighbor_question(peer, mac), tail=frames.nd_option),
    )
    ask = frames.neighbor_solicitation(peer, server, own.mac)
    yield "a solicitation in its peer's name", framed(ask, tail=frames.nd_option)
    told = frames.neighbor_advertisement(six_of(own), mac)
    yield "an advertisement with an invented MAC address", framed(to_peer, told, tail=frames.nd_option)
    told = frames.neighbor_advertisement(server, own.mac)
    yield "an advertisement of its network's address", framed(to_peer, told, tail=frames.nd_option)
    yield "a report that it listens to a group", framed(*frames.listener_report(own.mac, str(own.link_local)))


def _to_all_nodes(source: str) -> IPv6:
    return IPv6(src=source, dst=frames.ALL_NODES, hlim=255)
