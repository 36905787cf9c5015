"""Channels between guests and their root partition: what is declared, and what a hostile agent can do."""

from __future__ import annotations

import os
import time
from pathlib import Path

from checks.support import agent_breaches, device_breaches
from checks.support.breaches import needs_guest
from checks.support.judging import judging
from testbed import payload
from testbed.model import subjects
from testbed.plan.host_config.daemon_limits import MEMORY
from testbed.verify.agents import answers as agent_answers
from testbed.verify.agents import daemon_memory
from testbed.verify.agents.memory_peaks import PeakOfNode, PeakOfProcess
from testbed.verify.agents.questions import HostileAgent, pinged, silent
from testbed.verify.attackers.ephemeral_guest import Throwaway
from testbed.verify.check import Effect, check
from testbed.verify.devices import channels, observe
from testbed.verify.fleet import Fleet, MachineView

_PROGRAM = Path(payload.__file__).parent / "guest_channels.py"
_SHOWN = 6
_CLOCKS = 5  # seconds by which clocks of machines may differ


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


@check(
    id="DEV-03",
    objective="A hostile agent neither holds up nor fills nor deceives the tool, and no other guest feels it",
    severity="high",
    effect=Effect.DISTURBS,
    applies=needs_guest,
    breaches=(
        agent_breaches.TEXT_IN_LOG,
        agent_breaches.TEXT_IN_JOURNAL,
        agent_breaches.NO_ESCAPING,
        agent_breaches.NO_BOUND,
        agent_breaches.NO_TIMEOUT,
    ),
)
def test_a_hostile_agent_is_stood(fleet: Fleet) -> None:
    node = fleet.machines[subjects.host(fleet.topology)]
    guests = fleet.topology.guests
    own = fleet.topology.guests_on(node.name)[0]
    stranger = Throwaway.beside(fleet, own, own.nics[0].address)
    with judging(f"the hostile agent on {node.name}"), stranger.present(fleet):
        agent = HostileAgent(fleet, stranger)
        with pinged(fleet, guests) as calm:
            agent.start()
        began = time.time()
        tool, libvirt = PeakOfProcess(os.getpid()), PeakOfNode(node, "libvirtd")
        faults = []
        with pinged(fleet, guests) as pings:
            for answered in agent.play():
                faults += agent_answers.faults(answered, (stranger.guest.domain, stranger.guest.label))
                if faults:  # later answers would show no more
                    break
            else:
                agent.require_heard()
        if not faults:
            faults += [*tool.faults("the tool"), *libvirt.faults(f"libvirtd of {node.name}")]
            faults += pings.faults(calm)
            since, own_files = int(began) - _CLOCKS, [stranger.guest.console]
            request = {"text": agent.token, "since": since, "skipped": own_files}
            logs = channels.parsed_logs(node.python(_PROGRAM.read_text(), request, function="search"))
            faults += channels.obeyed(logs)
    assert not faults, f"{len(faults)} faults: {'; '.join(faults[:_SHOWN])}"


@check(
    id="DEV-03",
    objective="An agent that fills libvirtd's memory meets a limit; libvirtd comes back, and guests run on",
    severity="high",
    effect=Effect.RESTARTS,
    applies=needs_guest,
    breaches=(agent_breaches.NO_LIMIT,),
)
def test_the_memory_of_libvirtd_is_bounded(fleet: Fleet) -> None:
    name = subjects.host(fleet.topology)
    node, place = fleet.machines[name], fleet.lab.nodes[name]
    own = fleet.topology.guests_on(name)[0]
    stranger = Throwaway.beside(fleet, own, own.nics[0].address)

    def restore() -> None:
        daemon_memory.recover(node)
        place.reconnect()
        for tenant in sorted({guest.tenant for guest in fleet.topology.guests_on(name) if guest.volumes}):
            place.define_key(tenant)

    with judging(f"libvirtd of {name}"), stranger.present(fleet):
        agent = HostileAgent(fleet, stranger)
        agent.start()
        before = daemon_memory.look(node)
        daemon_memory.require_room(node, before)
        with (
            fleet.interruptions.during("libvirtd meets its limit", name),
            fleet.leavings.made(f"libvirtd of {name} without the keys of volumes", restore),
        ):
            agent.fill(MEMORY + daemon_memory.BEYOND)
            after = daemon_memory.settled(node, before)
        faults = daemon_memory.faults(f"libvirtd of {name}", before, after)
        faults += silent(fleet, fleet.topology.guests)
    assert not faults, f"{len(faults)} faults: {'; '.join(faults[:_SHOWN])}"
