"""Channels between guests and their root partition."""

from __future__ import annotations

from pathlib import Path

from checks.support import agent_breaches, device_breaches
from checks.support.breaches import needs_guest
from checks.support.judging import judging
from testbed import payload
from testbed.verify.check import Effect, check
from testbed.verify.devices import channels, observe
from testbed.verify.fleet import Fleet, MachineView

_PROGRAM = Path(payload.__file__).parent / "guest_channels.py"
_SHOWN = 6


@check(
    id="DEV-03",
    objective="Each guest has one channel for its agent beside its console, which its worker alone reaches",
    severity="high",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        agent_breaches.OPEN_SOCKET,
        device_breaches.HIDDEN_PORT,
        device_breaches.PLUGGED,
    ),
)
def test_channels_are_declared(fleet: Fleet, node: MachineView) -> None:
    workers = {guest.domain: guest.uid for guest in fleet.topology.guests_on(node.name)}
    faults = []
    with judging(f"the channels of guests on {node.name}"):
        views = observe.domains(fleet, node)
        for view in views:
            faults += [
                f"{view.name}: {text}" for text in channels.undeclared(view.name, view.xml, view.answers)
            ]
        found = channels.parsed(node.python(_PROGRAM.read_text(), {}, function="collect"))
        running = {view.name for view in views}
        faults += channels.exposed(found, workers, running)
    assert not faults, f"{len(faults)} faults: {'; '.join(faults[:_SHOWN])}"
