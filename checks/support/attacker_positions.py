"""Where an attacker stands: who sends, and whom it can pretend to be."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from itertools import chain

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from testbed.model.reachability import Endpoint, endpoints
from testbed.model.subjects import ordered
from testbed.model.topology import Plane
from testbed.verify.fleet import Fleet
from testbed.verify.observation.declared_flows import body
from testbed.verify.probe.frames import BROADCAST

NOWHERE, NOWHERE6 = "203.0.113.7", "2001:db8::7"  # RFC 5737, RFC 3849


@dataclass(frozen=True, slots=True)
class Scene:
    """A sender and whom it can pretend to be.

    Args:
        peer: the other end of a flow that the sender may open, else a neighbour, else the network's own
            server.
        protocol: the flow's; empty where the sender has none. Its packets are then what a rule lets every
            guest send.
        port: the flow's port; 0 where there is none.
        free: an address of the network that nobody has.
        free6: an IPv6 address that nobody has, of the network if it has any.
        management: an address of the fleet's own.
        tunnels: addresses at which nodes take tunnelled frames.
        key: tunnel key of the stranger's network.

    """

    number: int
    sender: Endpoint
    peer: Endpoint
    stranger: Endpoint
    protocol: str
    port: int
    server: Endpoint
    free: str
    free6: str
    management: str
    tunnels: tuple[str, ...]
    key: int

    @property
    def link(self) -> Ether:
        """Honest Ethernet to the peer."""
        return Ether(src=self.sender.mac, dst=self.peer.mac)

    @property
    def shout(self) -> Ether:
        """Honest Ethernet to everybody."""
        return Ether(src=self.sender.mac, dst=BROADCAST)

    def ip(self, source: str = "", flags: str = "") -> Packet:
        """Return IPv4 to the peer, from the sender unless told otherwise."""
        return IP(
            src=source or str(self.sender.address),
            dst=str(self.peer.address),
            id=secrets.randbits(16),
            flags=flags,
        )

    def six(self, source: str = "", hops: int = 64) -> Packet:
        """Return IPv6 to the peer, from the sender unless told otherwise."""
        return IPv6(src=source or six_of(self.sender), dst=six_of(self.peer), hlim=hops)

    def body(self) -> Packet:
        """Return what a packet of the flow holds behind its IPv4 header; without a flow, what a rule lets
        every guest send.

        To the network's server that would be a question to DHCP, which is answered; so it is a segment then.
        """
        return self._body(six=False)

    def body6(self) -> Packet:
        """Return the same behind an IPv6 header."""
        return self._body(six=True)

    def _body(self, *, six: bool) -> Packet:
        alone = not (self.protocol or self.peer.guest)
        return body("tcp" if alone else self.protocol, self.port or 7, six=six)


def six_of(end: Endpoint) -> str:
    """Return an endpoint's IPv6 address: the declared one, or the link-local one where none is."""
    return str(end.address6 or end.link_local)


def scenes(fleet: Fleet) -> list[Scene]:
    """Return a scene for every interface of every guest."""
    lab, everyone, flows = fleet.testbed, endpoints(fleet.testbed), ordered(fleet.testbed)
    keys = {network.label: network.key for network in lab.switches()}
    found = []
    for number, sender in enumerate(everyone):
        network = lab.tenant(sender.tenant).network(sender.interface)
        server = Endpoint("", sender.network, network.server_mac, network.server, network.server6)
        taken = {item.address for item in everyone if item.network == sender.network}
        free = next(address for address in network.network.hosts() if address not in {*taken, network.server})
        free6 = network.network6[int(free) - int(network.network[0])] if network.network6 else NOWHERE6
        opens = [
            (target, flow.protocol, flow.port or 0) for flow, source, target in flows if source == sender
        ]
        neighbours = [(item, "", 0) for item in everyone if item.network == sender.network and item != sender]
        peer, protocol, port = next(chain(opens, neighbours), (server, "", 0))
        stranger = next((item for item in everyone if item.tenant != sender.tenant), peer)
        management = str(lab.controller.address(Plane.MANAGEMENT))
        tunnels = tuple(str(node.address(Plane.FABRIC)) for node in lab.nodes)
        names = (str(free), str(free6), management)
        found.append(
            Scene(
                number,
                sender,
                peer,
                stranger,
                protocol,
                port,
                server,
                *names,
                tunnels,
                keys[stranger.network],
            )
        )
    return found
