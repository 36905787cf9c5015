"""OVN access rules of a tenant network: the topology's flows, and nothing else (NET-01, NET-04).

``from-lport`` rules say who may send what to whom, so that a denied packet dies on the sender's node;
``to-lport`` rules say the same once more in front of the receiver. Below both stands a drop of everything.
OVN lets IPv6 Neighbor Discovery past all of them, whatever they say (ovn-northd(8)):
`testbed.plan.host_config.nd_guard` holds that wall.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from testbed.model.topology import AllowedFlow, GuestNic, Tenant, TenantNetwork

_ALLOW, _DENY = 1000, 1
_SERVERS6 = "ff02::1:2"  # DHCPv6 servers and relays of a link, RFC 8415


@dataclass(frozen=True, slots=True, order=True)
class Acl:
    """One rule of OVN's ACL table."""

    direction: str
    priority: int
    match: str
    action: str

    def __str__(self) -> str:
        return f"{self.direction} {self.priority} {self.action}: {self.match}"


def acls(tenant: Tenant, network: TenantNetwork) -> tuple[Acl, ...]:
    """Return the rules of one tenant network, sorted."""
    nics = {guest.name: nic for guest in tenant.guests for nic in guest.nics if nic.network == network.name}
    flows = [flow for flow in tenant.flows if flow.source in nics and flow.target in nics]
    rules = {Acl("from-lport", _DENY, "1", "drop"), Acl("to-lport", _DENY, "1", "drop")}
    rules |= set(chain.from_iterable(_dhcp(nic) for nic in nics.values()))
    rules |= set(chain.from_iterable(_flow(flow, nics[flow.source], nics[flow.target]) for flow in flows))
    return tuple(sorted(rules))


def _dhcp(nic: GuestNic) -> Iterator[Acl]:
    yield Acl(
        "from-lport", _ALLOW, f'inport == "{nic.port}" && ip4 && udp.src == 68 && udp.dst == 67', "allow"
    )
    if nic.address6:
        match = f'inport == "{nic.port}" && ip6.dst == {_SERVERS6} && udp.src == 546 && udp.dst == 547'
        yield Acl("from-lport", _ALLOW, match, "allow")


def _flow(flow: AllowedFlow, source: GuestNic, target: GuestNic) -> Iterator[Acl]:
    service = {"icmp": "icmp4.type == 8"}.get(flow.protocol, f"{flow.protocol}.dst == {flow.port}")
    send = f'inport == "{source.port}" && ip4.dst == {target.address} && {service}'
    accept = f'outport == "{target.port}" && ip4.src == {source.address} && {service}'
    yield Acl("from-lport", _ALLOW, send, "allow-related")
    yield Acl("to-lport", _ALLOW, accept, "allow-related")
    if source.address6 and target.address6:
        service = {"icmp": "icmp6.type == 128"}.get(flow.protocol, service)
        ends = f"ip6.src == {source.address6} && ip6.dst == {target.address6} && {service}"
        yield Acl("from-lport", _ALLOW, f'inport == "{source.port}" && {ends}', "allow-related")
        yield Acl("to-lport", _ALLOW, f'outport == "{target.port}" && {ends}', "allow-related")
    yield from (*_resolution(source, target), *_resolution(target, source))


def _resolution(source: GuestNic, target: GuestNic) -> list[Acl]:
    """Return the rules that let one end of a flow resolve the other's address; for IPv6, see
    `testbed.plan.host_config.nd_guard`.
    """
    send = f'inport == "{source.port}" && arp.tpa == {target.address}'
    accept = f'outport == "{target.port}" && arp.spa == {source.address}'
    return [Acl("from-lport", _ALLOW, send, "allow"), Acl("to-lport", _ALLOW, accept, "allow")]
