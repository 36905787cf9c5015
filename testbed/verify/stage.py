"""What breaches act on, and where they act: the node of the case at hand."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.drivers.node import Node
from testbed.drivers.ovn import Northbound
from testbed.drivers.ssh import Host
from testbed.lab import Lab
from testbed.model.testbed import Guest, GuestNic, Testbed


@dataclass(frozen=True, slots=True)
class Stage:
    """A lab, and the machine that a case is about."""

    lab: Lab
    case: str

    @property
    def testbed(self) -> Testbed:
        """The topology."""
        return self.lab.testbed

    @property
    def node(self) -> Node:
        """The node of this case; the first one for cases about the whole fleet."""
        return self.lab.nodes.get(self.case) or next(iter(self.lab.nodes.values()))

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

    def strangers(self) -> tuple[Guest, Guest]:
        """Return two guests of different tenants on the node of this case."""
        first = self.guests[0]
        return first, next(guest for guest in self.guests if guest.tenant != first.tenant)

    def flow(self) -> tuple[Guest, Guest, GuestNic, int]:
        """Return source, target, the source's interface and the port of the first allowed TCP flow."""
        flow = next(flow for tenant in self.testbed.tenants for flow in tenant.flows if flow.protocol == "tcp")
        members = {guest.name: guest for guest in self.testbed.tenant(flow.tenant).guests}
        source = members[flow.source]
        return source, members[flow.target], source.nics[0], flow.port or 0
