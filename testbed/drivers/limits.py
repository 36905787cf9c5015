"""How many packets a guest's interface may send: Open vSwitch's policers in front of a node's switch (NET-12).

They stand before the switch looks at a frame at all, so that what is too much costs it no look-up
(ovs-vswitchd.conf.db(5), ingress_policing_kpkts_rate; docs/decisions/0012).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from testbed.model.testbed import Guest
from testbed.plan.resources import Key, Kind, Properties

OBSERVE = "cd /sys/class/net && for tap in tap*; do echo $tap $(tc filter show dev $tap parent ffff: | grep -o 'pkts_rate [0-9]*'); done"
_ROW = re.compile(r"^(tap[0-9a-f]+)(?: pkts_rate (\d+))?$", re.MULTILINE)
_KPACKETS = 1000
BURST = 1.0  # seconds' worth of packets that may come at once


def observed(node: str, guests: Iterable[Guest], text: str) -> dict[Key, Properties]:
    """Return what the kernel limits of those interfaces of guests that are there, from what `OBSERVE` printed."""
    names = {nic.tap: f"{guest.label}/{nic.network}" for guest in guests for nic in guest.nics}
    rows = [(names[tap], int(packets or 0)) for tap, packets in _ROW.findall(text) if tap in names]
    return {Key(node, Kind.LIMIT, name): {"packets": packets} for name, packets in rows}


def limit(taps: Iterable[str], packets: int) -> str:
    """Return the command that limits how many packets some interfaces may send in a second; 0 stands for any number."""
    rate = packets // _KPACKETS
    columns = f"ingress_policing_kpkts_rate={rate} ingress_policing_kpkts_burst={int(rate * BURST)}"
    return "ovs-vsctl " + " -- ".join(f"set interface {tap} {columns}" for tap in taps)
