"""How many packets a guest's interface may send: Open vSwitch's policers in front of a node's switch
(NET-12).

They stand before the switch looks at a frame at all, so that what is too much costs it no look-up
(ovs-vswitchd.conf.db(5), ingress_policing_kpkts_rate; docs/decisions/0012).
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
BURST = 1.0  # seconds' worth of packets that may come at once


def observed(node: str, guests: Iterable[Guest], filters: str) -> dict[Key, Properties]:
    """Return what the kernel limits of those interfaces of guests that are there; several policers count
    together.

    One policer is printed twice, with the filters of both directions; its index tells it from another one.

    Args:
        filters: what `testbed.plan.host_config.settings.FILTERS` printed: filters of an interface behind a
            line that names it.

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
    """Return the command that limits how many packets some interfaces may send in a second; 0 stands for any
    number.
    """
    rate = packets // _KPACKETS
    columns = f"ingress_policing_kpkts_rate={rate} ingress_policing_kpkts_burst={int(rate * BURST)}"
    return "ovs-vsctl " + " -- ".join(f"set interface {tap} {columns}" for tap in taps)
