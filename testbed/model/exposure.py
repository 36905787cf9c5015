"""What the machines of a fleet offer to whom: the oracle for everything under the tenants' networks (NET-09).

Pure. Derived from the topology alone and not from the firewall's rules, so that a mistake there is not
repeated here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from itertools import product

from testbed.model.cell import Question, link_local
from testbed.model.topology import LabNetwork, Plane, Role, Testbed

SSH, NORTHBOUND, SOUTHBOUND, KEYS, GENEVE, VXLAN, UNUSED = 22, 6641, 6642, 500, 6081, 4789, 7
WITHOUT_PORT = ("arp", "icmp", "nd", "icmp6")
_FIRST_FREE = 2  # of the hosts that a lab leaves to nobody: 2 to 9 of each infrastructure network

Socket = tuple[str, int]


class Stand(StrEnum):
    """Who stands at a site."""

    ROGUE = "rogue"
    OUTER = "outer"
    CONTROLLER = "controller"
    NODE = "node"


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """An address on an infrastructure network, and who has it.

    Args:
        mac: empty for the outer machine's end, which the kernel names.

    """

    name: str
    stand: Stand
    plane: Plane
    mac: str
    address: IPv4Address

    @property
    def label(self) -> str:
        """Name of the site, unique in the lab."""
        return f"{self.name}@{self.plane}"

    @property
    def link_local(self) -> IPv6Address:
        """The address that IPv6 would give it, made from its MAC address (RFC 4291, appendix A)."""
        return link_local(self.mac)


@dataclass(frozen=True, slots=True)
class Contact(Question):
    """One question: may this site use that service of a machine?

    Args:
        target: the machine's interface that the question goes to.
        address: what is asked for there: the interface's own address, or that of the machine on another
            plane.
        protocol: ``tcp`` and ``udp`` with a port, over IPv6 link-local with a 6; else one of `WITHOUT_PORT`.
        reason: why it is allowed or denied, for a reader.

    """

    source: Site
    target: Site
    address: IPv4Address
    protocol: str
    port: int | None
    allowed: bool
    reason: str

    @property
    def aim(self) -> str:
        """What is asked: a site, and the address if it is not the site's own on that network."""
        return (
            self.target.label
            if self.address == self.target.address
            else f"{self.target.label} at {self.address}"
        )


def rogue(network: LabNetwork) -> Site:
    """Return the site of a host that does not belong to the fleet."""
    mac = f"0e:72:{network.network.network_address.packed.hex(':')}"
    return Site("rogue", Stand.ROGUE, network.plane, mac, network.network[_FIRST_FREE])


def machines(lab: Testbed) -> tuple[Site, ...]:
    """Return every interface of every machine."""
    stands = {Role.CONTROLLER: Stand.CONTROLLER, Role.NODE: Stand.NODE}
    return tuple(
        Site(item.name, stands[item.role], nic.plane, nic.mac, nic.address)
        for item in lab.machines
        for nic in item.nics
    )


def outer(lab: Testbed) -> tuple[Site, ...]:
    """Return the outer machine's own ends: the administrator's place."""
    return tuple(
        Site("outer", Stand.OUTER, item.plane, "", item.gateway) for item in lab.networks if item.gateway
    )


def contacts(lab: Testbed, listening: Mapping[str, frozenset[Socket]] | None = None) -> tuple[Contact, ...]:
    """Return every question of a lab: each site to each machine on its network, and rogue hosts to other
    networks through it.

    Args:
        listening: by machine, protocol and port of its sockets, as it tells them; beside those that every
            fleet has.

    """
    targets = machines(lab)
    sources = (*map(rogue, lab.networks), *outer(lab), *targets)
    found: list[Contact] = []
    for source, target in product(sources, targets):
        if source.plane == target.plane and source.name != target.name:
            sockets = (listening or {}).get(target.name, frozenset())
            found += _direct(source, target, sockets)
            if source.stand is Stand.ROGUE:
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


def _direct(source: Site, target: Site, more: frozenset[Socket]) -> Iterator[Contact]:
    services = _services(more)
    six = [(f"{protocol}6", port) for protocol, port in services]
    for protocol, port in (*((name, None) for name in WITHOUT_PORT), *services, *six):
        yield Contact(
            source, target, target.address, protocol, port, *_verdict(source, target, protocol, port)
        )


def _crossing(source: Site, target: Site, address: IPv4Address, more: frozenset[Socket]) -> Iterator[Contact]:
    for protocol, port in (("arp", None), ("icmp", None), *_services(more)):
        yield Contact(
            source,
            target,
            address,
            protocol,
            port,
            False,
            "a machine answers for an address on that address's network only",
        )


def _verdict(source: Site, target: Site, protocol: str, port: int | None) -> tuple[bool, str]:
    if protocol == "arp":
        return True, "neighbours on a network resolve one another"
    if protocol.endswith("6") or protocol == "nd":
        return False, "the fleet's machines speak no IPv6"
    offered = {
        (Stand.OUTER, Plane.MANAGEMENT, target.stand, "tcp", SSH): "the administrator logs in",
        (
            Stand.OUTER,
            Plane.MANAGEMENT,
            Stand.CONTROLLER,
            "tcp",
            NORTHBOUND,
        ): "the administrator declares the tenants' networks",
        (Stand.NODE, Plane.MANAGEMENT, Stand.CONTROLLER, "tcp", SOUTHBOUND): "nodes learn what to do",
        (Stand.NODE, Plane.FABRIC, Stand.NODE, "udp", KEYS): "nodes exchange keys",
        (Stand.NODE, Plane.FABRIC, Stand.NODE, "udp", GENEVE): "nodes carry tenants' networks to one another",
    }
    reason = offered.get((source.stand, source.plane, target.stand, protocol, port or 0))
    return reason is not None, reason or f"nothing that {target.name} offers to {source.name}"
