"""What breaches act on, and where they act: the node of the case at hand, or what the whole fleet has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from testbed.drivers.network.northbound import Northbound
from testbed.drivers.places.node import Node
from testbed.drivers.ssh.client import Host
from testbed.errors import InstrumentError
from testbed.lab.session import Lab
from testbed.model import subjects
from testbed.model.subjects import Attachment, Flow, Pair
from testbed.model.topology import Guest, Testbed

__all__ = ["Host", "Stage"]  # checks import no driver

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Stage:
    """A lab, and the machine that a case is about.

    What a topology may lack is asked of `testbed.model.subjects` before: where a property here has nothing to
    return, it raises an InstrumentError.
    """

    lab: Lab
    case: str

    @property
    def testbed(self) -> Testbed:
        """The topology."""
        return self.lab.testbed

    @property
    def node(self) -> Node:
        """The node of this case; for cases about the whole fleet the first one that has guests."""
        return self.lab.nodes.get(self.case) or self.lab.nodes[subjects.host(self.testbed)]

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
        return self.testbed.guests_on(self.node.name)

    @property
    def guest(self) -> Guest:
        """The first guest on the node of this case."""
        return _there(self.guests[0] if self.guests else None, f"{self.node.name} has no guest")

    def strangers(self) -> tuple[Guest, Guest]:
        """Return two guests of different tenants on the node of this case."""
        found = subjects.strangers(self.testbed, self.node.name)
        return _there(found, f"{self.node.name} has no guests of two tenants")

    def sharers(self) -> tuple[Guest, Guest]:
        """Return two guests on the node of this case, of different tenants if there are such."""
        return _there(
            subjects.sharers(self.testbed, self.node.name), f"{self.node.name} has fewer than two guests"
        )

    def pair(self) -> Pair:
        """Return two guests of the fleet that no flow joins."""
        return _there(subjects.pair(self.testbed), "every two guests are joined by a flow")

    def flow(self) -> Flow:
        """Return the first declared flow."""
        found = subjects.flows(self.testbed)
        return _there(found[0] if found else None, "no flow joins two guests")

    @property
    def sender(self) -> Attachment:
        """Who attacks a network: the source of the first declared flow, else a guest with a neighbour, else
        any.
        """
        return subjects.sender(self.testbed)

    def receiver(self) -> Attachment:
        """Return whom that one finds on its network."""
        return _there(subjects.neighbour(self.testbed, self.sender), "no two guests share a network")


def _there(found: _Value | None, fact: str) -> _Value:
    """Return what a topology has.

    Raises:
        InstrumentError: it has not. A breach asks its own `applies` first.

    """
    if found is None:
        raise InstrumentError("this topology has not what a breach acts on", fact=fact, remedy="report it")
    return found
