"""Forgeries: frames that a tenant's guest must not get through, with sender and false claim."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import LLC, STP, Dot3, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from checks.support.attacker_positions import NOWHERE, NOWHERE6, Position, positions, six_of
from checks.support.spoofed_discovery import extension_headers, false_resolutions, false_routers, invented_mac
from testbed.model.reachability import Endpoint
from testbed.verify.fleet import Fleet
from testbed.verify.probe import frames
from testbed.verify.probe.client import Probe
from testbed.verify.probe.frames import BROADCAST, Frame, framed

_STRANGERS = 300  # MAC addresses of a flood


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
    for wrap, headers in extension_headers().items():
        if wrap:
            layers = (position.link, position.six(position.free6), *headers, position.body6())
            yield f"an IPv6 packet from a free address{wrap}", framed(*layers)


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
