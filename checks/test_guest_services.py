"""Services that the fleet offers to guests: an exact list, requested by guests (NET-10)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DUID_LL, DHCP6_Solicit, DHCP6OptClientId
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_RS, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from checks.support.attacker_positions import NOWHERE6, Position, positions, six_of
from checks.support.breaches import acl_breach, controller, has_six, shell_breach, six_sender, switch, where
from testbed.errors import InstrumentError
from testbed.model.exposure import contacts
from testbed.model.reachability import Endpoint
from testbed.plan.ovn_acls import Acl
from testbed.verify.attackers.service_scan import listening
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet
from testbed.verify.observation.arrivals import Observation
from testbed.verify.observation.observe import observe
from testbed.verify.probe import frames
from testbed.verify.probe.client import Probe
from testbed.verify.probe.frames import Frame, framed
from testbed.verify.witnesses.dhcp_answers import Offer, read_offer

METADATA, METADATA6 = "169.254.169.254", "fd00:ec2::254"  # address of the metadata service in clouds
_ASKED = {"tcp": (53, 80, 443), "udp": (53, 67, 69, 123, 161, 547, 5353)}
_BEFORE, _AFTER, _MALFORMED = (
    5,
    6,
    7,
)  # first octet of a DHCP transaction; others are in checks/support/spoofed_frames.py
_SUBNET, _MTU, _LEASE, _KIND, _SERVER = 1, 26, 51, 53, 54  # options of DHCP, RFC 2132
_OFFER = 2
_TOLD = {_SUBNET: 4, _MTU: 2, _LEASE: 4, _KIND: 1, _SERVER: 4}  # octets
_CLIENT6, _SERVER6, _ADDRESS6 = 1, 2, 3  # options of DHCPv6, RFC 8415
_TOLD6 = {
    _CLIENT6: 10,
    _SERVER6: 10,
    _ADDRESS6: 40,
}  # octets: identifiers by hardware address, and one address


def _names(context: BreachContext) -> str:
    """Return a DNS record by which a switch would publish another tenant's guest."""
    source = context.sender.guest
    other = next((guest for guest in context.topology.guests if guest.tenant != source.tenant), source)
    return f"{other.name}.{other.tenant}={other.nics[0].address}"


def _of(network: str, mark: str = "switch") -> str:
    return f"$(ovn-nbctl --bare --columns=_uuid find dhcp_options external_ids:{mark}={network})"


def _six(context: BreachContext) -> str:
    return _of(six_sender(context).network, "switch6")


_RECORDS = "$(ovn-nbctl --bare --columns=_uuid find dns external_ids:breach=names)"


@check(
    id="NET-10",
    objective=(
        "Guests are offered an address by their network's DHCP and nothing else, whatever they ask and "
        "whomever they ask"
    ),
    severity="high",
    effect=Effect.PROBES,
    breaches=(
        acl_breach(
            "a rule answers what it refuses",
            lambda context: (Acl("from-lport", 2000, f"ip4.dst == {_server(context)} && tcp", "reject"),),
        ),
        shell_breach(
            "a network resolves the names of another tenant",
            opens=lambda context: (
                f"ovn-nbctl --wait=hv --id=@names create dns records:{_names(context)} "
                "external_ids:breach=names "
                f"-- add logical_switch {switch(context)} dns_records @names -- acl-add {switch(context)} "
                "from-lport 2000 'udp.dst == 53' allow"
            ),
            closes=lambda context: (
                f"ovn-nbctl acl-del {switch(context)} from-lport 2000 'udp.dst == 53'; "
                f"ovn-nbctl clear logical_switch {switch(context)} dns_records; for row in {_RECORDS}; do "
                "ovn-nbctl destroy dns $row; done; "
                "ovn-nbctl --wait=hv sync"
            ),
            shows=lambda context: (
                f"{{ ovn-nbctl get logical_switch {switch(context)} dns_records; ovn-nbctl acl-list "
                f"{switch(context)}; }} "
                "| grep -qE '^.[0-9a-f]{8}-|udp.dst == 53'"
            ),
            where=controller,
        ),
        shell_breach(
            "DHCP names a router, through which guests ask for metadata",
            opens=lambda context: (
                f"ovn-nbctl --wait=hv set dhcp_options {_of(switch(context))} options:router={METADATA}"
            ),
            closes=lambda context: (
                f"ovn-nbctl --wait=hv remove dhcp_options {_of(switch(context))} options router"
            ),
            shows=lambda context: f"ovn-nbctl get dhcp_options {_of(switch(context))} options:router",
            where=controller,
        ),
        *where(
            has_six,
            shell_breach(
                "DHCPv6 names a name server",
                opens=lambda context: (
                    f"ovn-nbctl --wait=hv set dhcp_options {_six(context)} "
                    f"options:dns_server='\"{NOWHERE6}\"'"
                ),
                closes=lambda context: (
                    f"ovn-nbctl --wait=hv remove dhcp_options {_six(context)} options dns_server"
                ),
                shows=lambda context: f"ovn-nbctl get dhcp_options {_six(context)} options:dns_server",
                where=controller,
            ),
        ),
    ),
)
def test_guests_are_offered_an_exact_list(fleet: Fleet) -> None:
    asked = fleet.observe_once("offers", lambda: _ask(fleet))
    extra = sorted(
        {
            text
            for position in asked.positions
            for text in _beyond(position, asked.offers[position.sender.label])
        }
    )
    assert not extra, f"{len(extra)} things are offered beyond DHCP: {'; '.join(extra[:6])}"
    mute = [position.sender.label for position in asked.positions if not asked.answered(position, _AFTER)]
    assert not mute, f"after malformed questions DHCP answers no more: {', '.join(mute)}"


