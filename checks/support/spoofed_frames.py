"""Frames that a tenant's guest must not get through: who sends them, and what is false about them."""

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

from checks.support.attacker_positions import NOWHERE, NOWHERE6, Scene, scenes, six_of
from testbed.model.reachability import Endpoint
from testbed.verify.fleet import Fleet
from testbed.verify.probe import frames
from testbed.verify.probe.client import Probe
from testbed.verify.probe.frames import BROADCAST, Frame, framed

_STRANGERS, _STARVING = 300, 40
THEFT, STARVATION = 3, 4  # first octet of a DHCP or DHCPv6 transaction; controls use 1 and 2


@dataclass(frozen=True, slots=True)
class Forgery:
    """One frame that lies, or that no guest may send.

    Args:
        control: id of the check that it belongs to.
        meaning: what is false about it, in words.
        fields: how often it is sent; what `Probe.fields` says.
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
        """What is sent."""
        return Probe(self.mark, self.sender, self.fields, self.frame)

    def __str__(self) -> str:
        return f"{self.sender.label}: {self.meaning}"


def forgeries(fleet: Fleet) -> list[Forgery]:
    """Return every frame that every guest tries to get through."""
    return [lie for scene in scenes(fleet) for lie in of_scene(scene)]


def of_scene(scene: Scene) -> Iterator[Forgery]:
    """Yield every frame that the sender of a scene tries to get through."""
    makers = {
        "NET-02": false_macs, "NET-03": false_resolutions, "NET-04": false_addresses, "NET-05": false_routers,
        "NET-06": false_servers, "NET-07": tagged_frames, "NET-08": tunnelled_frames, "NET-11": strays,
    }  # fmt: skip
    for control, make in makers.items():
        for number, (meaning, frame) in enumerate(make(scene)):
            yield Forgery(control, f"x{control[4:]}s{scene.number}n{number}", scene.sender, meaning, frame)
    for number, (meaning, mac, frame) in enumerate(borrowed_macs(scene)):
        fields = {"repeat": 2, "wears": mac}
        yield Forgery("NET-02", f"x02s{scene.number}d{number}", scene.sender, meaning, frame, fields)
    for number, (meaning, frame) in enumerate(source_routes(scene)):
        yield Forgery(
            "NET-04", f"x04s{scene.number}r{number}", scene.sender, meaning, frame, through=scene.peer.guest
        )


def invented_mac() -> str:
    """Return a locally administered MAC address that no lab gives to anybody."""
    return "0e:" + secrets.token_bytes(5).hex(":")


def false_macs(scene: Scene) -> Iterator[tuple[str, Frame]]:
    """Yield packets of an allowed flow from a MAC address that is not the sender's (NET-02)."""
    lies = {
        "an invented MAC address": invented_mac(),
        "the receiver's MAC address": scene.peer.mac,
        "another tenant's MAC address": scene.stranger.mac,
        "a group's MAC address": "0f" + scene.sender.mac[2:],
    }
    for meaning, mac in lies.items():
        yield f"a packet from {meaning}", framed(Ether(src=mac, dst=scene.peer.mac), scene.ip(), scene.body())
        yield (
            f"an IPv6 packet from {meaning}",
            framed(Ether(src=mac, dst=scene.peer.mac), scene.six(), scene.body6()),
        )


def borrowed_macs(scene: Scene) -> Iterator[tuple[str, str, Frame]]:
    """Yield the same from a MAC address that the guest's own driver has given to its device, and that address
    (NET-02).
    """
    for meaning, mac in (("the receiver's", scene.peer.mac), ("another tenant's", scene.stranger.mac)):
        packet = framed(Ether(src=mac, dst=scene.peer.mac), scene.ip(), scene.body())
        yield f"a packet from {meaning} MAC address, which its driver has taken on", mac, packet


def false_resolutions(scene: Scene) -> Iterator[tuple[str, Frame]]:
    """Yield ARP that lies about its sender, plain and in every encapsulation (NET-03, CERT/CC VU#855201)."""
    own, server, peer = scene.sender, str(scene.server.address), scene.peer
    yield (
        "an ARP reply with an invented MAC address",
        framed(scene.shout, frames.arp_reply(invented_mac(), str(own.address), peer)),
    )
    yield (
        "an ARP reply in its peer's name",
        framed(scene.shout, frames.arp_reply(own.mac, str(peer.address), peer)),
    )
    ask = ARP(op=1, hwsrc=own.mac, psrc=server, hwdst="00:00:00:00:00:00", pdst=str(peer.address))
    yield "an ARP request in its network's name", framed(scene.shout, ask)
    lie = frames.arp_reply(own.mac, server, peer)
    meaning = "an ARP reply in its network's name"
    yield meaning, framed(scene.shout, lie)
    yield f"{meaning} in a priority tag", framed(scene.shout, frames.tagged(0), lie)
    yield f"{meaning} in two priority tags", framed(scene.shout, frames.tagged(0, 0, service=True), lie)
    yield f"{meaning} behind LLC and SNAP", frames.snap(own.mac, BROADCAST, lie, 0x0806)
    yield (
        f"{meaning} behind LLC, SNAP and a false length",
        frames.snap(own.mac, BROADCAST, lie, 0x0806, length=3),
    )


