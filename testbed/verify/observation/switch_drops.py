"""Counts frames that nodes' switches lost under load.

A frame that must not arrive is sent once, and only a wall may stop it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.probe.client import inconclusive

_UPCALLS = re.compile(r"\blost:(\d+)")  # packets lost before a rule was found for them, ovs-dpctl(8)
_DROPPED = re.compile(r"^/sys/class/net/([^/\s]+)/statistics/tx_dropped:(\d+)$", re.M)
Losses = Mapping[str, Mapping[str, int]]


def lost(fleet: Fleet) -> Losses:
    """Return the packets that each node has lost under load so far.

    They are lost between the datapath and its rules (upcalls), or on the way to guests.

    Raises:
        InstrumentError: a node prints no such counters.
    """
    return fleet.everywhere(
        lambda node: _lost_by(
            node, [nic.tap for guest in fleet.topology.guests_on(node.name) for nic in guest.nics]
        )
    )


def _lost_by(machine: MachineView, taps: Sequence[str]) -> dict[str, int]:
    counters = " ".join(f"/sys/class/net/{tap}/statistics/tx_dropped" for tap in taps)
    text = machine.read(f"ovs-appctl dpctl/show; grep -H . {counters or '/dev/null'} || true")
    upcalls, frames = _UPCALLS.findall(text), dict(_DROPPED.findall(text))
    if not upcalls or frames.keys() != set(taps):
        raise inconclusive(f"{machine.name} does not tell what its switch has lost", repr(text[:200]))
    return {"upcalls": sum(map(int, upcalls)), **{tap: int(count) for tap, count in frames.items()}}


def require_no_loss(before: Losses, after: Losses) -> None:
    """Require that no switch has lost packets between two counts.

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
            raise inconclusive(f"{node} lost frames by crowding, not by a wall", str(grown))
