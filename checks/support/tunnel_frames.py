"""Frames of tenants' networks as nodes carry them to one another, and as a stranger on the fabric would
(NET-08).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from testbed.model.exposure import GENEVE as GENEVE_PORT
from testbed.model.exposure import UNUSED, Site, machines
from testbed.model.exposure import VXLAN as VXLAN_PORT
from testbed.model.reachability import Endpoint, endpoints
from testbed.model.subjects import ordered
from testbed.model.topology import AllowedFlow, Plane
from testbed.untrusted import bounded_json
from testbed.verify.fleet import Fleet
from testbed.verify.observation.declared_flows import body
from testbed.verify.probe.client import broken
from testbed.verify.probe.tokens import Tokens

_CLASS, _TYPE = (
    0x0102,
    0x80,
)  # OVN's Geneve option: keys of the logical ports that a frame comes from and goes to
_PIECE = 48  # octets of a fragment


@dataclass(frozen=True, slots=True)
class Inner:
    """A frame of a tenant's network as tunnels carry it.

    Args:
        mark: part of its marks; tells it from the others.
        node: where the tunnel ends; its receiver is there, unless no guest is.
        flows: whether the topology allows it, so that nothing but the tunnel's wall can stop it.
        key: tunnel key of the network.
        ports: keys of the logical ports that it comes from and goes to.

    """

    mark: str
    node: str
    source: Endpoint
    target: Endpoint
    protocol: str
    port: int
    flows: bool
    key: int
    ports: tuple[int, int]

    def frame(self, token: bytes) -> Packet:
        """Return it: a packet of a flow."""
        packet = IP(src=str(self.source.address), dst=str(self.target.address)) / body(
            self.protocol, self.port
        )
        return Ether(src=self.source.mac, dst=self.target.mac) / packet / Raw(token)

    def geneve(self, token: bytes) -> Packet:
        """Return it as OVN carries it (RFC 8926, ovn-architecture(7))."""
        ports = GeneveOptions(
            classid=_CLASS, type=_TYPE, length=1, data=b"".join(key.to_bytes(2) for key in self.ports)
        )
        return GENEVE(vni=self.key, critical=1, options=[ports]) / self.frame(token)


@dataclass(frozen=True, slots=True)
class Injection:
    """Frames that a host on the fabric sends to a node.

    Args:
        source: the address that they claim to come from.
        port: where they go.

    """

    mark: str
    meaning: str
    node: str
    source: str
    target: str
    port: int
    packets: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"{self.meaning} to {self.node}"


def inners(fleet: Fleet) -> Iterator[Inner]:
    """Yield a frame for each tenant's network on each node: of an allowed flow, if there is one, from
    elsewhere if possible.

    A node without guests gets a frame for a guest of another one.
    """
    lab, keys = fleet.testbed, _port_keys(fleet)
    places = {guest.label: guest.node for guest in lab.guests}
    ports = {nic.mac: nic.port for guest in lab.guests for nic in guest.nics}
    networks = {network.label: network.key for network in lab.switches()}
    number = 0
    for node in lab.nodes:
        for source, target, protocol, port, flows in _aims(endpoints(lab), ordered(lab), places, node.name):
            own = (keys[ports[source.mac]], keys[ports[target.mac]])
            yield Inner(
                f"g{number}", node.name, source, target, protocol, port, flows, networks[target.network], own
            )
            number += 1


def _aims(
    everyone: Sequence[Endpoint],
    flows: Sequence[tuple[AllowedFlow, Endpoint, Endpoint]],
    places: Mapping[str, str],
    node: str,
) -> Iterator[tuple[Endpoint, Endpoint, str, int, bool]]:
    """Yield source, target, protocol and port of what is injected into a node, and whether a flow is declared
    for it.
    """
    here = [item for item in everyone if places[item.guest] == node]
    for network in dict.fromkeys(item.network for item in here):
        targets = [item for item in here if item.network == network]
        open_ = [flow for flow in flows if flow[2] in targets]
        elsewhere = [flow for flow in open_ if places[flow[1].guest] != node]
        for flow, source, target in elsewhere or open_:
            yield source, target, flow.protocol, flow.port or 0, True
        if not open_:
            yield _other(everyone, targets[0]), targets[0], "tcp", UNUSED, False
    if not here:
        yield _other(everyone, everyone[0]), everyone[0], "tcp", UNUSED, False


def _other(everyone: Sequence[Endpoint], one: Endpoint) -> Endpoint:
    return next((item for item in everyone if item.network == one.network and item != one), one)


def _port_keys(fleet: Fleet) -> dict[str, int]:
    """Return the tunnel key of each logical port, as the southbound database has it."""
    text = fleet.machines[fleet.testbed.controller.name].read(
        "ovn-sbctl --format=json --columns=logical_port,tunnel_key list Port_Binding"
    )
    try:
        return {str(name): int(key) for name, key in bounded_json.read(text)["data"]}
    except (ValueError, KeyError, TypeError) as error:
        raise broken(
            "the keys of logical ports cannot be read", f"{type(error).__name__}: {error}"
        ) from error


def injections(fleet: Fleet, stranger: Site, inner: list[Inner], tokens: Tokens) -> Iterator[Injection]:
    """Yield every frame in every disguise."""
    sites = {site.name: site for site in machines(fleet.testbed) if site.plane is Plane.FABRIC}
    for item in inner:
        node = sites[item.node]
        peer = next(site for site in sites.values() if site.name != node.name)
        ways = {
            "a": ("from its own address", stranger.address, False),
            "b": ("from a peer's address", peer.address, False),
            "c": ("from a peer's address, in fragments", peer.address, True),
        }
        for letter, (meaning, source, pieces) in ways.items():
            for name, port in (("Geneve", GENEVE_PORT), ("VXLAN", VXLAN_PORT)):
                mark = f"{item.mark}{letter}{name[0].lower()}"
                token = tokens.of(mark).encode()
                packet = _carried(item, token, str(source), str(node.address), port)
                parts: list[Packet] = packet.fragment(_PIECE) if pieces else [packet]
                octets = tuple(bytes(Ether(src=stranger.mac, dst=node.mac) / part) for part in parts)
                yield Injection(
                    mark,
                    f"{name} for {item.target.label} {meaning}",
                    node.name,
                    str(source),
                    str(node.address),
                    port,
                    octets,
                )


def _carried(item: Inner, token: bytes, source: str, target: str, port: int) -> Packet:
    """Return a frame in a tunnel, from an address to a node."""
    tunnel = item.geneve(token) if port == GENEVE_PORT else VXLAN(vni=item.key, flags=8) / item.frame(token)
    return (
        IP(src=source, dst=target, id=secrets.randbits(16))
        / UDP(sport=40000 + secrets.randbelow(20000), dport=port)
        / tunnel
    )
