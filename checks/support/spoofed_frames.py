"""Forgeries: frames that a tenant's guest must not get through, with sender and false claim."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, LLC, STP, Dot3, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from checks.support.attacker_positions import NOWHERE, NOWHERE6, Position, positions, six_of
from testbed.model.reachability import Endpoint
from testbed.verify.fleet import Fleet
from testbed.verify.probe import frames
from testbed.verify.probe.client import Probe
from testbed.verify.probe.frames import BROADCAST, Frame, framed

_STRANGERS, _STARVING = 300, 40
THEFT, STARVATION = 3, 4  # first octet of a DHCP or DHCPv6 transaction; controls use 1 and 2


@dataclass(frozen=True, slots=True)
class Forgery:
    """One frame with a false claim, or one that no guest may send.

    Args:
        control: id of the check that it belongs to.
        meaning: the false claim, in words.
        fields: `Probe.fields`, such as the number of repetitions.
        through: the guest at which it may arrive, since a flow leads there; it may go no further.
    """

    control: str
    mark: str
    sender: Endpoint
    meaning: str
    frame: Frame
    fields: Mapping[str, object] = field(default_factory=lambda: {"repeat": 2})
    through: str = ""

    @property
    def probe(self) -> Probe:
        """The probe that sends the frame."""
        return Probe(self.mark, self.sender, self.fields, self.frame)

    def __str__(self) -> str:
        return f"{self.sender.label}: {self.meaning}"


def forgeries(fleet: Fleet) -> list[Forgery]:
    """Return the forgeries of every guest."""
    return [forgery for position in positions(fleet) for forgery in of_position(position)]


def of_position(position: Position) -> Iterator[Forgery]:
    """Yield the forgeries from one position."""
    makers = {
        "NET-02": false_macs, "NET-03": false_resolutions, "NET-04": false_addresses, "NET-05": false_routers,
        "NET-06": false_servers, "NET-07": tagged_frames, "NET-08": tunnelled_frames, "NET-11": strays,
    }  # fmt: skip
    for control, make in makers.items():
        for number, (meaning, frame) in enumerate(make(position)):
            yield Forgery(
                control, f"x{control[4:]}s{position.number}n{number}", position.sender, meaning, frame
            )
    for number, (meaning, mac, frame) in enumerate(borrowed_macs(position)):
        fields = {"repeat": 2, "wears": mac}
        yield Forgery("NET-02", f"x02s{position.number}d{number}", position.sender, meaning, frame, fields)
    for number, (meaning, frame) in enumerate(source_routes(position)):
        yield Forgery(
            "NET-04",
            f"x04s{position.number}r{number}",
            position.sender,
            meaning,
            frame,
            through=position.peer.guest,
        )


def invented_mac() -> str:
    """Return a locally administered MAC address that no lab assigns."""
    return "0e:" + secrets.token_bytes(5).hex(":")


def false_macs(position: Position) -> Iterator[tuple[str, Frame]]:
    """Yield packets of an allowed flow with another source MAC address (NET-02)."""
    claimed = {
        "an invented MAC address": invented_mac(),
        "the receiver's MAC address": position.peer.mac,
        "another tenant's MAC address": position.stranger.mac,
        "a group's MAC address": "0f" + position.sender.mac[2:],
    }
    for meaning, mac in claimed.items():
        yield (
            f"a packet from {meaning}",
            framed(Ether(src=mac, dst=position.peer.mac), position.ip(), position.body()),
        )
        yield (
            f"an IPv6 packet from {meaning}",
            framed(Ether(src=mac, dst=position.peer.mac), position.six(), position.body6()),
        )


def borrowed_macs(position: Position) -> Iterator[tuple[str, str, Frame]]:
    """Yield the same from a MAC address that the guest set on its own interface (NET-02).

    The MAC address follows the meaning.
    """
    for meaning, mac in (("the receiver's", position.peer.mac), ("another tenant's", position.stranger.mac)):
        packet = framed(Ether(src=mac, dst=position.peer.mac), position.ip(), position.body())
        yield f"a packet from {meaning} MAC address, which its driver has taken on", mac, packet


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


def false_addresses(position: Position) -> Iterator[tuple[str, Frame]]:
    """Yield packets of an allowed flow with another source address (NET-04, RFC 2827)."""
    claimed = {
        "a free address of its network": position.free,
        "the network's own address": str(position.server.address),
        "the receiver's address": str(position.peer.address),
        "a management address": position.management,
        "an address of nowhere": NOWHERE,
        "no address": "0.0.0.0",  # noqa: S104 - a source address, no socket
    }
    for meaning, address in claimed.items():
        yield f"a packet from {meaning}", framed(position.link, position.ip(address), position.body())
    yield (
        "a fragment from a free address",
        framed(position.link, position.ip(position.free, flags="MF"), position.body()),
    )
    yield from _false_addresses6(position)


def _false_addresses6(position: Position) -> Iterator[tuple[str, Frame]]:
    claimed = {
        "a free address": position.free6,
        "the network's own address": six_of(position.server),
        "the receiver's address": six_of(position.peer),
        "another tenant's address": six_of(position.stranger),
        "an address of nowhere": NOWHERE6,
        "no address": "::",
    }
    if position.sender.address6:
        claimed["its own link-local address"] = str(position.sender.link_local)
    for meaning, address in claimed.items():
        if address != six_of(position.sender):
            yield (
                f"an IPv6 packet from {meaning}",
                framed(position.link, position.six(address), position.body6()),
            )
    for wrap, headers in _wraps().items():
        if wrap:
            layers = (position.link, position.six(position.free6), *headers, position.body6())
            yield f"an IPv6 packet from a free address{wrap}", framed(*layers)


def _wraps() -> dict[str, tuple[Packet, ...]]:
    """Return the headers that can precede an IPv6 payload, by a description."""
    return {
        "": (),
        " behind hop-by-hop options": (IPv6ExtHdrHopByHop(),),
        " behind destination options": (IPv6ExtHdrDestOpt(),),
        " in a fragment": (IPv6ExtHdrFragment(id=secrets.randbits(32)),),
    }


def source_routes(position: Position) -> Iterator[tuple[str, Frame]]:
    """Yield packets of an allowed flow with a route on to another tenant's guest.

    See NET-04, RFC 5095 and RFC 7126.
    """
    if position.protocol:
        for kind in ("loose", "strict"):
            packet = position.ip()
            packet.options = [frames.source_route(kind, str(position.stranger.address))]
            yield f"a packet with a {kind} source route", framed(position.link, packet, position.body())
        header = frames.routing_header(six_of(position.stranger))
        yield (
            "an IPv6 packet with a routing header",
            framed(position.link, position.six(), header, position.body6()),
        )


def false_routers(position: Position) -> Iterator[tuple[str, Frame]]:
    """Yield Neighbor Discovery that only a router or an address's owner may send (NET-05).

    It is sent plain, behind extension headers and in fragments (RFC 6105, RFC 7113).
    """
    own, peer = position.sender, six_of(position.peer)
    link, head = Ether(src=own.mac, dst=frames.ALL_NODES_MAC), _to_all_nodes(str(own.link_local))
    router = frames.router_advertisement(own.mac)
    override = frames.neighbor_advertisement(peer, own.mac)
    for wrap, headers in _wraps().items():
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


def false_servers(position: Position) -> Iterator[tuple[str, Frame]]:
    """Yield messages that only the network's DHCP server may send (NET-06)."""
    own, peer = position.sender, position.peer
    for meaning, server in (
        ("its own name", str(own.address)),
        ("its network's name", str(position.server.address)),
    ):
        offer = frames.dhcp_offer(server, position.free, peer)
        yield (
            f"a DHCP offer to everybody in {meaning}",
            framed(position.broadcast_link, IP(src=server, dst="255.255.255.255"), offer),
        )
        yield f"a DHCP offer to its peer in {meaning}", framed(position.link, position.ip(server), offer)
    names = {
        "": str(own.link_local),
        " from its own address": six_of(own),
        " in its network's name": six_of(position.server),
    }
    for meaning, server in names.items():
        yield (
            f"a DHCPv6 advertisement to its peer{meaning}",
            framed(position.link, position.six(server), frames.dhcp6_advertise()),
        )


