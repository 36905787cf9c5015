"""Uses of declared flows, over every address family that both ends have.

A flow that works is the positive control for frames that must not arrive (docs/design.md, section 6).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6EchoRequest
from scapy.packet import Packet

from testbed.model.reachability import Endpoint
from testbed.model.subjects import ordered
from testbed.model.topology import AllowedFlow, Topology
from testbed.verify.probe.client import Probe
from testbed.verify.probe.frames import datagram, syn

KINDS = {
    "tcp": "tcp-connect",
    "udp": "udp-ask",
    "icmp": "icmp-echo",
}  # kinds of probes of the sender in a guest, by protocol
_CONTROL = {"timeout": 10, "repeat": 3, "spacing": 1}  # seconds, tries, seconds


@dataclass(frozen=True, slots=True)
class Use:
    """The use of a declared flow over one address family that both ends have."""

    mark: str
    flow: AllowedFlow
    source: Endpoint
    target: Endpoint
    own: str
    address: str

    def probe(self, stage: str) -> Probe:
        """Return a probe that uses the service; it must be answered."""
        fields = {
            "kind": KINDS[self.flow.protocol],
            "address": self.own,
            "ip": self.address,
            "port": self.flow.port or 0,
            **_CONTROL,
        }
        return Probe(f"{self.mark}{stage}", self.source, fields)

    def __str__(self) -> str:
        return (
            f"{self.source.guest} -> {self.target.guest} "
            f"{self.flow.service}{' over IPv6' if ':' in self.address else ''}"
        )


def uses(topology: Topology) -> list[Use]:
    """Return every use of every declared flow."""
    found = []
    for number, (flow, source, target) in enumerate(ordered(topology)):
        found.append(Use(f"flow{number}", flow, source, target, str(source.address), str(target.address)))
        if source.address6 and target.address6:
            found.append(
                Use(f"flow{number}six", flow, source, target, str(source.address6), str(target.address6))
            )
    return found


def ends(topology: Topology) -> list[tuple[Endpoint, Endpoint]]:
    """Return each pair of interfaces that are ends of one flow, in both directions, once."""
    pairs = [pair for _, source, target in ordered(topology) for pair in ((source, target), (target, source))]
    return list(dict.fromkeys(pairs))


def body(protocol: str, port: int, *, six: bool = False) -> Packet:
    """Return the layer behind the IP header of a flow's first packet, without its payload.

    Args:
        protocol: of a flow; if empty, the layer is a client's message to DHCP, which every guest may send.
    """
    if protocol == "icmp":
        return ICMPv6EchoRequest(id=secrets.randbits(16)) if six else ICMP(id=secrets.randbits(16))
    if protocol == "tcp":
        return syn(port)
    if protocol == "udp":
        return datagram(port)
    client, server = (546, 547) if six else (68, 67)
    packet = datagram(server)
    packet.sport = client
    return packet
