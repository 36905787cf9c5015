"""Looks at what a quiet guest must do in its time, and at the management of its node (DOS-01)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from testbed.errors import InstrumentError
from testbed.model.topology import Guest
from testbed.payload import heartbeats
from testbed.verify.exhaustion.disk_load import counters
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.guest_agent import run_in_guest
from testbed.verify.heartbeats.pulses import NodePulse, Written, lost, parsed, unwritten

PROGRAM = Path(heartbeats.__file__).parent / "pulse.py"
BEATS, PAUSE, PATIENCE = 60, 0.1, 3.0  # of a look: questions, and seconds
_FILE = "/var/tmp/heartbeat"  # noqa: S108 - in a guest, where it is ours alone
_WRITE = ("/bin/sh", "-c", f"dd if=/dev/zero of={_FILE} bs=512 count=1 conv=fsync && rm {_FILE}")
_WRITING = 12.0  # seconds in which a write ends
_STATISTICS, _DISK, _WAITING = "/proc/diskstats", "vda", 11  # column of operations in progress
_LATER = 2.0  # seconds in which one of its operations ends, if it is only slow
_API = 8  # seconds in which libvirt lists its domains
_TIMED_OUT = 124  # status of timeout(1)
_TIMEOUT = 90.0


def request(guests: Sequence[Guest], beats: int, pause: float, patience: float) -> object:
    """Return the request of `testbed.payload.heartbeats.pulse` for some guests."""
    own = {guest.domain: {nic.tap: str(nic.address) for nic in guest.nics} for guest in guests}
    return {"beats": beats, "pause": pause, "patience": patience, "guests": own}


def listed(machine: MachineView) -> frozenset[str] | None:
    """Return the domains that a node's libvirt lists; None if it does not answer in its time.

    Raises:
        InstrumentError: the node cannot be asked, or libvirt refuses to answer.
    """
    machine.read("true")  # a login works
    done = machine.run(f"timeout {_API} virsh -q list --name")
    if done.status == _TIMED_OUT:
        return None
    if done.status:
        fact = f"status {done.status}: {done.stderr[-200:].decode(errors='replace').strip()}"
        raise InstrumentError(
            f"libvirt of {machine.name} does not answer", fact=fact, remedy="run `testbed status`"
        )
    return frozenset(done.text.split())


def withheld(domains: frozenset[str] | None, guests: Sequence[Guest]) -> list[str]:
    """Return what the management of a node does not do.

    Args:
        domains: see `listed`.
    """
    if domains is None:
        return [f"libvirt's API does not answer within {_API} s"]
    return [f"libvirt does not list {guest.label}" for guest in guests if guest.domain not in domains]


def faults(fleet: Fleet, machine: MachineView, guests: Sequence[Guest], beats: int = BEATS) -> list[str]:
    """Return what quiet guests of a node do not do, or its management.

    Args:
        beats: questions on each interface.

    Raises:
        InstrumentError: it cannot be asked.
        UnseenError: too little was observed, or something is slow.
    """
    if found := withheld(listed(machine), guests):
        return found  # without libvirt, no guest can be asked
    with ThreadPoolExecutor(max_workers=1 + len(guests)) as pool:
        beating = pool.submit(_pulse, machine, guests, beats)
        writes = [pool.submit(_written, fleet, guest) for guest in guests]
        pulse = beating.result()
        found = lost(pulse, {guest.domain: guest.label for guest in guests})
        # A guest that does not run does not write either: what it lost comes first.
        return found or unwritten([future.result() for future in writes], pulse.stood)


def _pulse(machine: MachineView, guests: Sequence[Guest], beats: int) -> NodePulse:
    asked = request(guests, beats, PAUSE, PATIENCE)
    return parsed(machine.python(PROGRAM.read_text(), asked, _TIMEOUT, function="collect"))


def _in_progress(fleet: Fleet, guest: Guest) -> bool:
    """Return whether a guest waits for its root disk; a busy one may not have begun to write.

    Raises:
        InstrumentError: its agent does not answer: it does not run.
    """
    text = (fleet.files_of(guest).read(_STATISTICS) or b"").decode("ascii", "replace")
    rows = [line.split() for line in text.splitlines()]
    return any(
        len(row) > _WAITING and row[2] == _DISK and row[_WAITING].lstrip("0").isdecimal() for row in rows
    )


def _written(fleet: Fleet, guest: Guest) -> Written:
    """Let a guest write to its root disk, past its caches, and count what arrives at its QEMU.

    Raises:
        InstrumentError: its agent does not answer, or QEMU does not count.
    """
    node = fleet.lab.nodes[guest.node]
    _, before = counters(fleet, guest)
    began, started = time.monotonic(), time.time()
    status, fact = None, ""
    try:
        status = run_in_guest(node, guest, _WRITE, b"", _WRITING).status
    except InstrumentError as error:
        fact = error.fact
        if time.monotonic() - began < _WRITING:
            raise
    seconds = time.monotonic() - began
    _, over = counters(fleet, guest)
    later, waits = over, False
    if status is None:
        waits = _in_progress(fleet, guest)
        time.sleep(_LATER)
        waits = waits and _in_progress(fleet, guest)
        _, later = counters(fleet, guest)
    found = Written(guest.label, status, fact, (before, over, later), waits, seconds)
    fleet.evidence.record(guest.label, "guest", " ".join(_WRITE), str(found), started)
    return found
