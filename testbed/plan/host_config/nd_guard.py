"""Who may resolve whom over IPv6, for the guard in front of guests' interfaces (NET-01, NET-05). Pure.

OVN's access rules do not reach Neighbor Discovery (docs/decisions/0009), so each node judges it where frames
come in from a guest: `playbooks/roles/switch/files/neighbours.nft` holds the rules, and this the sets that
they ask.
"""

from __future__ import annotations

from testbed.model.reachability import joined
from testbed.model.topology import Machine, Testbed

RULES = "/etc/testbed/neighbours.nft"
ATTACH = "/usr/sbin/guard-neighbours"
GUARDS = ("neighbour-guard", "neighbours", "neighbour-links")  # names of the settings


def guarded(lab: Testbed, node: Machine) -> tuple[str, ...]:
    """Return the interfaces on a node of guests that have IPv6."""
    return tuple(sorted(nic.tap for guest in lab.guests_on(node.name) for nic in guest.nics if nic.address6))


def allowed(lab: Testbed, node: Machine) -> tuple[tuple[str, str], ...]:
    """Return interface and address for every neighbour that a guest on a node may ask for and answer,
    sorted.
    """
    taps = {nic.mac: nic.tap for guest in lab.guests_on(node.name) for nic in guest.nics if nic.address6}
    pairs = set()
    for _, source, target in joined(lab):
        for one, other in ((source, target), (target, source)):
            if one.mac in taps and other.address6:
                pairs.add((taps[one.mac], str(other.address6)))
    return tuple(sorted(pairs))


def links(lab: Testbed, node: Machine) -> tuple[tuple[str, str], ...]:
    """Return interface and MAC address, as nftables writes the number, of every guest's interface with IPv6,
    sorted.
    """
    nics = [nic for guest in lab.guests_on(node.name) for nic in guest.nics if nic.address6]
    return tuple(sorted((nic.tap, f"{int(nic.mac.replace(':', ''), 16):#x}") for nic in nics))
