"""Whether machines kept going while they were asked: what tells a slow machine from a wall (NET-09, ACC-02).

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

from testbed.errors import InstrumentError
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.probe.client import Instrument, broken, on_machine

OUTER = "the outer machine"
_BEAT = 0.1  # seconds
_LONGEST = 280.0  # seconds that an observation may take


@dataclass(frozen=True, slots=True)
class Moment:
    """What a machine's clock showed, and between which two moments of ours, in seconds."""

    told: float
    asked: float
    answered: float

    def behind(self, later: Moment) -> float:
        """Return by how many seconds less than ours a machine's clock went on until a later moment, at
        least.
        """
        return max(0.0, later.asked - self.answered - (later.told - self.told))


def _moment(machine: Machine, command: str, ours: float) -> Moment:
    asked = time.monotonic()
    text = machine.read(command)
    try:
        return Moment(float(text.split()[0]), ours + asked, ours + time.monotonic())
    except (ValueError, IndexError) as error:
        raise broken(f"the clock of {machine.name} cannot be read", repr(text[:80])) from error


def clock_error(machine: Machine) -> float:
    """Return by how many seconds a machine's clock is ahead of ours, at least; negative if it is behind.

    Raises:
        InstrumentError: it does not tell.

    """
    found = _moment(machine, "date +%s.%N", time.time() - time.monotonic())
    return max(0.0, found.told - found.answered) + min(0.0, found.told - found.asked)


@contextmanager
def beating(fleet: Fleet) -> Iterator[dict[str, float]]:
    """While a block runs, let every machine notice how long it stands still.

    Yields:
        afterwards, by machine, the longest time in seconds; that of our own machine by `OUTER`.

    Raises:
        InstrumentError: a machine cannot tell.

    """
    stood: dict[str, float] = {}
    before = uptimes(fleet)
    hearts = {name: on_machine(fleet, machine) for name, machine in fleet.machines.items()}
    with ThreadPoolExecutor(max_workers=2 * len(hearts) + 1) as pool, _own_heart(stood):
        going = {
            name: pool.submit(heart.listen, {"phase": "beat", "duration": _LONGEST})
            for name, heart in hearts.items()
        }
        try:
            yield stood
        except BaseException:
            with suppress(InstrumentError):  # it would hide why the block broke off
                _rest(pool, hearts)
            raise
        _rest(pool, hearts)
    after = uptimes(fleet)
    for name, beat in going.items():
        longest, rested = beat.result().get("longest"), beat.result().get("rested")
        if not isinstance(longest, float | int) or rested is not True:
            raise broken(f"{name} does not tell whether it stood still", str(beat.result())[:200])
        stood[name] = max(float(longest), before[name].behind(after[name]))
    fleet.evidence.record("fleet", "pulse", "how long machines stood still", dict(stood), time.time())


def _rest(pool: ThreadPoolExecutor, hearts: Mapping[str, Instrument]) -> None:
    list(pool.map(lambda heart: heart.ask({"phase": "rest"}), hearts.values()))


@contextmanager
def _own_heart(stood: dict[str, float]) -> Iterator[None]:
    """Notice how long our own machine gives us no time."""
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
    """Return how long each machine says that it has been up.

    Raises:
        InstrumentError: one does not.

    """
    with ThreadPoolExecutor(max_workers=len(fleet.machines)) as pool:
        found = pool.map(lambda machine: _moment(machine, "cat /proc/uptime", 0.0), fleet.machines.values())
        return dict(zip(fleet.machines, found, strict=True))
