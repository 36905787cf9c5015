"""The context of a breach: the lab, and the machine that the case is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from testbed.drivers.network.northbound import Northbound
from testbed.drivers.places.node import Node
from testbed.drivers.ssh.client import Host
from testbed.errors import InstrumentError
from testbed.lab.session import Lab
from testbed.model import subjects
from testbed.model.subjects import Attachment, FlowSubject, Pair
from testbed.model.topology import Guest, Topology

__all__ = ["BreachContext", "Host"]  # checks import no driver

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class BreachContext:
    """A lab, and the machine that a case is about.

    A topology may lack the subject of a breach: ask `testbed.model.subjects` first. A property that has
    nothing to return raises an InstrumentError.
    """

    lab: Lab
    case: str

    @property
    def topology(self) -> Topology:
        """The topology."""
        return self.lab.topology

    @property
    def node(self) -> Node:
        """The node of this case; for cases about the whole fleet the first one that has guests."""
        return self.lab.nodes.get(self.case) or self.lab.nodes[subjects.host(self.topology)]

    @property
    def host(self) -> Host:
        """The machine of this case, over ssh."""
        return self.lab.host(self.case) if self.case else self.node.host

    @property
    def northbound(self) -> Northbound:
        """OVN's northbound database."""
        return self.lab.central.northbound

    @property
    def guests(self) -> tuple[Guest, ...]:
        """Guests on the node of this case."""
        return self.topology.guests_on(self.node.name)

    @property
    def guest(self) -> Guest:
        """The first guest on the node of this case."""
        return _there(self.guests[0] if self.guests else None, f"{self.node.name} has no guest")

    def strangers(self) -> tuple[Guest, Guest]:
        """Return two guests of different tenants on the node of this case."""
        found = subjects.strangers(self.topology, self.node.name)
        return _there(found, f"{self.node.name} has no guests of two tenants")

    def sharers(self) -> tuple[Guest, Guest]:
        """Return two guests on the node of this case, of different tenants if there are such."""
        return _there(
            subjects.sharers(self.topology, self.node.name), f"{self.node.name} has fewer than two guests"
        )

    def pair(self) -> Pair:
        """Return two guests of the fleet that no flow joins."""
        return _there(subjects.pair(self.topology), "every two guests are joined by a flow")

    def flow(self) -> FlowSubject:
        """Return the first declared flow."""
        found = subjects.flows(self.topology)
        return _there(found[0] if found else None, "no flow joins two guests")

    @property
    def sender(self) -> Attachment:
        """The guest interface that attacks a network.

        It is the source of the first declared flow, else a guest with a neighbour, else any guest.
        """
        return subjects.sender(self.topology)

    def receiver(self) -> Attachment:
        """Return the sender's neighbour on its network."""
        return _there(subjects.neighbour(self.topology, self.sender), "no two guests share a network")


def _there(found: _Value | None, fact: str) -> _Value:
    """Return a value that the topology has.

    Raises:
        InstrumentError: the topology lacks it. A breach asks its own `applies` first.
    """
    if found is None:
        raise InstrumentError("this topology has not what a breach acts on", fact=fact, remedy="report it")
    return found
