"""What a topology allows between guests: the oracle that observed reachability is compared with (NET-01).

Pure. Derived from the topology alone and not from the rules that `testbed.plan.ovn_acls` writes, so that a
mistake there is not repeated here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import count, permutations

from testbed.model.cell import Question, link_local
from testbed.model.topology import AllowedFlow, Testbed

FIRST_PROBE_PORT = 7
PORTLESS = ("arp", "icmp", "raw", "broadcast", "multicast")
PORTLESS6 = ("nd", "icmp6")
LINK = "-link"  # what stands behind a protocol between link-local addresses, which no topology declares
RESOLUTION = ("arp", "nd")
TO_ALL = (
    "broadcast",
    "multicast",
    "multicast6",
)  # what is said to everybody, whichever target it is asked about


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """A guest's interface on one tenant network.

    Args:
        guest: label of the guest, ``tenant/guest``.
        network: label of the network, ``tenant/network``.

    """

    guest: str
    network: str
    mac: str
    address: IPv4Address
    address6: IPv6Address | None = None

    @property
    def link_local(self) -> IPv6Address:
        """The address that IPv6 gives every interface, made from its MAC address (RFC 4291, appendix A)."""
        return link_local(self.mac)

    @property
    def interface(self) -> str:
        """Name of the network inside its tenant; a guest has one interface on each of its networks."""
        return self.network.partition("/")[2]

    @property
    def tenant(self) -> str:
        """Name of the tenant that owns the guest."""
        return self.guest.partition("/")[0]

    @property
    def name(self) -> str:
        """Name of the guest inside its tenant."""
        return self.guest.partition("/")[2]

    @property
    def label(self) -> str:
        """Name of the endpoint, unique in the lab: ``tenant/guest@network``."""
        return f"{self.guest}@{self.interface}"


@dataclass(frozen=True, slots=True)
class Cell(Question):
    """One question of the matrix: may this source send this to that target?

    Args:
        protocol: ``tcp`` and ``udp`` with a port, over IPv6 with a 6; else one of `PORTLESS`, where ``raw``
            is an Ethernet frame of no known protocol, or of `PORTLESS6`. Over IPv6 with `LINK` between
            link-local addresses, else between declared ones.
        port: destination port; None for those that have none.
        reason: why it is allowed or denied, for a reader.

    """

    source: Endpoint
    target: Endpoint
    protocol: str
    port: int | None
    allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ReachMatrix:
    """Every cell of a lab, in the order of the topology."""

    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, lab: Testbed) -> ReachMatrix:
        """Return the matrix of a lab: every ordered pair of distinct endpoints, every protocol and probed
        port.
        """
        ports = probed_ports(lab)
        flows = {tenant.name: tenant.flows for tenant in lab.tenants}
        return cls(
            tuple(
                Cell(
                    source,
                    target,
                    protocol,
                    port,
                    *_verdict(flows[source.tenant], source, target, protocol, port),
                )
                for source, target in permutations(endpoints(lab), 2)
                for protocol, port in services(source, target, ports)
            )
        )

    def allowed(self) -> tuple[Cell, ...]:
        """Return the cells that the topology allows."""
        return tuple(cell for cell in self.cells if cell.allowed)

    def denied(self) -> tuple[Cell, ...]:
        """Return the cells that the topology denies."""
        return tuple(cell for cell in self.cells if not cell.allowed)

    def between(self, source: Endpoint, target: Endpoint) -> tuple[Cell, ...]:
        """Return the cells that lead from one endpoint to another."""
        return tuple(cell for cell in self.cells if cell.source == source and cell.target == target)

    def as_table(self) -> list[dict[str, object]]:
        """Return the matrix as rows of plain values, for JSON."""
        return [cell.as_row() for cell in self.cells]


def endpoints(lab: Testbed) -> tuple[Endpoint, ...]:
    """Return every interface of every guest."""
    return tuple(
        Endpoint(guest.label, f"{guest.tenant}/{nic.network}", nic.mac, nic.address, nic.address6)
        for guest in lab.guests
        for nic in guest.nics
    )


def probed_ports(lab: Testbed) -> dict[str, tuple[int, ...]]:
    """Return the ports to probe per protocol: all that any tenant declares, and one that none does."""
    declared: dict[str, set[int]] = {"tcp": set(), "udp": set()}
    for tenant in lab.tenants:
        for flow in tenant.flows:
            if flow.port is not None:
                declared[flow.protocol].add(flow.port)
    return {
        protocol: (*sorted(ports), next(port for port in count(FIRST_PROBE_PORT) if port not in ports))
        for protocol, ports in declared.items()
    }


def services(
    source: Endpoint, target: Endpoint, ports: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, int | None]]:
    """Yield every protocol and port that one endpoint can try on another, given the addresses that they
    have.
    """
    yield from ((protocol, None) for protocol in PORTLESS)
    families = ["", f"6{LINK}"]
    yield from ((f"{protocol}{LINK}", None) for protocol in PORTLESS6)
    if source.address6 and target.address6:
        families.append("6")
        yield from ((protocol, None) for protocol in PORTLESS6)
    if source.address6:
        yield "multicast6", None
    yield from (
        (f"{protocol}{family}", port) for family in families for protocol in ports for port in ports[protocol]
    )


def joined(lab: Testbed) -> Iterator[tuple[AllowedFlow, Endpoint, Endpoint]]:
    """Yield every declared flow with its ends, once per network that both ends are attached to."""
    members = {(endpoint.guest, endpoint.network): endpoint for endpoint in endpoints(lab)}
    for tenant in lab.tenants:
        for flow in tenant.flows:
            for network in tenant.networks:
                source = members.get((f"{flow.tenant}/{flow.source}", network.label))
                target = members.get((f"{flow.tenant}/{flow.target}", network.label))
                if source is not None and target is not None:
                    yield flow, source, target


def _verdict(
    flows: tuple[AllowedFlow, ...], source: Endpoint, target: Endpoint, protocol: str, port: int | None
) -> tuple[bool, str]:
    """Return whether something is allowed, and why."""
    if source.tenant != target.tenant:
        return False, f"{source.tenant} and {target.tenant} are different tenants"
    if source.network != target.network:
        return False, f"{source.network} and {target.network} are different networks"
    for flow in flows:
        forward = (flow.source, flow.target) == (source.name, target.name)
        backward = (flow.source, flow.target) == (target.name, source.name)
        text = f"{flow.source} -> {flow.target} {flow.service}"
        if protocol in RESOLUTION and (forward or backward):
            return True, f"both ends of '{text}' resolve one another"
        if forward and protocol in (flow.protocol, f"{flow.protocol}6") and flow.port == port:
            return True, f"declared: '{text}'"
    if protocol in RESOLUTION:
        return False, "no declared flow joins the two"
    service = protocol if port is None else f"{protocol}/{port}"
    return False, f"'{source.name} -> {target.name} {service}' is not declared"
