"""Guests that read their disks as fast as they can, and what QEMU counts of it (DOS-04)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import InstrumentError
from testbed.model.topology import Guest
from testbed.payload import attacks
from testbed.untrusted.bounded_json import whole
from testbed.verify.fleet import Fleet

_PROGRAM = Path(attacks.__file__).parent / "disk_reads.py"
_OVER = "/run/reads.over"  # file in a guest that ends its reads
_STARTING = 25.0  # seconds in which a guest's program has begun to read
_BEGUN = 5  # operations by which it is seen to have begun
_PAUSE = 0.5
_LARGEST = 2**60


@dataclass(frozen=True, slots=True)
class Rate:
    """What one guest's disks have done in some seconds.

    The time is measured from here, around both readings of the counters, so that it is no less than theirs.

    Args:
        octets: read and written.
        operations: of the guest.
    """

    octets: int
    operations: int
    seconds: float


def counters(fleet: Fleet, guest: Guest) -> tuple[int, int]:
    """Return octets and operations of a guest's disks since its start, from its QEMU.

    Raises:
        InstrumentError: it does not answer, or answers something else.
    """
    started = time.time()
    answer = fleet.lab.nodes[guest.node].hypervisor.ask_monitor(guest.domain, "query-blockstats", {})
    try:
        stats = [device["stats"] for device in answer]
        octets, operations = (
            sum(whole(stat[f"{way}_{kind}"], 0, _LARGEST) for stat in stats for way in ("rd", "wr"))
            for kind in ("bytes", "operations")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InstrumentError(
            f"the disks of {guest.label} cannot be counted", fact=str(error)[:200], remedy="run `testbed up`"
        ) from error
    fleet.evidence.record(guest.label, "monitor", "query-blockstats", [octets, operations], started)
    return octets, operations


def rate(fleet: Fleet, guests: tuple[Guest, ...], seconds: float) -> tuple[Rate, ...]:
    """Return what the disks of guests do during some seconds."""
    began = time.monotonic()
    before = [counters(fleet, guest) for guest in guests]
    time.sleep(seconds)
    after = [counters(fleet, guest) for guest in guests]
    lasted = time.monotonic() - began
    return tuple(
        Rate(last[0] - first[0], last[1] - first[1], round(lasted, 2))
        for first, last in zip(before, after, strict=True)
    )


@contextmanager
def reading(fleet: Fleet, guest: Guest, size: int, seconds: float) -> Iterator[None]:
    """Let a guest read pieces of its disk during the block.

    Args:
        size: bytes of a piece.
        seconds: time that the block takes at most; the guest reads on until it is over.

    Raises:
        InstrumentError: it does not begin in time, or ends before the block.
    """
    program = f"{_PROGRAM.read_text()}\nread({size}, {seconds}, {_OVER!r})\n"
    _, before = counters(fleet, guest)
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(
            fleet.in_guest, guest, ["/usr/bin/python3", "-I", "-"], program.encode(), seconds + 120
        )
        end = time.monotonic() + _STARTING
        while counters(fleet, guest)[1] < before + _BEGUN:
            if future.done() or time.monotonic() > end:
                future.result()
                raise InstrumentError(
                    f"{guest.label} does not read its disk",
                    fact=f"fewer than {_BEGUN} operations",
                    remedy="repeat the check when the machine is less busy",
                )
            time.sleep(_PAUSE)
        yield
        if future.done():
            future.result()
            raise InstrumentError(
                f"{guest.label} stopped reading too early",
                fact=f"it reads for {seconds:.0f} s",
                remedy="repeat the check when the machine is less busy",
            )
        fleet.in_guest(guest, ["/bin/touch", _OVER])
        future.result()
