"""Observations during disruptions: services restart, guests come, rules are removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address
from typing import Any

from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from checks.support.attacker_positions import Position, positions
from checks.support.spoofed_frames import Forgery, forgeries, of_position
from testbed import timeouts
from testbed.engine.apply import converge_place
from testbed.errors import InstrumentError
from testbed.model.reachability import Endpoint, endpoints
from testbed.model.subjects import host, leaver, ordered
from testbed.model.topology import AllowedFlow, TenantNetwork
from testbed.plan.ovn_acls import Acl, acls
from testbed.verify.attackers.ephemeral_guest import BOOT, TAP, Throwaway
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.observation.arrivals import Observation, matrix_probes
from testbed.verify.observation.declared_flows import KINDS
from testbed.verify.observation.observe import Attack, observe
from testbed.verify.observation.port_counters import RECEIVED, await_frames
from testbed.verify.observation.tap_witness import arrived_so_far, require_agreement
from testbed.verify.probe.client import Probe, in_guest, inconclusive
from testbed.verify.probe.frames import framed
from testbed.verify.probe.requests import Hold, Signal
from testbed.verify.probe.tokens import Tokens

_CENTRAL = "ovn-ovsdb-server-nb ovn-ovsdb-server-sb ovn-northd"
_SERVICES = ("ovs-vswitchd", "ovn-controller")  # before the controller's, as in an upgrade
_SECONDS = timeouts.DISRUPTED
_WHILE = 2.0  # seconds of attack after an event
_REBOOT = timeouts.REBOOT
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
_USE = timeouts.CONNECTION
_USED = 5  # frames of a held connection after which it counts as in use
EARLY, LATE = "holdearly", "holdlate"


@dataclass
class DisruptionResult:
    """Frames that guests sent during a disruption, and the observation of them.

    Args:
        frames: forbidden frames, each with its meaning.
        held: the report of the guest that held a connection.
    """

    frames: list[tuple[Probe, str]]
    observation: Observation
    held: dict[str, Any] = field(default_factory=dict)

    @property
    def leaks(self) -> list[str]:
        """Forbidden frames that arrived: which frame, at which guest, how often, for how long.

        Raises:
            InstrumentError: none arrived, but guests cannot vouch for that.
        """
        found = [text for probe, meaning in self.frames for text in self.seen(probe.mark, meaning)]
        if not found:
            require_agreement(self.observation, [probe.mark for probe, _ in self.frames])
        return found

    def seen(self, mark: str, meaning: str) -> list[str]:
        """Return the guests that received a probe's frames, with their number and time span."""
        found = self.observation.windows(mark)
        return [
            f"{meaning} at {guest}: {times} frames in {seconds * 1000:.0f} ms"
            for guest, seconds, times in found
        ]


def service_restarts(fleet: Fleet) -> DisruptionResult:
    """Observe guests' attacks while the virtual switch's services restart one after another.

    Raises:
        InstrumentError: the observation was not complete, or a service did not start.
    """
    frames = _attacks(fleet)
    restarts = [partial(_restart_nodes, fleet, service) for service in _SERVICES]
    steps = [*restarts, partial(restart_central, fleet), partial(time.sleep, _WHILE)]
    return _besieged(fleet, frames, lambda tokens: _until_leak(fleet, frames, tokens, steps))


def rule_removal(fleet: Fleet) -> DisruptionResult:
    """Observe a connection in use whose rule is removed, and guests' attacks during the change.

    Raises:
        InstrumentError: the observation was not complete, or there was no connection.
    """
    held: dict[str, Any] = {}
    found = _besieged(fleet, _attacks(fleet), lambda tokens: held.update(_change_policy(fleet, tokens)))
    found.held.update(held)
    return found


def new_guest(fleet: Fleet) -> DisruptionResult:
    """Observe a new guest that attacks from its first frame.

    It attacks on a port unknown to OVN, then bound, after a reset, and through a second interface.

    Raises:
        InstrumentError: the observation was not complete, or the guest did not attack.
    """
    all_positions, members = (
        positions(fleet),
        {guest.label: guest for guest in fleet.topology.guests_on(host(fleet.topology))},
    )
    position = min(
        (position for position in all_positions if position.sender.guest in members),
        key=lambda position: not position.protocol,
    )
    guest = members[position.sender.guest]
    stranger = Throwaway.beside(fleet, guest, _free(fleet, position), position.sender.interface)
    own = _first_frames(fleet, replace(position, number=len(all_positions), sender=stranger.endpoint))

    def meanwhile(tokens: Tokens) -> None:
        with stranger.present(fleet):
            stranger.start([probe.frame(tokens.of(probe.mark).encode()) for probe, _ in own if probe.frame])
            stranger.require_flowing(TAP, BOOT)
            steps = (
                partial(_bind, fleet, stranger),
                stranger.reset_attacking,
                stranger.plug_attacking,
                partial(time.sleep, _WHILE),
            )
            _until_leak(fleet, own, tokens, steps)

    return DisruptionResult(own, observe(fleet, (), Attack((), _SECONDS, meanwhile), doubts=True))