def tagged_frames(position: Position) -> Iterator[tuple[str, Frame]]:
    """Yield packets of an allowed flow in VLAN tags, which no tenant's network uses (NET-07)."""
    tags = {
        "a priority tag": frames.tagged(0),
        "a VLAN tag": frames.tagged(1),
        "the highest VLAN tag": frames.tagged(4094),
        "two VLAN tags": frames.tagged(1, 2),
        "a service tag and a VLAN tag": frames.tagged(1, 2, service=True),
        "a service tag": frames.tagged(1, service=True),
    }
    for meaning, tag in tags.items():
        yield f"a packet in {meaning}", framed(position.link, tag, position.ip(), position.body())
        yield f"an IPv6 packet in {meaning}", framed(position.link, tag, position.six(), position.body6())


def tunnelled_frames(position: Position) -> Iterator[tuple[str, Frame]]:
    """Yield tunnelled frames for another tenant's guest, sent to the nodes' addresses (NET-08)."""
    inner = Ether(src=position.sender.mac, dst=position.stranger.mac) / IP(
        src=str(position.sender.address), dst=str(position.stranger.address)
    )
    tunnels = {
        "Geneve": UDP(sport=50000, dport=6081) / GENEVE(vni=position.key),
        "VXLAN": UDP(sport=50000, dport=4789) / VXLAN(vni=position.key),
    }
    own, other = str(position.sender.address), position.tunnels[0]
    for name, tunnel in tunnels.items():
        for node, address in enumerate(position.tunnels[:2]):
            for meaning, source, flags in (
                ("", own, ""),
                (" from a node's address", other, ""),
                (" in a fragment", own, "MF"),
            ):
                outer = IP(src=source, dst=address, flags=flags)
                yield (
                    f"{name} to node {node + 1}{meaning}",
                    framed(position.broadcast_link, outer, tunnel, inner, position.body()),
                )


