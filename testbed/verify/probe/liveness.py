"""Measures whether machines stalled, which separates slowness from walls (NET-09, ACC-02).

A machine whose emulator gets no time sees its clock jump; one that is paused sees nothing, and its clock is
behind afterwards. So each machine measures its own pauses, and its clock is compared with ours.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from testbed import timeouts
from testbed.errors import InstrumentError
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.probe.client import ProbeClient, inconclusive, on_machine
from testbed.verify.probe.requests import Beat, Signal

OUTER = "the outer machine"
_BEAT = 0.1  # seconds
_LONGEST = timeouts.BEATING


@dataclass(frozen=True, slots=True)
class Moment:
    """A reading of a machine's clock between two readings of ours, in seconds."""

    told: float
    asked: float
    answered: float

    def behind(self, later: Moment) -> float:
        """Return the least number of seconds that a machine's clock lost until a later moment."""
        return max(0.0, later.asked - self.answered - (later.told - self.told))


def _moment(machine: MachineView, command: str, ours: float) -> Moment:
    asked = time.monotonic()
    text = machine.read(command)
    try:
        return Moment(float(text.split()[0]), ours + asked, ours + time.monotonic())
    except (ValueError, IndexError) as error:
        raise inconclusive(f"the clock of {machine.name} cannot be read", repr(text[:80])) from error


def clock_error(machine: MachineView) -> float:
    """Return the least error of a machine's clock in seconds; positive if it is ahead of ours.

    Raises:
        InstrumentError: the clock cannot be read.
    """
    found = _moment(machine, "date +%s.%N", time.time() - time.monotonic())
    return max(0.0, found.told - found.answered) + min(0.0, found.told - found.asked)


@contextmanager
def beating(fleet: Fleet) -> Iterator[dict[str, float]]:
    """Let every machine measure its longest stall during the block.

    Yields:
        afterwards, by machine, the longest stall in seconds; that of our own machine as `OUTER`.

    Raises:
        InstrumentError: a machine gives no measurement.
    """
    stood: dict[str, float] = {}
    before = uptimes(fleet)
    hearts = {name: on_machine(fleet, machine) for name, machine in fleet.machines.items()}
    with ThreadPoolExecutor(max_workers=2 * len(hearts) + 1) as pool, _own_heart(stood):
        going = {
            name: pool.submit(heart.listen, Beat(phase="beat", duration=_LONGEST))
            for name, heart in hearts.items()
        }
        try:
            yield stood
        except BaseException:
            with suppress(InstrumentError):  # it would hide the exception of the block
                _rest(pool, hearts)
            raise
        _rest(pool, hearts)
    after = uptimes(fleet)
    for name, beat in going.items():
        longest, rested = beat.result().get("longest"), beat.result().get("rested")
        if not isinstance(longest, float | int) or rested is not True:
            raise inconclusive(f"{name} does not tell whether it stood still", str(beat.result())[:200])
        stood[name] = max(float(longest), before[name].behind(after[name]))
    fleet.evidence.record("fleet", "pulse", "how long machines stood still", dict(stood), time.time())


def _rest(pool: ThreadPoolExecutor, hearts: Mapping[str, ProbeClient]) -> None:
    list(pool.map(lambda heart: heart.ask(Signal(phase="rest")), hearts.values()))


@contextmanager
def _own_heart(stood: dict[str, float]) -> Iterator[None]:
    """Measure the longest stall of our own process during the block."""
    rest = threading.Event()

    def beat() -> None:
        now = time.monotonic()
        while not rest.wait(_BEAT):
            before, now = now, time.monotonic()
            stood[OUTER] = max(stood[OUTER], now - before - _BEAT)

    stood[OUTER] = 0.0
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        rest.set()
        thread.join()


def uptimes(fleet: Fleet) -> Mapping[str, Moment]:
    """Return each machine's uptime with the times of its reading.

    Raises:
        InstrumentError: a machine gives none.
    """
    with ThreadPoolExecutor(max_workers=len(fleet.machines)) as pool:
        found = pool.map(lambda machine: _moment(machine, "cat /proc/uptime", 0.0), fleet.machines.values())
        return dict(zip(fleet.machines, found, strict=True))
