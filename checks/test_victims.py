"""Victims: guests that do nothing must run, answer and write while others are attacked (DOS-01).

Every guest is a victim. Its pulse is taken from its node: its worker's threads, its network card, and the
operations that its QEMU counts when its agent writes to its disk. The management of its node must answer too.
"""

from __future__ import annotations

from checks.support import victim_breaches
from checks.support.breaches import needs_guest
from checks.support.judging import judging
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.heartbeats import look

_SHOWN = 6


@check(
    id="DOS-01",
    objective="Each quiet guest runs, answers and writes to its disk, and the management of its node answers",
    severity="high",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        victim_breaches.PAUSED,
        victim_breaches.LOSSY,
        victim_breaches.HELD_WRITES,
        victim_breaches.HELD_API,
    ),
)
def test_victims_are_alive(fleet: Fleet, node: MachineView) -> None:
    with judging(f"the pulse of guests on {node.name}"):
        faults = look.faults(fleet, node, fleet.topology.guests_on(node.name))
    assert not faults, f"{len(faults)} faults: {'; '.join(faults[:_SHOWN])}"
