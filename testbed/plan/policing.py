"""Limits of the packets that a guest's interface may send (NET-12).

They are Open vSwitch's policers in front of a node's switch. A policer acts before the switch looks at a
frame, so that excess frames cost it no look-up (ovs-vswitchd.conf.db(5), ingress_policing_kpkts_rate;
docs/decisions/0012).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from testbed.model.topology import Guest
from testbed.plan.resources import Key, Kind, Properties

_POLICER = re.compile(
    r"\bpolice (0x[0-9a-f]+) .*\bpkts_rate (\d+)"
)  # its index in the kernel, and packets per second
_KPACKETS = 1000
BURST = 1.0  # burst size, as seconds of the limit


def observed(node: str, guests: Iterable[Guest], filters: str) -> dict[Key, Properties]:
    """Return the kernel's limits of the existing interfaces of guests; several policers add up.

    One policer is printed twice, with the filters of both directions; its index identifies it.

    Args:
        filters: output of `testbed.plan.host_config.settings.FILTERS`: filters of an interface behind a line
            that names it.
    """
    names = {nic.tap: f"{guest.label}/{nic.network}" for guest in guests for nic in guest.nics}
    found: dict[Key, set[tuple[str, int]]] = {}
    device = ""
    for line in filters.splitlines():
        if line.startswith("interface "):
            device = line.removeprefix("interface ")
            if device in names:
                found.setdefault(Key(node, Kind.LIMIT, names[device]), set())
        elif device in names and (policer := _POLICER.search(line)):
            found[Key(node, Kind.LIMIT, names[device])].add((policer[1], int(policer[2])))
    return {key: {"packets": sum(rate for _, rate in policers)} for key, policers in found.items()}


def limit(taps: Iterable[str], packets: int) -> str:
    """Return the command that limits the packets per second of some interfaces; 0 is no limit."""
    rate = packets // _KPACKETS
    columns = f"ingress_policing_kpkts_rate={rate} ingress_policing_kpkts_burst={int(rate * BURST)}"
    return "ovs-vsctl " + " -- ".join(f"set interface {tap} {columns}" for tap in taps)
