"""Guests that want all CPU time, and who gets how much of it (DOS-02)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from testbed.errors import InstrumentError
from testbed.model.topology import Guest
from testbed.payload import attacks
from testbed.untrusted.answers import formed
from testbed.verify.fleet import Fleet, MachineView

_PROGRAM = Path(attacks.__file__).parent / "cpu_shares.py"
_OVER = "/run/load.over"  # file in a guest that ends its load
_SPIN = "for number in $(seq {count}); do while [ ! -e {over} ]; do :; done & done; wait"
_END = f"touch {_OVER}"
_TIMEOUT = 180.0  # seconds
_STARTING = 25.0  # seconds in which all guests have begun
_BUSY = 0.1  # share of one CPU by which a guest is seen to have begun
_LOOK = 1.0
_Count = Annotated[int, Field(ge=0)]


class Used(BaseModel):
    """CPU time that a worker has used, in microseconds, and how often it was throttled."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    usage_usec: _Count
    nr_throttled: _Count


class Shares(BaseModel):
    """Who has used a node's CPU time.

    Args:
        elapsed: microseconds.
        own: CPU time of a program in the root partition that wanted all of it, in microseconds.
        groups: of each worker, by domain.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    elapsed: Annotated[int, Field(gt=0)]
    processors: Annotated[int, Field(gt=0)]
    own: _Count
    groups: dict[str, Used]

    def percentage(self, guest: Guest) -> float:
        """Return the CPU time that a guest has used, as a percentage of one CPU."""
        return 100 * self.groups[guest.domain].usage_usec / self.elapsed

    @property
    def root(self) -> float:
        """The share of the node's CPU time that the root partition's program has got."""
        return self.own / self.elapsed / self.processors


_ANSWER = TypeAdapter(Shares)


def shares(machine: MachineView, seconds: float, *, spin: bool) -> Shares:
    """Return who has used a node's CPU time during some seconds.

    Args:
        spin: whether a program of the root partition wants all of it, too.

    Raises:
        InstrumentError: the node cannot be asked.
    """
    request = {"seconds": seconds, "spin": spin}
    answer = machine.python(_PROGRAM.read_text(), request, _TIMEOUT, function="collect")
    try:
        return formed(_ANSWER, answer)
    except ValueError as error:
        raise InstrumentError(
            f"the CPU times of {machine.name} have another form", fact=str(error)[:400], remedy="report it"
        ) from error


def measured(fleet: Fleet, guests: Sequence[Guest], seconds: float, *, spin: bool) -> Shares:
    """Return who gets the CPU time of a node while some of its guests use all that they get.

    Raises:
        InstrumentError: a guest did not want CPU time during all of the measurement.
    """
    machine = fleet.machines[guests[0].node]
    whole = int(seconds + _STARTING)
    with ThreadPoolExecutor(max_workers=len(guests)) as pool:
        running = {guest.label: pool.submit(_spin, fleet, guest, whole) for guest in guests}
        _await_load(machine, guests, running)
        found = shares(machine, seconds, spin=spin)
        over = [label for label, future in running.items() if future.done()]
        for guest in guests:
            fleet.in_guest(guest, ["/bin/sh", "-c", _END])
        for future in running.values():
            future.result()
    if over:
        raise InstrumentError(
            f"{', '.join(over)} ended before the measurement",
            fact=f"it wanted CPU time for {whole} s",
            remedy="repeat the check when the machine is less busy",
        )
    return found


def _spin(fleet: Fleet, guest: Guest, seconds: int) -> None:
    command = _SPIN.format(count=guest.vcpus, over=_OVER)
    text = f"rm -f {_OVER}; timeout {seconds} sh -c '{command}'; echo $?; rm -f {_OVER}"
    answer = fleet.in_guest(guest, ["/bin/sh", "-c", text], timeout=seconds + 120)
    if answer.strip() != b"0":
        raise InstrumentError(
            f"{guest.label} did not use CPU time", fact=repr(answer[:80]), remedy="repeat the check"
        )


def _await_load(machine: MachineView, guests: Sequence[Guest], running: dict[str, Future[None]]) -> None:
    """Wait until each guest uses CPU time.

    Raises:
        InstrumentError: one does not, in time.
    """
    end = time.monotonic() + _STARTING
    while True:
        found = shares(machine, _LOOK, spin=False)
        idle = [guest.label for guest in guests if found.percentage(guest) < 100 * _BUSY]
        if not idle:
            return
        if time.monotonic() > end or any(future.done() for future in running.values()):
            raise InstrumentError(
                f"{', '.join(idle)} does not use CPU time",
                fact="its worker is idle",
                remedy="repeat the check when the machine is less busy",
            )
