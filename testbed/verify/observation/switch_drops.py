"""What nodes' switches have lost by crowding: a frame that must not arrive is sent once, and only a wall may
stop it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from testbed.verify.fleet import Fleet, Machine
from testbed.verify.probe.client import broken

_UPCALLS = re.compile(r"\blost:(\d+)")  # packets that waited for a rule in vain, ovs-dpctl(8)
_DROPPED = re.compile(r"^/sys/class/net/([^/\s]+)/statistics/tx_dropped:(\d+)$", re.M)
Losses = Mapping[str, Mapping[str, int]]


def lost(fleet: Fleet) -> Losses:
    """Return how many packets each node has lost by crowding so far: on the way to its switch's rules, and to
    its guests.

    Raises:
        InstrumentError: a node does not tell.

    """
    return fleet.everywhere(
        lambda node: _lost_by(
            node, [nic.tap for guest in fleet.testbed.guests_on(node.name) for nic in guest.nics]
        )
    )


def _lost_by(machine: Machine, taps: Sequence[str]) -> dict[str, int]:
    counters = " ".join(f"/sys/class/net/{tap}/statistics/tx_dropped" for tap in taps)
    text = machine.read(f"ovs-appctl dpctl/show; grep -H . {counters or '/dev/null'} || true")
    upcalls, frames = _UPCALLS.findall(text), dict(_DROPPED.findall(text))
    if not upcalls or frames.keys() != set(taps):
        raise broken(f"{machine.name} does not tell what its switch has lost", repr(text[:200]))
    return {"upcalls": sum(map(int, upcalls)), **{tap: int(count) for tap, count in frames.items()}}


def require_no_loss(before: Losses, after: Losses) -> None:
    """Return if no switch has lost anything meanwhile.

    Raises:
        InstrumentError: one has.

    """
    for node, counts in after.items():
        grown = {
            name: count - before[node].get(name, 0)
            for name, count in counts.items()
            if count != before[node].get(name, 0)
        }
        if grown:
            raise broken(f"{node} lost frames by crowding, not by a wall", str(grown))