def controller_reboot(fleet: Fleet) -> DisruptionResult:
    """Observe guests' attacks while the controller reboots.

    Raises:
        InstrumentError: the observation was not complete, or the controller does not come back.
    """
    return _besieged(fleet, _attacks(fleet), lambda _: _reboot_controller(fleet))


def node_reboot(fleet: Fleet) -> DisruptionResult:
    """Observe attacks by the guests of all other nodes while one node reboots.

    The guests of that node are started again afterwards.

    Raises:
        InstrumentError: the observation was not complete, or the node does not come back.
    """
    name = leaver(fleet.topology)
    if name is None:
        raise inconclusive(
            "no node can be left out", "without it no two guests are left that must not reach one another"
        )
    node = fleet.lab.nodes[name]
    others = fleet.without(name)

    def repair() -> None:
        node.wait()
        node.reconnect()
        converge_place(fleet.lab.desired, node, lambda _: None)

    with (
        fleet.interruptions.during("the node reboots", name),
        fleet.leavings.made(f"{name}, which was rebooted without its guests", repair),
    ):
        return _besieged(others, _attacks(others), lambda _: _reboot(fleet.machines[name]))


def _besieged(
    fleet: Fleet, frames: list[tuple[Probe, str]], meanwhile: Callable[[Tokens], None]
) -> DisruptionResult:
    """Let every guest attack repeatedly during an event."""
    return DisruptionResult(
        frames, observe(fleet, (), Attack([probe for probe, _ in frames], _SECONDS, meanwhile), doubts=True)
    )


def _attacks(fleet: Fleet) -> list[tuple[Probe, str]]:
    """Return the frames that guests send repeatedly, each with its meaning."""
    return [*((forgery.probe, str(forgery)) for forgery in _selected(forgeries(fleet))), *_crossings(fleet)]


def _until_leak(
    fleet: Fleet, frames: Sequence[tuple[Probe, str]], tokens: Tokens, steps: Sequence[Callable[[], object]]
) -> None:
    """Run steps one after another until a forbidden frame has arrived.

    Such an arrival decides the check, so the other steps are not needed.
    """
    marks = [probe.mark for probe, _ in frames]
    for step in steps:
        if arrived_so_far(fleet, tokens, marks):
            return
        step()


def _free(fleet: Fleet, position: Position) -> IPv4Address:
    taken = {item.address for item in endpoints(fleet.topology) if item.network == position.sender.network}
    hosts = list(
        fleet.topology.tenant(position.sender.tenant).network(position.sender.interface).network.hosts()
    )
    return next(address for address in reversed(hosts) if address not in {*taken, position.server.address})


def _first_frames(fleet: Fleet, position: Position) -> list[tuple[Probe, str]]:
    """Return frames of a guest without a flow: forgeries, and true packets to all guests."""
    found = [(forgery.probe, str(forgery)) for forgery in _selected(list(of_position(position)))]
    for number, target in enumerate(endpoints(fleet.topology)):
        head = IP(src=str(position.sender.address), dst=str(target.address))
        frame = framed(Ether(src=position.sender.mac, dst=target.mac), head, position.body())
        found.append(
            (
                Probe(f"first{number}", position.sender, {}, frame),
                f"{position.sender.label} -> {target.label}",
            )
        )
    return found


def _selected(forged: list[Forgery]) -> list[Forgery]:
    """Return the first forgery of each sender and control; more would delay restarting services."""
    first: dict[tuple[str, str], Forgery] = {}
    for forgery in forged:
        first.setdefault((forgery.sender.label, forgery.control), forgery)
    return list(first.values())


def _crossings(fleet: Fleet) -> list[tuple[Probe, str]]:
    """Return TCP segments with true addresses from every guest to all guests of other tenants.

    With one tenant, they are its denied segments.
    """
    denied = [
        cell
        for cell in fleet.matrix.denied()
        if cell.protocol == "tcp" and cell.source.guest != cell.target.guest
    ]
    cells = [cell for cell in denied if cell.source.tenant != cell.target.tenant] or denied
    return list(zip(matrix_probes(cells), map(str, cells), strict=True))


