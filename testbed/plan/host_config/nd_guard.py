"""The neighbours that each guest may resolve over IPv6 (NET-01, NET-05). Pure.

OVN's access rules do not reach Neighbor Discovery (docs/decisions/0009), so each node filters it where frames
come in from a guest: `playbooks/roles/switch/files/neighbours.nft` holds the rules, and this module the sets
that they look up.
"""

from __future__ import annotations

from testbed.model.reachability import joined
from testbed.model.topology import Machine, Topology

RULES = "/etc/testbed/neighbours.nft"
ATTACH = "/usr/sbin/guard-neighbours"
GUARDS = ("neighbour-guard", "neighbours", "neighbour-links")  # names of the settings


def guarded(topology: Topology, node: Machine) -> tuple[str, ...]:
    """Return the interfaces on a node of guests that have IPv6."""
    return tuple(
        sorted(nic.tap for guest in topology.guests_on(node.name) for nic in guest.nics if nic.address6)
    )


def allowed(topology: Topology, node: Machine) -> tuple[tuple[str, str], ...]:
    """Return interface and address of every neighbour that guests on a node may resolve, sorted.

    A guest may ask for such a neighbour, and answer it.
    """
    taps = {nic.mac: nic.tap for guest in topology.guests_on(node.name) for nic in guest.nics if nic.address6}
    pairs = set()
    for _, source, target in joined(topology):
        for one, other in ((source, target), (target, source)):
            if one.mac in taps and other.address6:
                pairs.add((taps[one.mac], str(other.address6)))
    return tuple(sorted(pairs))


def links(topology: Topology, node: Machine) -> tuple[tuple[str, str], ...]:
    """Return interface and MAC address of every guest's interface with IPv6 on a node, sorted.

    The MAC address is written as a number, as nftables does.
    """
    nics = [nic for guest in topology.guests_on(node.name) for nic in guest.nics if nic.address6]
    return tuple(sorted((nic.tap, f"{int(nic.mac.replace(':', ''), 16):#x}") for nic in nics))