def strays(position: Position) -> Iterator[tuple[str, Frame]]:
    """Yield frames for an unused MAC address, and frames of protocols between bridges (NET-11)."""
    unknown = Ether(src=position.sender.mac, dst=invented_mac())
    yield "a packet for an unknown MAC address", framed(unknown, position.ip(), position.body())
    bridges = Dot3(src=position.sender.mac, dst="01:80:c2:00:00:00")
    yield (
        "a bridge's spanning tree message",
        framed(bridges, LLC(dsap=0x42, ssap=0x42, ctrl=3), STP(rootid=0, bridgeid=0)),
    )
    for meaning, ethertype, last in (
        ("LLDP", 0x88CC, 0x0E),
        ("LACP", 0x8809, 0x02),
        ("EAPOL", 0x888E, 0x03),
        ("PAUSE", 0x8808, 0x01),
    ):
        yield (
            f"a message of {meaning}",
            framed(
                Ether(src=position.sender.mac, dst=f"01:80:c2:00:00:{last:02x}", type=ethertype), Raw(b"\1\1")
            ),
        )


def flood(position: Position) -> Probe:
    """Return a probe that sends frames from many MAC addresses, to fill MAC tables (NET-11)."""
    frame = framed(
        Ether(src=position.sender.mac, dst=BROADCAST, type=frames.TEST), tail=lambda _: Raw(b"flood")
    )
    return Probe(f"flood{position.number}", position.sender, {"copies": _STRANGERS}, frame)


def thefts(position: Position) -> list[Probe]:
    """Return DHCP requests for others' addresses, and for more addresses than exist (NET-06)."""
    victims = {item.mac: item for item in (position.peer, position.stranger)}.values()
    claims = [(victim, mac) for victim in victims for mac in (victim.mac, position.sender.mac)]
    found = []
    for number, (victim, mac) in enumerate(claims):
        transaction = THEFT << 24 | position.number << 8 | number
        client = bytes.fromhex(mac.replace(":", ""))
        question = frames.dhcp_discover(
            position.sender.mac, transaction, wanted=str(victim.address), client=client
        )
        found.append(Probe(f"theft{position.number}n{number}", position.sender, {"repeat": 2}, question))
    for number in range(_STARVING):
        transaction = STARVATION << 24 | position.number << 8 | number
        question = frames.dhcp_discover(
            position.sender.mac, transaction, client=b"\x0e" + secrets.token_bytes(5)
        )
        found.append(Probe(f"starve{position.number}n{number}", position.sender, {}, question))
    return found + (_thefts6(position, list(victims)) if position.sender.address6 else [])


def _thefts6(position: Position, victims: list[Endpoint]) -> list[Probe]:
    """Return the same requests to DHCPv6, whose transactions have 24 bits: kind, sender, number."""
    wanted = [
        (THEFT, bytes.fromhex(mac.replace(":", "")), six_of(victim))
        for victim in victims
        for mac in (victim.mac, position.sender.mac)
    ]
    wanted += [(STARVATION, b"\x0e" + secrets.token_bytes(5), "") for _ in range(_STARVING)]
    found = []
    for number, (kind, client, address) in enumerate(wanted):
        question = frames.dhcp6_solicit(
            position.sender, kind << 16 | position.number % 256 << 8 | number, client, address
        )
        found.append(
            Probe(
                f"six{kind}s{position.number}n{number}",
                position.sender,
                {"repeat": 2 if kind == THEFT else 1},
                question,
            )
        )
    return found