def false_addresses(scene: Scene) -> Iterator[tuple[str, Frame]]:
    """Yield packets of an allowed flow from an address that is not the sender's (NET-04, RFC 2827)."""
    lies = {
        "a free address of its network": scene.free,
        "the network's own address": str(scene.server.address),
        "the receiver's address": str(scene.peer.address),
        "a management address": scene.management,
        "an address of nowhere": NOWHERE,
        "no address": "0.0.0.0",  # noqa: S104 - sent, not bound to
    }
    for meaning, address in lies.items():
        yield f"a packet from {meaning}", framed(scene.link, scene.ip(address), scene.body())
    yield "a fragment from a free address", framed(scene.link, scene.ip(scene.free, flags="MF"), scene.body())
    yield from _false_addresses6(scene)


def _false_addresses6(scene: Scene) -> Iterator[tuple[str, Frame]]:
    lies = {
        "a free address": scene.free6,
        "the network's own address": six_of(scene.server),
        "the receiver's address": six_of(scene.peer),
        "another tenant's address": six_of(scene.stranger),
        "an address of nowhere": NOWHERE6,
        "no address": "::",
    }
    if scene.sender.address6:
        lies["its own link-local address"] = str(scene.sender.link_local)
    for meaning, address in lies.items():
        if address != six_of(scene.sender):
            yield f"an IPv6 packet from {meaning}", framed(scene.link, scene.six(address), scene.body6())
    for wrap, headers in _wraps().items():
        if wrap:
            layers = (scene.link, scene.six(scene.free6), *headers, scene.body6())
            yield f"an IPv6 packet from a free address{wrap}", framed(*layers)


def _wraps() -> dict[str, tuple[Packet, ...]]:
    """Return what can stand between an IPv6 header and what it carries, by words that say so."""
    return {
        "": (),
        " behind hop-by-hop options": (IPv6ExtHdrHopByHop(),),
        " behind destination options": (IPv6ExtHdrDestOpt(),),
        " in a fragment": (IPv6ExtHdrFragment(id=secrets.randbits(32)),),
    }


def source_routes(scene: Scene) -> Iterator[tuple[str, Frame]]:
    """Yield packets of an allowed flow that ask their receiver to pass them on to another tenant's guest
    (NET-04, RFC 5095, RFC 7126).
    """
    if scene.protocol:
        for kind in ("loose", "strict"):
            packet = scene.ip()
            packet.options = [frames.source_route(kind, str(scene.stranger.address))]
            yield f"a packet with a {kind} source route", framed(scene.link, packet, scene.body())
        header = frames.routing_header(six_of(scene.stranger))
        yield "an IPv6 packet with a routing header", framed(scene.link, scene.six(), header, scene.body6())


def false_routers(scene: Scene) -> Iterator[tuple[str, Frame]]:
    """Yield Neighbor Discovery that only a router or an address's owner may send, plain and wrapped (NET-05,
    RFC 6105, RFC 7113).
    """
    own, peer = scene.sender, six_of(scene.peer)
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
    aim = scene.link / scene.six(str(own.link_local), hops=255)
    yield (
        "a redirect to itself",
        framed(aim, frames.redirect(str(own.link_local), "2001:db8::1"), tail=frames.nd_option),
    )
    yield from _false_neighbors(scene)


def _false_neighbors(scene: Scene) -> Iterator[tuple[str, Frame]]:
    """Yield Neighbor Discovery between the ends of a flow that lies in its options alone, or about third
    parties.
    """
    own, peer, server = scene.sender, six_of(scene.peer), six_of(scene.server)
    mac = invented_mac()
    meaning = "a solicitation with an invented MAC address"
    ask = frames.neighbor_solicitation(six_of(own), peer, mac)
    ask.src = own.mac
    yield meaning, framed(ask, tail=frames.nd_option)
    to_peer = scene.link / scene.six(hops=255)
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


def false_servers(scene: Scene) -> Iterator[tuple[str, Frame]]:
    """Yield what only the network's DHCP may send (NET-06)."""
    own, peer = scene.sender, scene.peer
    for meaning, server in (
        ("its own name", str(own.address)),
        ("its network's name", str(scene.server.address)),
    ):
        offer = frames.dhcp_offer(server, scene.free, peer)
        yield (
            f"a DHCP offer to everybody in {meaning}",
            framed(scene.shout, IP(src=server, dst="255.255.255.255"), offer),
        )
        yield f"a DHCP offer to its peer in {meaning}", framed(scene.link, scene.ip(server), offer)
    names = {
        "": str(own.link_local),
        " from its own address": six_of(own),
        " in its network's name": six_of(scene.server),
    }
    for meaning, server in names.items():
        yield (
            f"a DHCPv6 advertisement to its peer{meaning}",
            framed(scene.link, scene.six(server), frames.dhcp6_advertise()),
        )