def _server(context: BreachContext) -> str:
    one = context.sender
    return str(context.topology.tenant(one.guest.tenant).network(one.nic.network).server)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The offers that guests received after requests for every service, by interface."""

    positions: list[Position]
    offers: dict[str, list[Offer]]

    def answered(self, position: Position, stage: int) -> bool:
        """Return whether DHCP answered the valid request of a stage.

        So must DHCPv6, if the guest has IPv6.
        """
        wanted = {
            f"{_transaction(stage, position):08x}",
            *([f"{_transaction6(stage, position):06x}"] if position.sender.address6 else []),
        }
        return wanted <= {offer.transaction for offer in self.offers[position.sender.label]}


def _ask(fleet: Fleet) -> _Asked:
    found = positions(fleet)
    sockets = {socket for sockets in listening(fleet).values() for socket in sockets}
    sockets |= {
        (cell.protocol, cell.port)
        for cell in contacts(fleet.topology)
        if cell.protocol in ("tcp", "udp") and cell.port
    }
    sockets |= {(protocol, port) for protocol, ports in _ASKED.items() for port in ports}
    names = {name for guest in fleet.topology.guests for name in (guest.name, f"{guest.name}.{guest.tenant}")}
    probes = [probe for position in found for probe in _questions(position, sorted(sockets), sorted(names))]
    observation = observe(fleet, probes, strays=True)
    asked = _Asked(
        found, {position.sender.label: _offers(observation, position.sender) for position in found}
    )
    deaf = [position.sender.label for position in found if not asked.answered(position, _BEFORE)]
    if deaf:
        raise InstrumentError(
            "DHCP does not answer to begin with", fact=", ".join(deaf), remedy="run `testbed status`"
        )
    return asked


def _offers(observation: Observation, own: Endpoint) -> list[Offer]:
    strays = [item for item in observation.strays[own.guest] if item.get("label") == own.interface]
    return [read_offer(bytes.fromhex(str(item.get("frame", "")))) for item in strays]


def _transaction(stage: int, position: Position) -> int:
    return stage << 24 | position.number


def _transaction6(stage: int, position: Position) -> int:
    return stage << 16 | position.number


def _questions(position: Position, sockets: list[tuple[str, int]], names: list[str]) -> Iterator[Probe]:
    """Yield valid DHCP requests before and after requests for everything else."""
    own, number = position.sender, position.number
    yield from _honest(position, _BEFORE)
    asked = [*_scan(position, sockets), *_resolve(position, names), *_malformed(position)]
    if own.address6:
        asked += [*_scan6(position, sockets), *_malformed6(position)]
    for place, frame in enumerate(asked):
        yield Probe(f"q{number}n{place}", own, {}, frame)
    yield from _honest(position, _AFTER)


def _honest(position: Position, stage: int) -> Iterator[Probe]:
    own, mark = position.sender, f"q{position.number}s{stage}"
    yield Probe(
        f"{mark}four", own, {"repeat": 3}, frames.dhcp_discover(own.mac, _transaction(stage, position))
    )
    if own.address6:
        client = bytes.fromhex(own.mac.replace(":", ""))
        yield Probe(
            f"{mark}six",
            own,
            {"repeat": 3},
            frames.dhcp6_solicit(own, _transaction6(stage, position), client),
        )


def _scan(position: Position, sockets: list[tuple[str, int]]) -> Iterator[Frame]:
    """Yield frames for each service at the network's server and at clouds' metadata address."""
    link = Ether(src=position.sender.mac, dst=position.server.mac)
    for address in (str(position.server.address), METADATA):
        packet = IP(src=str(position.sender.address), dst=address)
        for protocol, port in sockets:
            yield framed(link, packet, frames.syn(port) if protocol == "tcp" else frames.datagram(port))
        yield framed(link, packet, ICMP(id=secrets.randbits(16)))
        yield framed(position.broadcast_link, frames.arp_request(position.sender, address))


def _scan6(position: Position, sockets: list[tuple[str, int]]) -> Iterator[Frame]:
    """Yield the same over IPv6, and requests for routers, the server's MAC and name servers."""
    own, server = position.sender, position.server
    link = Ether(src=own.mac, dst=server.mac)
    for address in (six_of(server), METADATA6):
        packet = IPv6(src=six_of(own), dst=address)
        for protocol, port in sockets:
            yield framed(link, packet, frames.syn(port) if protocol == "tcp" else frames.datagram(port))
        yield framed(link, packet, ICMPv6EchoRequest(id=secrets.randbits(16)))
    yield framed(frames.neighbor_solicitation(six_of(own), six_of(server), own.mac), tail=frames.nd_option)
    routers = Ether(src=own.mac, dst="33:33:00:00:00:02") / IPv6(
        src=str(own.link_local), dst="ff02::2", hlim=255
    )
    yield framed(routers, ICMPv6ND_RS(), tail=frames.nd_option)
    yield frames.dhcp6_question(own, _transaction6(_MALFORMED, position))


