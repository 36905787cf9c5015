"""The services of machines that each site may reach: the oracle for infrastructure (NET-09).

Pure. Derived from the topology alone and not from the firewall's rules, so that a mistake in those is not
repeated here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from itertools import product

from testbed.model.cell import Question, link_local
from testbed.model.topology import LabNetwork, Plane, Role, Topology

SSH, NORTHBOUND, SOUTHBOUND, KEYS, GENEVE, VXLAN, UNUSED = 22, 6641, 6642, 500, 6081, 4789, 7
WITHOUT_PORT = ("arp", "icmp", "nd", "icmp6")
_FIRST_FREE = 2  # of the host numbers that a lab leaves unassigned: 2 to 9 of each infrastructure network

Socket = tuple[str, int]


class EndpointOwner(StrEnum):
    """The owner of an address on an infrastructure network."""

    ROGUE = "rogue"
    OUTER = "outer"
    CONTROLLER = "controller"
    NODE = "node"


@dataclass(frozen=True, slots=True, order=True)
class InfraEndpoint:
    """An address on an infrastructure network, and its owner.

    Args:
        mac: empty for the outer machine's end, which the kernel names.

    """

    name: str
    stand: EndpointOwner
    plane: Plane
    mac: str
    address: IPv4Address

    @property
    def label(self) -> str:
        """Name of the site, unique in the lab."""
        return f"{self.name}@{self.plane}"

    @property
    def link_local(self) -> IPv6Address:
        """The IPv6 link-local address that follows from its MAC address (RFC 4291, appendix A)."""
        return link_local(self.mac)


@dataclass(frozen=True, slots=True)
class ExposureCell(Question):
    """One question: may this site use that service of a machine?

    Args:
        target: the machine's interface that is probed.
        address: the destination: the interface's own address, or that of the machine on another
            plane.
        protocol: ``tcp`` and ``udp`` with a port, over IPv6 link-local with a 6; else one of `WITHOUT_PORT`.
        reason: why it is allowed or denied, for a reader.

    """

    source: InfraEndpoint
    target: InfraEndpoint
    address: IPv4Address
    protocol: str
    port: int | None
    allowed: bool
    reason: str

    @property
    def aim(self) -> str:
        """The target, and the address if it is not the target's own on that network."""
        return (
            self.target.label
            if self.address == self.target.address
            else f"{self.target.label} at {self.address}"
        )


def rogue(network: LabNetwork) -> InfraEndpoint:
    """Return the site of a host that does not belong to the fleet."""
    mac = f"0e:72:{network.network.network_address.packed.hex(':')}"
    return InfraEndpoint("rogue", EndpointOwner.ROGUE, network.plane, mac, network.network[_FIRST_FREE])


def machines(topology: Topology) -> tuple[InfraEndpoint, ...]:
    """Return every interface of every machine."""
    stands = {Role.CONTROLLER: EndpointOwner.CONTROLLER, Role.NODE: EndpointOwner.NODE}
    return tuple(
        InfraEndpoint(item.name, stands[item.role], nic.plane, nic.mac, nic.address)
        for item in topology.machines
        for nic in item.nics
    )


def outer(topology: Topology) -> tuple[InfraEndpoint, ...]:
    """Return the outer machine's own ends: the administrator's place."""
    return tuple(
        InfraEndpoint("outer", EndpointOwner.OUTER, item.plane, "", item.gateway)
        for item in topology.networks
        if item.gateway
    )


def contacts(
    topology: Topology, listening: Mapping[str, frozenset[Socket]] | None = None
) -> tuple[ExposureCell, ...]:
    """Return every question of a lab: from each site to each machine on its network.

    Rogue hosts also try a machine's addresses on other networks, through that machine.

    Args:
        listening: by machine, protocol and port of its sockets, as it lists them; beside those that every
            fleet has.

    """
    targets = machines(topology)
    sources = (*map(rogue, topology.networks), *outer(topology), *targets)
    found: list[ExposureCell] = []
    for source, target in product(sources, targets):
        if source.plane == target.plane and source.name != target.name:
            sockets = (listening or {}).get(target.name, frozenset())
            found += _direct(source, target, sockets)
            if source.stand is EndpointOwner.ROGUE:
                others = (
                    item.address
                    for item in targets
                    if item.name == target.name and item.plane != target.plane
                )
                found += [item for address in others for item in _crossing(source, target, address, sockets)]
    return tuple(found)


def _services(more: frozenset[Socket]) -> list[tuple[str, int | None]]:
    known = {("tcp", port) for port in (SSH, NORTHBOUND, SOUTHBOUND, UNUSED)} | {
        ("udp", port) for port in (KEYS, GENEVE, VXLAN, UNUSED)
    }
    return [*sorted(known | more)]


def _direct(source: InfraEndpoint, target: InfraEndpoint, more: frozenset[Socket]) -> Iterator[ExposureCell]:
    services = _services(more)
    six = [(f"{protocol}6", port) for protocol, port in services]
    for protocol, port in (*((name, None) for name in WITHOUT_PORT), *services, *six):
        yield ExposureCell(
            source, target, target.address, protocol, port, *_verdict(source, target, protocol, port)
        )


def _crossing(
    source: InfraEndpoint, target: InfraEndpoint, address: IPv4Address, more: frozenset[Socket]
) -> Iterator[ExposureCell]:
    for protocol, port in (("arp", None), ("icmp", None), *_services(more)):
        yield ExposureCell(
            source,
            target,
            address,
            protocol,
            port,
            False,
            "a machine answers for an address on that address's network only",
        )


def _verdict(
    source: InfraEndpoint, target: InfraEndpoint, protocol: str, port: int | None
) -> tuple[bool, str]:
    if protocol == "arp":
        return True, "neighbours on a network resolve one another"
    if protocol.endswith("6") or protocol == "nd":
        return False, "the fleet's machines speak no IPv6"
    offered = {
        (EndpointOwner.OUTER, Plane.MANAGEMENT, target.stand, "tcp", SSH): "the administrator logs in",
        (
            EndpointOwner.OUTER,
            Plane.MANAGEMENT,
            EndpointOwner.CONTROLLER,
            "tcp",
            NORTHBOUND,
        ): "the administrator declares the tenants' networks",
        (
            EndpointOwner.NODE,
            Plane.MANAGEMENT,
            EndpointOwner.CONTROLLER,
            "tcp",
            SOUTHBOUND,
        ): "nodes learn what to do",
        (EndpointOwner.NODE, Plane.FABRIC, EndpointOwner.NODE, "udp", KEYS): "nodes exchange keys",
        (
            EndpointOwner.NODE,
            Plane.FABRIC,
            EndpointOwner.NODE,
            "udp",
            GENEVE,
        ): "nodes carry tenants' networks to one another",
    }
    reason = offered.get((source.stand, source.plane, target.stand, protocol, port or 0))
    return reason is not None, reason or f"nothing that {target.name} offers to {source.name}"
