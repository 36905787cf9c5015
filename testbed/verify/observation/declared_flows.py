"""How declared flows are used: over every address family that both ends have, as anyone uses such a service.

That a flow works is the positive control of what must not arrive (DESIGN.md, section 6).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6EchoRequest
from scapy.packet import Packet

from testbed.model.reachability import Endpoint
from testbed.model.subjects import ordered
from testbed.model.topology import AllowedFlow, Testbed
from testbed.verify.probe.client import Probe
from testbed.verify.probe.frames import datagram, syn

KINDS = {
    "tcp": "tcp-connect",
    "udp": "udp-ask",
    "icmp": "icmp-echo",
}  # what the sender in a guest calls the use of each protocol
_CONTROL = {"timeout": 10, "repeat": 3, "spacing": 1}  # seconds, tries, seconds: how a declared flow is used


@dataclass(frozen=True, slots=True)
class Use:
    """A declared flow as it is used over one of the address families that both its ends have."""

    mark: str
    flow: AllowedFlow
    source: Endpoint
    target: Endpoint
    own: str
    address: str

    def probe(self, stage: str) -> Probe:
        """Return the use of the service that must be answered."""
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


def uses(lab: Testbed) -> list[Use]:
    """Return every use of every declared flow."""
    found = []
    for number, (flow, source, target) in enumerate(ordered(lab)):
        found.append(Use(f"flow{number}", flow, source, target, str(source.address), str(target.address)))
        if source.address6 and target.address6:
            found.append(
                Use(f"flow{number}six", flow, source, target, str(source.address6), str(target.address6))
            )
    return found


def ends(lab: Testbed) -> list[tuple[Endpoint, Endpoint]]:
    """Return every interface that is an end of a flow with every other end that it has, each pair once."""
    pairs = [pair for _, source, target in ordered(lab) for pair in ((source, target), (target, source))]
    return list(dict.fromkeys(pairs))


def body(protocol: str, port: int, *, six: bool = False) -> Packet:
    """Return what the first packet of a flow holds behind its IP header, without its payload.

    Args:
        protocol: of a flow; of none if it is empty: then what a rule lets every guest send, a client's
            message to DHCP.

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
