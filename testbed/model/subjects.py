"""Choose the guests, interfaces and flows of a topology that the checks are run with. Pure.

A topology may lack anything: an empty first node, no flow, one tenant only, a single guest. So a choice is
None where there is nothing to choose, and the caller decides what follows from that. Every topology has a
guest with an interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from testbed.model.reachability import Endpoint, joined
from testbed.model.topology import FIRST_WORKER_UID, AllowedFlow, Guest, GuestNic, Topology
from testbed.topology_file.validation import WORKERS_PER_NODE

_PREFERRED = ("tcp", "udp", "icmp")  # the protocol whose connections show most comes first


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
class FlowSubject:
    """A declared flow on one network that both its ends are attached to."""

    declared: AllowedFlow
    source: Attachment
    target: Attachment

    @property
    def match(self) -> str:
        """The flow's packets as a match of OVN's rules, without addresses."""
        names = {"icmp": "icmp4.type == 8"}
        return names.get(self.declared.protocol, f"{self.declared.protocol}.dst == {self.declared.port}")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two guests; the first must not reach the second except by declared flows."""

    attacker: Attachment
    victim: Attachment

    @property
    def local(self) -> bool:
        """Return whether both guests are on one node."""
        return self.attacker.guest.node == self.victim.guest.node


def attachments(topology: Topology) -> tuple[Attachment, ...]:
    """Return every interface of every guest, in the order of the topology."""
    return tuple(Attachment(guest, nic) for guest in topology.guests for nic in guest.nics)


def flows(topology: Topology) -> tuple[FlowSubject, ...]:
    """Return every declared flow that joins two interfaces.

    Those of TCP come first, then those of UDP and of ICMP, each in the order of the topology.
    """
    own = {item.nic.mac: item for item in attachments(topology)}
    return tuple(
        FlowSubject(flow, own[source.mac], own[target.mac]) for flow, source, target in ordered(topology)
    )


def ordered(topology: Topology) -> list[tuple[AllowedFlow, Endpoint, Endpoint]]:
    """Return the same flows, with their ends as the reach matrix names them."""
    return sorted(joined(topology), key=lambda item: _PREFERRED.index(item[0].protocol))


def pair(topology: Topology) -> Pair | None:
    """Return two guests that no flow joins: of different tenants and on one node, if possible."""
    everyone = attachments(topology)
    ends = {frozenset((flow.source.guest.label, flow.target.guest.label)) for flow in flows(topology)}

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


def sharers(topology: Topology, node: str) -> tuple[Guest, Guest] | None:
    """Return two guests on a node: of different tenants, if there are such."""
    guests = topology.guests_on(node)
    return strangers(topology, node) or (guests[:2] if len(guests) > 1 else None)  # type: ignore[return-value] # two of them


def spare_worker(topology: Topology, node: str) -> tuple[str, int]:
    """Return name and user id of the first account for workers that no guest of a node has.

    Raises:
        StopIteration: every account is in use.
    """
    used = {guest.uid for guest in topology.guests_on(node)}
    slot = next(number for number in range(WORKERS_PER_NODE) if FIRST_WORKER_UID + number not in used)
    return f"worker{slot:02d}", FIRST_WORKER_UID + slot


def strangers(topology: Topology, node: str) -> tuple[Guest, Guest] | None:
    """Return the first guest on a node and one of another tenant there."""
    guests = topology.guests_on(node)
    return next(((guests[0], guest) for guest in guests if guest.tenant != guests[0].tenant), None)


def sender(topology: Topology) -> Attachment:
    """Return the attacker of a network.

    It is the source of the first flow, else a guest with a neighbour on its network, else any guest.
    """
    found = flows(topology)
    if found:
        return found[0].source
    everyone = attachments(topology)
    return next((one for one in everyone if neighbour(topology, one) is not None), everyone[0])


def neighbour(topology: Topology, one: Attachment) -> Attachment | None:
    """Return a neighbour of an interface on its network, or None.

    It is the target of the interface's first flow, else any other guest.
    """
    found = next((flow.target for flow in flows(topology) if flow.source == one), None)
    others = (item for item in attachments(topology) if item.network == one.network and item != one)
    return found or next(others, None)


def hosts(topology: Topology) -> list[str]:
    """Return the nodes that have guests, else the first one."""
    return [node.name for node in topology.nodes if topology.guests_on(node.name)] or [topology.nodes[0].name]


def host(topology: Topology) -> str:
    """Return the first node that has guests, else the first one."""
    return hosts(topology)[0]


def leaver(topology: Topology) -> str | None:
    """Return the last node that can leave the lab while two guests remain that no flow joins.

    Guests of two tenants are preferred. None if there is no such node.
    """
    found = (
        {node.name: pair(topology.without(node.name)) for node in reversed(topology.nodes)}
        if len(topology.nodes) > 1
        else {}
    )
    left = {name: rest for name, rest in found.items() if rest is not None}
    apart = (name for name, rest in left.items() if rest.attacker.guest.tenant != rest.victim.guest.tenant)
    return next(apart, next(iter(left), None))


def loudest(topology: Topology) -> tuple[Attachment, FlowSubject | None, Guest | None]:
    """Return the guest that floods, the flow that it uses, and the guest that suffers from it.

    The victim is a guest of another tenant on the same node, if there is one. Flow and victim are None where
    the topology has none; the flood is possible all the same.
    """
    offers: list[tuple[Attachment, FlowSubject | None]] = [(flow.source, flow) for flow in flows(topology)]
    choices = [
        (_nearest(topology, one, flow), one, flow)
        for one, flow in offers or [(one, None) for one in attachments(topology)]
    ]
    (_, victim), one, flow = min(choices, key=lambda choice: choice[0][0])
    return one, flow, victim


def _nearest(topology: Topology, one: Attachment, flow: FlowSubject | None) -> tuple[int, Guest | None]:
    """Return the guest on the same node that shows the effect of a flood best, with its rank.

    A guest of another tenant has rank 0, a bystander of the same tenant 1, the flow's target 2; 3 and None
    where the node has no other guest.
    """
    target = flow.target.guest if flow else None
    near = [guest for guest in topology.guests_on(one.guest.node) if guest is not one.guest]
    ranked = ((int(guest.tenant == one.guest.tenant) + int(guest is target), guest) for guest in near)
    return min(ranked, key=lambda item: item[0], default=(3, None))