def _malformed6(position: Position) -> Iterator[Frame]:
    """Yield DHCPv6 requests with one violation of the protocol each (RFC 8415)."""
    client = bytes(DHCP6OptClientId(duid=DUID_LL(lladdr=position.sender.mac)))
    kind = bytes(DHCP6_Solicit(trid=_transaction6(_MALFORMED, position)))
    for text in (
        kind[:2],
        kind,
        kind + b"\xff" * 64,
        b"\2" + kind[1:] + client,
        kind + client + b"\0\3\xff\xff",
        kind + b"\0\1\0\0" * 100,
    ):
        yield _alone(frames.to_dhcp6(position.sender) / Raw(text))


def _resolve(position: Position, names: list[str]) -> Iterator[Frame]:
    """Yield queries for the names of all guests, to the server, metadata address and neighbours."""
    server, source = position.server, str(position.sender.address)
    places = (
        (server.mac, str(server.address), 53),
        (server.mac, METADATA, 53),
        ("01:00:5e:00:00:fb", "224.0.0.251", 5353),
    )
    for (mac, address, port), name in product(places, names):
        packet = Ether(src=position.sender.mac, dst=mac) / IP(src=source, dst=address) / frames.datagram(port)
        yield _alone(packet / DNS(id=secrets.randbits(16), rd=1, qd=DNSQR(qname=name)))


def _malformed(position: Position) -> Iterator[Frame]:
    """Yield DHCP requests with one violation of the protocol each (RFC 2131, RFC 2132)."""
    head = (
        Ether(src=position.sender.mac, dst=frames.BROADCAST)
        / IP(src="0.0.0.0", dst="255.255.255.255")  # noqa: S104 - a frame is no socket
        / UDP(sport=68, dport=67)
    )
    client = bytes.fromhex(position.sender.mac.replace(":", ""))
    boot = BOOTP(chaddr=client, xid=_transaction(_MALFORMED, position), flags=0x8000)
    cookie, kind = bytes((99, 130, 83, 99)), bytes((53, 1, 1))
    yield _alone(head / Raw(bytes(boot)[:40]))
    yield _alone(head / Raw(bytes(boot)))
    yield _alone(
        head
        / BOOTP(chaddr=client, hlen=255, xid=boot.xid)
        / DHCP(options=[("message-type", "discover"), "end"])
    )
    yield _alone(
        head / BOOTP(op=2, chaddr=client, xid=boot.xid) / DHCP(options=[("message-type", "discover"), "end"])
    )
    for options in (
        kind,
        kind + bytes((55, 255, 1)),
        bytes((53, 0, 255)),
        bytes((53, 200, 1)),
        kind + bytes((50, 0)) * 300,
        b"\xff" * 600,
    ):
        yield _alone(head / Raw(bytes(boot)[:236] + cookie + options))
    yield _alone(head / Raw(bytes(boot)[:236] + b"\0\0\0\0" + kind))


def _alone(packet: Packet) -> Frame:
    """Return a frame without a token, since its answer would not repeat it."""
    text = bytes(packet)
    return lambda _: text


def _beyond(position: Position, offers: list[Offer]) -> Iterator[str]:
    """Yield the offers to a guest beyond an address from its network's server."""
    server, label = position.server, position.sender.label
    told, exact = {"DHCP": _TOLD, "DHCPv6": _TOLD6}, {
        ("DHCP", _SERVER): server.address.packed,
        ("DHCP", _KIND): bytes((_OFFER,)),
        ("DHCPv6", _SERVER6): bytes((0, 3, 0, 1)) + bytes.fromhex(server.mac.replace(":", "")),
    }  # fmt: skip
    for offer in offers:
        if (offer.service, offer.source) not in (
            ("DHCP", str(server.address)),
            ("DHCPv6", str(server.link_local)),
        ):
            yield f"{label}: {offer.service} from {offer.source or 'an unnamed source'}"
        for code, value in offer.options:
            if (
                len(value) != told[offer.service].get(code)
                or exact.get((offer.service, code), value) != value
            ):
                yield f"{label}: {offer.service} option {code} ({value[:40].hex()})"