def _bind(fleet: Fleet, stranger: Throwaway) -> None:
    """Create the port of the connected ephemeral guest, so that OVN binds it during the attack."""
    nic, northbound = stranger.guest.nics[0], fleet.lab.central.northbound
    switch = f"{stranger.guest.tenant}/{nic.network}"
    northbound.set_port(
        f"{stranger.guest.label}/{nic.network}",
        switch,
        nic.port,
        f"{nic.mac} {nic.address}",
        stranger.guest.limits,
    )
    northbound.sync()
    stranger.require_flowing(TAP, BOOT)


def restart_central(fleet: Fleet) -> None:
    """Restart the controller's services of the virtual switch."""
    controller = fleet.machines[fleet.topology.controller.name]
    controller.read(
        f"systemctl stop {_CENTRAL}; systemctl start {_CENTRAL} && systemctl is-active {_CENTRAL}"
    )
    fleet.lab.central.northbound.sync()


def _restart_nodes(fleet: Fleet, service: str) -> None:
    """Restart one service of the virtual switch on every node."""
    restart = f"systemctl restart {service} && systemctl is-active {service}"
    fleet.everywhere(partial(MachineView.read, command=restart))
    fleet.lab.central.northbound.sync()


def _reboot(machine: MachineView) -> None:
    before, end = machine.read(_BOOT_ID), time.monotonic() + _REBOOT
    machine.read("systemd-run --quiet --on-active=1 systemctl reboot")
    while True:
        with suppress(InstrumentError):
            if machine.read(_BOOT_ID, timeout=10) != before:
                return
        if time.monotonic() > end:
            raise inconclusive(
                f"{machine.name} does not come back", f"it has not rebooted within {_REBOOT:.0f} s"
            )
        time.sleep(1)


def _reboot_controller(fleet: Fleet) -> None:
    controller = fleet.machines[fleet.topology.controller.name]
    _reboot(controller)
    controller.read(f"systemctl start {_CENTRAL} && systemctl is-active {_CENTRAL}", timeout=120)
    fleet.lab.central.northbound.sync()


def _change_policy(fleet: Fleet, tokens: Tokens) -> dict[str, Any]:
    """Remove a flow's rules while its connection is in use, and restore them.

    The result is the report of the guest that holds the connection.
    """
    flow, source, target = ordered(fleet.topology)[0]
    switch, rules = _rules(fleet, source, flow)
    request = Hold(
        phase="hold",
        kind=KINDS[flow.protocol],
        mac=source.mac,
        address=str(source.address),
        ip=str(target.address),
        port=flow.port or 0,
        tokens=[tokens.of(EARLY), tokens.of(LATE)],
        duration=_SECONDS,
    )
    ask: Callable[..., dict[str, Any]] = in_guest(
        fleet, next(item for item in fleet.topology.guests if item.label == source.guest)
    ).ask
    back = partial(fleet.lab.central.northbound.change_rules, switch.label, (), rules)
    gone = f"{switch.label} without the rules of its flow to {flow.service}"
    with fleet.leavings.made(gone, back), ThreadPoolExecutor(max_workers=1) as pool:
        holding = pool.submit(ask, request)
        try:
            _require_used(fleet, target)
            fleet.lab.central.northbound.change_rules(switch.label, rules, ())
            ask(Signal(phase="turn"))
            time.sleep(_WHILE)
        finally:
            ask(Signal(phase="release"))
            # before the rules are restored, so that no delayed frame is allowed then
            held = holding.result()
    if not any(map(int, held.get("answers", [0]))) or not held.get("turned"):
        raise inconclusive(f"{source.guest} holds no connection to {target.guest}", str(held)[:200])
    return held


def _rules(fleet: Fleet, source: Endpoint, flow: AllowedFlow) -> tuple[TenantNetwork, set[Acl]]:
    """Return the rules that exist for one flow only."""
    tenant = fleet.topology.tenant(source.tenant)
    network = tenant.network(source.interface)
    others = tuple(other for other in tenant.flows if other != flow)
    return network, set(acls(tenant, network)) - set(acls(replace(tenant, flows=others), network))


def _require_used(fleet: Fleet, target: Endpoint) -> None:
    """Wait until a node's counters show frames to a guest."""
    guest, nic = next(
        (guest, nic) for guest in fleet.topology.guests for nic in guest.nics if nic.mac == target.mac
    )
    await_frames(fleet.machines[guest.node], [nic.tap], _USED, _USE, RECEIVED)
