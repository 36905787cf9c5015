"""Which guests, interfaces and flows of a topology something is tried with, chosen from the whole fleet.
Pure.

A topology may lack anything: an empty first node, no flow, one tenant only, a single guest. So a choice is
None where there is nothing to choose, and the caller says what follows from that. Every topology has a guest
with an interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from testbed.model.reachability import Endpoint, joined
from testbed.model.topology import AllowedFlow, Guest, GuestNic, Testbed

_PREFERRED = ("tcp", "udp", "icmp")  # what says most about a connection comes first


@dataclass(frozen=True, slots=True)
class Attachment:
    """A guest and one of its interfaces."""

    guest: Guest
    nic: GuestNic

    @property
    def network(self) -> str:
        """Label of the network that it is attached to: ``tenant/network``."""
        return f"{self.guest.tenant}/{self.nic.network}"


@dataclass(frozen=True, slots=True)
class Flow:
    """A declared flow on one network that both its ends are attached to."""

    declared: AllowedFlow
    source: Attachment
    target: Attachment

    @property
    def match(self) -> str:
        """What its packets are, as OVN's rules match them, addresses aside."""
        names = {"icmp": "icmp4.type == 8"}
        return names.get(self.declared.protocol, f"{self.declared.protocol}.dst == {self.declared.port}")

    @property
    def dual(self) -> bool:
        """Tell whether both its ends have IPv6."""
        return bool(self.source.nic.address6 and self.target.nic.address6)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two guests, of which the first must not reach the second by anything that is not declared."""

    attacker: Attachment
    victim: Attachment

    @property
    def local(self) -> bool:
        """Tell whether both are on one node."""
        return self.attacker.guest.node == self.victim.guest.node


def attachments(lab: Testbed) -> tuple[Attachment, ...]:
    """Return every interface of every guest, in the order of the topology."""
    return tuple(Attachment(guest, nic) for guest in lab.guests for nic in guest.nics)


def flows(lab: Testbed) -> tuple[Flow, ...]:
    """Return every declared flow that joins two interfaces: those of TCP, then of UDP, then of ICMP, as the
    topology has them.
    """
    own = {item.nic.mac: item for item in attachments(lab)}
    return tuple(Flow(flow, own[source.mac], own[target.mac]) for flow, source, target in ordered(lab))


def ordered(lab: Testbed) -> list[tuple[AllowedFlow, Endpoint, Endpoint]]:
    """Return the same with their ends as the reach matrix names them."""
    return sorted(joined(lab), key=lambda item: _PREFERRED.index(item[0].protocol))


def pair(lab: Testbed) -> Pair | None:
    """Return two guests that no flow joins: of different tenants and on one node, if there are such."""
    everyone = attachments(lab)
    ends = {frozenset((flow.source.guest.label, flow.target.guest.label)) for flow in flows(lab)}

    def pairs(*, strangers: bool, local: bool) -> Iterator[Pair]:
        for one, other in permutations(everyone, 2):
            apart = one.guest.tenant != other.guest.tenant
            if (
                apart != strangers
                or one.guest is other.guest
                or (one.guest.node == other.guest.node) != local
            ):
                continue
            if apart or frozenset((one.guest.label, other.guest.label)) not in ends:
                yield Pair(one, other)

    ranks = ((strangers, local) for strangers in (True, False) for local in (True, False))
    return next(
        (found for strangers, local in ranks for found in pairs(strangers=strangers, local=local)), None
    )


def sharers(lab: Testbed, node: str) -> tuple[Guest, Guest] | None:
    """Return two guests on a node: of different tenants, if there are such."""
    guests = lab.guests_on(node)
    return strangers(lab, node) or (guests[:2] if len(guests) > 1 else None)  # type: ignore[return-value] # two of them


def strangers(lab: Testbed, node: str) -> tuple[Guest, Guest] | None:
    """Return the first guest on a node and one of another tenant there."""
    guests = lab.guests_on(node)
    return next(((guests[0], guest) for guest in guests if guest.tenant != guests[0].tenant), None)


def sender(lab: Testbed) -> Attachment:
    """Return who attacks a network: the source of the first flow, else a guest with a neighbour on its
    network, else any guest.
    """
    found = flows(lab)
    if found:
        return found[0].source
    everyone = attachments(lab)
    return next((one for one in everyone if neighbour(lab, one) is not None), everyone[0])


def neighbour(lab: Testbed, one: Attachment) -> Attachment | None:
    """Return whom an interface finds on its network: the target of its first flow, else any other guest."""
    found = next((flow.target for flow in flows(lab) if flow.source == one), None)
    others = (item for item in attachments(lab) if item.network == one.network and item != one)
    return found or next(others, None)


def host(lab: Testbed) -> str:
    """Return the first node that has guests, else the first one."""
    return next((node.name for node in lab.nodes if lab.guests_on(node.name)), lab.nodes[0].name)


def leaver(lab: Testbed) -> str | None:
    """Return the last node without whose guests two guests are left that must not reach one another: of two
    tenants, if possible.
    """
    found = (
        {node.name: pair(lab.without(node.name)) for node in reversed(lab.nodes)}
        if len(lab.nodes) > 1
        else {}
    )
    left = {name: rest for name, rest in found.items() if rest is not None}
    apart = (name for name, rest in left.items() if rest.attacker.guest.tenant != rest.victim.guest.tenant)
    return next(apart, next(iter(left), None))


def loudest(lab: Testbed) -> tuple[Attachment, Flow | None, Guest | None]:
    """Return who makes noise, the flow that it uses, and who suffers: a guest of another tenant on its node,
    if there is one.

    Without a flow, and without another guest on the node, the noise is still there.
    """
    offers: list[tuple[Attachment, Flow | None]] = [(flow.source, flow) for flow in flows(lab)]
    choices = [
        (_nearest(lab, one, flow), one, flow)
        for one, flow in offers or [(one, None) for one in attachments(lab)]
    ]
    (_, victim), one, flow = min(choices, key=lambda choice: choice[0][0])
    return one, flow, victim


def _nearest(lab: Testbed, one: Attachment, flow: Flow | None) -> tuple[int, Guest | None]:
    """Return who on a guest's node suffers most plainly from its noise, and how plainly: a stranger, a
    bystander, the target, no guest.
    """
    target = flow.target.guest if flow else None
    near = [guest for guest in lab.guests_on(one.guest.node) if guest is not one.guest]
    ranked = ((int(guest.tenant == one.guest.tenant) + int(guest is target), guest) for guest in near)
    return min(ranked, key=lambda item: item[0], default=(3, None))
