"""What a flood comes to: what a node's ports count, how long it lasted, and how many connections a port has
tracked (NET-12).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from testbed.errors import InstrumentError
from testbed.model.topology import Guest, GuestNic
from testbed.plan import policing
from testbed.plan.host_config.settings import FILTERS
from testbed.plan.resources import Key, Kind
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.observation.port_counters import await_frames

_HALTING = 2.5  # seconds that pass between the decision to end a flood and its end as it is seen from here
# Twice, since the round that is going on may have begun before the last frame came (ovs-vswitchd(8), UPCALL
# COMMANDS).
_COUNTED = "ovs-appctl revalidator/wait && ovs-appctl revalidator/wait"


@dataclass(frozen=True, slots=True)
class Flood:
    """What one interface has sent, as its node saw it.

    Args:
        offered: frames that came from the guest.
        switched: those of them that the switch has looked at.
        seconds: how long that took at most.

    """

    offered: int
    switched: int
    seconds: float


NOTHING = Flood(0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class Bound:
    """What a limit lets through: so much at once, and so much more in every second."""

    burst: float
    rate: float

    def within(self, seconds: float) -> float:
        """Return how much it lets through in some time at most."""
        return self.burst + self.rate * seconds

    def times(self, factor: float) -> Bound:
        """Return a bound that is so many times as high."""
        return Bound(self.burst * factor, self.rate * factor)


def flood(
    machine: Machine,
    nic: GuestNic,
    send: Callable[[], object],
    halt: Callable[[], object],
    beyond: Bound,
    patience: float,
) -> Flood:
    """Return what an interface sends while something sends from it, and how long that took, seen from here:
    no less than the flood.

    Args:
        halt: ends the sending before its time.
        beyond: frames that are enough.
        patience: seconds after which it is ended though there were not enough.

    Raises:
        InstrumentError: the node cannot be asked.

    """
    before, began = _counts(machine, nic), time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as pool:
        sending = pool.submit(send)
        try:
            with suppress(InstrumentError):  # what there was will be seen
                await_frames(machine, [nic.tap], beyond.within(_HALTING), patience, rate=beyond.rate)
        finally:
            halt()
            sending.result()
    seconds = time.monotonic() - began
    after = _counts(machine, nic)
    return Flood(after[0] - before[0], after[1] - before[1], round(seconds, 2))


def _counts(machine: Machine, nic: GuestNic) -> tuple[int, int]:
    """Return how many frames an interface has given its node so far, and how many of them the switch has
    looked at.
    """
    offered, _, flows = machine.read(
        f"{_COUNTED} && cat /sys/class/net/{nic.tap}/statistics/rx_packets; "
        "ovs-ofctl -O OpenFlow15 dump-flows br-int table=0,in_port=$(ovs-vsctl get interface "
        f"{nic.tap} ofport)"
    ).partition("\n")
    return int(offered), sum(map(int, re.findall(r"n_packets=(\d+)", flows)))


def offered(machine: Machine, nic: GuestNic) -> int:
    """Return the frames that an interface of a guest has given its node so far.

    Raises:
        InstrumentError: the node cannot be asked.

    """
    return int(machine.read(f"cat /sys/class/net/{nic.tap}/statistics/rx_packets"))


def received(machine: Machine, nic: GuestNic) -> int:
    """Return the octets that a node has handed to an interface of a guest so far.

    Raises:
        InstrumentError: the node cannot be asked.

    """
    return int(machine.read(f"cat /sys/class/net/{nic.tap}/statistics/tx_bytes"))


def tracked(machine: Machine, nic: GuestNic) -> int:
    """Return how many connections that are not closed a node tracks for a port, as its kernel lists them.

    Raises:
        InstrumentError: the node cannot be asked, or gives the port no zone of its own.

    """
    zone = zones(machine).get(nic.port)
    if zone is None:
        raise InstrumentError(
            f"{machine.name} tracks nothing for {nic.tap}",
            fact="the port has no zone",
            remedy="run `testbed up`",
        )
    return int(
        machine.read(
            f"ovs-appctl dpctl/dump-conntrack zone={zone} | grep -vcE 'state=(CLOSE|TIME_WAIT)[)]' || true"
        )
    )


def zones(machine: Machine) -> Mapping[str, int]:
    """Return the zone in which a node tracks connections, by port."""
    text = machine.read("ovn-appctl -t ovn-controller ct-zone-list")
    return {port: int(zone) for port, zone in re.findall(r"^(\S+) (\d+)$", text, re.MULTILINE)}


def unlimited(fleet: Fleet, node: str) -> list[str]:
    """Return where a node's kernel limits its guests' interfaces otherwise than the topology says.

    Raises:
        InstrumentError: the node cannot be asked, or a guest does not run.

    """
    machine, guests = fleet.machines[node], fleet.testbed.guests_on(node)
    packets = policing.observed(node, guests, machine.read(FILTERS))
    own, text = (
        zones(machine),
        machine.read("ovs-appctl dpctl/ct-get-limits; cat /proc/sys/net/netfilter/nf_conntrack_max"),
    )
    shares = {int(zone): int(share) for zone, share in re.findall(r"zone=(\d+),limit=(\d+)", text)}
    findings: list[str] = []
    for guest in guests:
        for nic in guest.nics:
            live = packets.get(Key(node, Kind.LIMIT, f"{guest.label}/{nic.network}"))
            if live is None:
                raise InstrumentError(
                    f"{guest.label} does not run", fact=f"{nic.tap} is not there", remedy="run `testbed up`"
                )
            findings += _differences(guest, nic, live["packets"], shares.get(own.get(nic.port, -1)))
    whole, most = sum(len(guest.nics) * guest.limits.connections for guest in guests), int(text.split()[-1])
    return findings + (
        [f"{node} tracks {most} connections, and its guests may have {whole}"] if whole > most else []
    )


def _differences(guest: Guest, nic: GuestNic, packets: object, share: int | None) -> list[str]:
    facts = {"packets": (packets, guest.limits.packets), "connections": (share, guest.limits.connections)}
    return [
        f"kernel: {name} of {guest.label}/{nic.network} are limited to {live} and not {wanted}"
        for name, (live, wanted) in facts.items()
        if live != wanted
    ]
