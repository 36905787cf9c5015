"""Measures a flood: a node's frame counters, the duration, and tracked connections (NET-12)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from testbed.errors import InstrumentError
from testbed.model.topology import Guest, GuestNic
from testbed.plan import policing
from testbed.plan.host_config.settings import FILTERS
from testbed.plan.resources import Key, Kind, Properties
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.observation.port_counters import await_frames

_SETTLING = 20.0  # seconds in which the switch sets a limit that OVN has asked for, on an emulated machine
_AGAIN = 2.0  # seconds between two looks at limits

_HALTING = 2.5  # seconds between the decision to end a flood and its end as seen from here
# Waits until revalidators have added the datapath's counters to the rules'. Two rounds, since the present one
# may have begun before the last frame (ovs-vswitchd(8), UPCALL COMMANDS).
_COUNTED = "ovs-appctl revalidator/wait && ovs-appctl revalidator/wait"


@dataclass(frozen=True, slots=True)
class Flood:
    """Frames that one interface has sent, as its node counted them.

    Args:
        offered: frames that came from the guest.
        switched: those of them that the switch has processed.
        seconds: duration at most.
    """

    offered: int
    switched: int
    seconds: float


NOTHING = Flood(0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class Bound:
    """A token bucket's limit: a burst, and a rate per second."""

    burst: float
    rate: float

    def within(self, seconds: float) -> float:
        """Return the most that passes in `seconds`."""
        return self.burst + self.rate * seconds

    def times(self, factor: float) -> Bound:
        """Return a bound that is `factor` times as high."""
        return Bound(self.burst * factor, self.rate * factor)


def flood(
    machine: MachineView,
    nic: GuestNic,
    send: Callable[[], object],
    halt: Callable[[], object],
    beyond: Bound,
    patience: float,
) -> Flood:
    """Measure the frames of an interface while `send` runs, and the duration.

    The duration is measured from here, and is no less than the flood's.

    Args:
        halt: ends the sending before its time.
        beyond: frames that are enough.
        patience: seconds after which the flood is ended even without enough frames.

    Raises:
        InstrumentError: the node cannot be asked.
    """
    before, began = _counts(machine, nic), time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as pool:
        sending = pool.submit(send)
        try:
            with suppress(InstrumentError):  # too few frames; the counters below show how many
                await_frames(machine, [nic.tap], beyond.within(_HALTING), patience, rate=beyond.rate)
        finally:
            halt()
            sending.result()
    seconds = time.monotonic() - began
    after = _counts(machine, nic)
    return Flood(after[0] - before[0], after[1] - before[1], round(seconds, 2))


def _counts(machine: MachineView, nic: GuestNic) -> tuple[int, int]:
    """Return the frames from an interface so far, and how many of them the switch has processed."""
    offered, _, flows = machine.read(
        f"{_COUNTED} && cat /sys/class/net/{nic.tap}/statistics/rx_packets; "
        "ovs-ofctl -O OpenFlow15 dump-flows br-int table=0,in_port=$(ovs-vsctl get interface "
        f"{nic.tap} ofport)"
    ).partition("\n")
    return int(offered), sum(map(int, re.findall(r"n_packets=(\d+)", flows)))


def offered(machine: MachineView, nic: GuestNic) -> int:
    """Return the number of frames that a node has received from a guest's interface so far.

    Raises:
        InstrumentError: the node cannot be asked.
    """
    return int(machine.read(f"cat /sys/class/net/{nic.tap}/statistics/rx_packets"))


def received(machine: MachineView, nic: GuestNic) -> int:
    """Return the number of octets that a node has delivered to a guest's interface so far.

    Raises:
        InstrumentError: the node cannot be asked.
    """
    return int(machine.read(f"cat /sys/class/net/{nic.tap}/statistics/tx_bytes"))


def tracked(machine: MachineView, nic: GuestNic) -> int:
    """Return the number of open connections that a node's kernel tracks for a port.

    Raises:
        InstrumentError: the node cannot be asked, or the port has no zone of its own.
    """
    zone = policing.zones(machine.read(policing.TRACKING)).get(nic.port)
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


def unlimited(fleet: Fleet, node: str) -> list[str]:
    """Return the differences of a node's kernel limits on guest interfaces from the topology.

    A limit of connections that is missing is looked for again for `_SETTLING`: OVN asks for it when it binds
    a port, and the switch sets it later. Each look is evidence.

    Raises:
        InstrumentError: the node cannot be asked, or a guest does not run.
    """
    end = time.monotonic() + _SETTLING
    while True:
        findings, missing = _limits_now(fleet, node)
        if not missing or time.monotonic() > end:
            return findings
        time.sleep(_AGAIN)


def _limits_now(fleet: Fleet, node: str) -> tuple[list[str], bool]:
    """Return the differences, and whether the kernel lacks a limit of connections."""
    machine, guests = fleet.machines[node], fleet.topology.guests_on(node)
    limits = policing.observed(node, guests, machine.read(FILTERS), machine.read(policing.TRACKING))
    most = int(machine.read("cat /proc/sys/net/netfilter/nf_conntrack_max"))
    findings: list[str] = []
    missing = False
    for guest in guests:
        for nic in guest.nics:
            live = limits.get(Key(node, Kind.LIMIT, f"{guest.label}/{nic.network}"))
            if live is None:
                raise InstrumentError(
                    f"{guest.label} does not run", fact=f"{nic.tap} is not there", remedy="run `testbed up`"
                )
            missing = missing or not live["connections"]
            findings += _differences(guest, nic, live)
    whole = sum(len(guest.nics) * guest.limits.connections for guest in guests)
    if whole > most:
        findings.append(f"{node} tracks {most} connections, and its guests may have {whole}")
    return findings, missing


def _differences(guest: Guest, nic: GuestNic, live: Properties) -> list[str]:
    wanted = {"packets": guest.limits.packets, "connections": guest.limits.connections}
    return [
        f"kernel: {name} of {guest.label}/{nic.network} are limited to {live[name]} and not {limit}"
        for name, limit in wanted.items()
        if live[name] != limit
    ]
