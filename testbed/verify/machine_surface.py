"""The attack surface of the machines of a lab, compared with its baseline (PRO-01)."""

from __future__ import annotations

import time
from dataclasses import dataclass

from testbed.drivers.places.machine_inventory import read_machine
from testbed.inventory import surface
from testbed.inventory.records import Inventory
from testbed.inventory.surface import LISTENER, PROCESS
from testbed.verify import machine_reference
from testbed.verify.fleet import Fleet, MachineView

_RUNNING = ("network", "processes")
_PAUSE = 3.0  # seconds after which a program that the manager has started for a moment is gone


@dataclass(frozen=True, slots=True)
class MachineSurface:
    """The surface of one machine.

    Args:
        parts: its number of parts.
        more: in words, each part that the baseline does not have.
        gone: each part of the baseline that it does not have; that is no fault.
        gaps: places that could not be read, with the reason.

    """

    parts: int
    more: tuple[str, ...]
    gone: tuple[str, ...]
    gaps: tuple[str, ...]


def state(fleet: Fleet, machine: MachineView) -> MachineSurface:
    """Return the surface of a machine in this phase, recorded as evidence.

    A process or socket counts if it is still there after some seconds.

    Raises:
        InstrumentError: the machine does not answer.

    """
    started = time.time()
    declared = fleet.topology.machine(machine.name)
    accepted = surface.baseline()[declared.role]
    first = machine_reference.reading(fleet, machine.name) or _read(
        fleet, machine, machine_reference.SURFACE_COLLECTORS
    )
    parts, gaps = surface.surface(first, fleet.topology, declared), {**first.unfinished}
    if any(part.kind in (LISTENER, PROCESS) for part in surface.more(parts, accepted)):
        time.sleep(_PAUSE)
        again = _read(fleet, machine, _RUNNING)
        lasting = surface.surface(again, fleet.topology, declared)
        parts = {part for part in parts if part in lasting or part.kind not in (LISTENER, PROCESS)}
        gaps |= again.unfinished
    found = MachineSurface(
        len(parts),
        tuple(surface.grown(parts, accepted)),
        tuple(surface.gone(parts, accepted)),
        tuple(f"{place}: {why}" for place, why in gaps.items()),
    )
    answer = {"more": found.more, "gone": found.gone, "not read": found.gaps}
    fleet.evidence.record(machine.name, "surface", f"{found.parts} parts of the surface", answer, started)
    return found


def _read(fleet: Fleet, machine: MachineView, collectors: tuple[str, ...]) -> Inventory:
    return read_machine(fleet.lab.host(machine.name), {"only": collectors})
