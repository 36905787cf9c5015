"""OVN access rules of a tenant network: the topology's flows, and nothing else (NET-01, NET-04).

``from-lport`` rules say who may send what to whom, so that a denied packet dies on the sender's node;
``to-lport`` rules say the same once more in front of the receiver. Below both stands a drop of everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from testbed.model.testbed import AllowedFlow, GuestNic, Tenant, TenantNetwork

_ALLOW, _DENY = 1000, 1


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
    rules |= {_dhcp(nic) for nic in nics.values()}
    rules |= set(chain.from_iterable(_flow(flow, nics[flow.source], nics[flow.target]) for flow in flows))
    return tuple(sorted(rules))


def _dhcp(nic: GuestNic) -> Acl:
    match = f'inport == "{nic.port}" && ip4 && udp.src == 68 && udp.dst == 67'
    return Acl("from-lport", _ALLOW, match, "allow")


def _flow(flow: AllowedFlow, source: GuestNic, target: GuestNic) -> list[Acl]:
    service = "icmp4" if flow.protocol == "icmp" else f"{flow.protocol}.dst == {flow.port}"
    send = f'inport == "{source.port}" && ip4.dst == {target.address} && {service}'
    accept = f'outport == "{target.port}" && ip4.src == {source.address} && {service}'
    return [
        Acl("from-lport", _ALLOW, send, "allow-related"),
        Acl("to-lport", _ALLOW, accept, "allow-related"),
        *_resolution(source, target),
        *_resolution(target, source),
    ]


def _resolution(source: GuestNic, target: GuestNic) -> list[Acl]:
    """Return the rules that let one end of a flow resolve the other's address."""
    send = f'inport == "{source.port}" && arp.tpa == {target.address}'
    accept = f'outport == "{target.port}" && arp.spa == {source.address}'
    return [Acl("from-lport", _ALLOW, send, "allow"), Acl("to-lport", _ALLOW, accept, "allow")]