def tagged_frames(scene: Scene) -> Iterator[tuple[str, Frame]]:
    """Yield honest packets of an allowed flow in VLAN tags, which no tenant's network uses (NET-07)."""
    tags = {
        "a priority tag": frames.tagged(0),
        "a VLAN tag": frames.tagged(1),
        "the highest VLAN tag": frames.tagged(4094),
        "two VLAN tags": frames.tagged(1, 2),
        "a service tag and a VLAN tag": frames.tagged(1, 2, service=True),
        "a service tag": frames.tagged(1, service=True),
    }
    for meaning, tag in tags.items():
        yield f"a packet in {meaning}", framed(scene.link, tag, scene.ip(), scene.body())
        yield f"an IPv6 packet in {meaning}", framed(scene.link, tag, scene.six(), scene.body6())


def tunnelled_frames(scene: Scene) -> Iterator[tuple[str, Frame]]:
    """Yield frames for another tenant's guest in tunnels of the fabric, sent to where nodes take such frames
    (NET-08).
    """
    inner = Ether(src=scene.sender.mac, dst=scene.stranger.mac) / IP(
        src=str(scene.sender.address), dst=str(scene.stranger.address)
    )
    tunnels = {
        "Geneve": UDP(sport=50000, dport=6081) / GENEVE(vni=scene.key),
        "VXLAN": UDP(sport=50000, dport=4789) / VXLAN(vni=scene.key),
    }
    own, other = str(scene.sender.address), scene.tunnels[0]
    for name, tunnel in tunnels.items():
        for node, address in enumerate(scene.tunnels[:2]):
            for meaning, source, flags in (
                ("", own, ""),
                (" from a node's address", other, ""),
                (" in a fragment", own, "MF"),
            ):
                outer = IP(src=source, dst=address, flags=flags)
                yield (
                    f"{name} to node {node + 1}{meaning}",
                    framed(scene.shout, outer, tunnel, inner, scene.body()),
                )


def strays(scene: Scene) -> Iterator[tuple[str, Frame]]:
    """Yield frames for nobody's MAC address, and those of the protocols that bridges speak among themselves
    (NET-11).
    """
    unknown = Ether(src=scene.sender.mac, dst=invented_mac())
    yield "a packet for an unknown MAC address", framed(unknown, scene.ip(), scene.body())
    bridges = Dot3(src=scene.sender.mac, dst="01:80:c2:00:00:00")
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
                Ether(src=scene.sender.mac, dst=f"01:80:c2:00:00:{last:02x}", type=ethertype), Raw(b"\1\1")
            ),
        )


def flood(scene: Scene) -> Probe:
    """Return frames from many MAC addresses, to fill whatever learns them (NET-11)."""
    frame = framed(Ether(src=scene.sender.mac, dst=BROADCAST, type=frames.TEST), tail=lambda _: Raw(b"flood"))
    return Probe(f"flood{scene.number}", scene.sender, {"copies": _STRANGERS}, frame)


def thefts(scene: Scene) -> list[Probe]:
    """Return questions to DHCP for what is another's, and for more than there is (NET-06)."""
    victims = {item.mac: item for item in (scene.peer, scene.stranger)}.values()
    claims = [(victim, mac) for victim in victims for mac in (victim.mac, scene.sender.mac)]
    found = []
    for number, (victim, mac) in enumerate(claims):
        transaction = THEFT << 24 | scene.number << 8 | number
        client = bytes.fromhex(mac.replace(":", ""))
        question = frames.dhcp_discover(
            scene.sender.mac, transaction, wanted=str(victim.address), client=client
        )
        found.append(Probe(f"theft{scene.number}n{number}", scene.sender, {"repeat": 2}, question))
    for number in range(_STARVING):
        transaction = STARVATION << 24 | scene.number << 8 | number
        question = frames.dhcp_discover(
            scene.sender.mac, transaction, client=b"\x0e" + secrets.token_bytes(5)
        )
        found.append(Probe(f"starve{scene.number}n{number}", scene.sender, {}, question))
    return found + (_thefts6(scene, list(victims)) if scene.sender.address6 else [])


def _thefts6(scene: Scene, victims: list[Endpoint]) -> list[Probe]:
    """Return the same questions to DHCPv6, whose transactions have 24 bits: kind, sender, number."""
    wanted = [
        (THEFT, bytes.fromhex(mac.replace(":", "")), six_of(victim))
        for victim in victims
        for mac in (victim.mac, scene.sender.mac)
    ]
    wanted += [(STARVATION, b"\x0e" + secrets.token_bytes(5), "") for _ in range(_STARVING)]
    found = []
    for number, (kind, client, address) in enumerate(wanted):
        question = frames.dhcp6_solicit(
            scene.sender, kind << 16 | scene.number % 256 << 8 | number, client, address
        )
        found.append(
            Probe(
                f"six{kind}s{scene.number}n{number}",
                scene.sender,
                {"repeat": 2 if kind == THEFT else 1},
                question,
            )
        )
    return found
