"""Observations of the walls over time: parts of the switch start anew, guests come, rules go."""

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

from checks.support.attacker_positions import Scene, scenes
from checks.support.spoofed_frames import Forgery, forgeries, of_scene
from testbed.engine.apply import converge_place
from testbed.errors import InstrumentError
from testbed.model.reachability import Endpoint, endpoints
from testbed.model.subjects import host, leaver, ordered
from testbed.model.topology import AllowedFlow, TenantNetwork
from testbed.plan.ovn_acls import Acl, acls
from testbed.verify.attackers.ephemeral_guest import BOOT, TAP, Throwaway
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.observation.arrivals import Observation, matrix_probes
from testbed.verify.observation.declared_flows import KINDS
from testbed.verify.observation.observe import Attack, observe
from testbed.verify.observation.port_counters import RECEIVED, await_frames
from testbed.verify.observation.tap_witness import arrived_so_far, require_agreement
from testbed.verify.probe.client import Probe, broken, in_guest
from testbed.verify.probe.frames import framed
from testbed.verify.probe.tokens import Tokens

_CENTRAL = "ovn-ovsdb-server-nb ovn-ovsdb-server-sb ovn-northd"
_SERVICES = ("ovs-vswitchd", "ovn-controller")  # before the controller's, as an upgrade does it
_SECONDS = 280.0  # after which guests give up; must outlast what happens
_WHILE = 2.0  # seconds of attack after something has happened
_REBOOT = 200.0  # seconds that a machine may take to boot anew
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
_USE = 30.0  # seconds that a connection may take until it is in use
_USED = 5  # frames of a held connection after which it counts as in use
EARLY, LATE = "holdearly", "holdlate"


@dataclass
class Ordeal:
    """What guests sent while much happened, and what became of it.

    Args:
        frames: what nobody may get through, each with its meaning.
        held: what the holder of a connection said of it.

    """

    frames: list[tuple[Probe, str]]
    observation: Observation
    held: dict[str, Any] = field(default_factory=dict)

    @property
    def leaks(self) -> list[str]:
        """What got through: which frame, at which guest, how often, for how long.

        Raises:
            InstrumentError: nothing, by the word of guests that cannot vouch for it.

        """
        found = [text for probe, meaning in self.frames for text in self.seen(probe.mark, meaning)]
        if not found:
            require_agreement(self.observation, [probe.mark for probe, _ in self.frames])
        return found

    def seen(self, mark: str, meaning: str) -> list[str]:
        """Return at which guests a probe's frames were seen, how many, and for how long."""
        found = self.observation.windows(mark)
        return [
            f"{meaning} at {guest}: {times} frames in {seconds * 1000:.0f} ms"
            for guest, seconds, times in found
        ]


def upheaval(fleet: Fleet) -> Ordeal:
    """Observe what guests get through while the parts of the switch start anew, one after another.

    Raises:
        InstrumentError: the observation was not complete, or something did not start.

    """
    frames = _attacks(fleet)
    restarts = [partial(_restart_nodes, fleet, service) for service in _SERVICES]
    steps = [*restarts, partial(restart_central, fleet), partial(time.sleep, _WHILE)]
    return _besieged(fleet, frames, lambda tokens: _until_leak(fleet, frames, tokens, steps))


def withdrawal(fleet: Fleet) -> Ordeal:
    """Observe a connection whose rule goes while it is used, and what guests get through meanwhile.

    Raises:
        InstrumentError: the observation was not complete, or there was no connection.

    """
    held: dict[str, Any] = {}
    found = _besieged(fleet, _attacks(fleet), lambda tokens: held.update(_change_policy(fleet, tokens)))
    found.held.update(held)
    return found


def arrival(fleet: Fleet) -> Ordeal:
    """Observe what a guest gets through that attacks from its first frame: unknown, bound, reset, with a
    second interface.

    Raises:
        InstrumentError: the observation was not complete, or the guest did not attack.

    """
    stages, members = (
        scenes(fleet),
        {guest.label: guest for guest in fleet.testbed.guests_on(host(fleet.testbed))},
    )
    scene = min(
        (scene for scene in stages if scene.sender.guest in members), key=lambda scene: not scene.protocol
    )
    guest = members[scene.sender.guest]
    stranger = Throwaway.beside(fleet, guest, _free(fleet, scene), scene.sender.interface)
    own = _first_frames(fleet, replace(scene, number=len(stages), sender=stranger.endpoint))

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

    return Ordeal(own, observe(fleet, (), Attack((), _SECONDS, meanwhile), doubts=True))


def absence(fleet: Fleet) -> Ordeal:
    """Observe what guests get through while the whole controller boots anew.

    Raises:
        InstrumentError: the observation was not complete, or the controller does not come back.

    """
    return _besieged(fleet, _attacks(fleet), lambda _: _reboot_controller(fleet))


def departure(fleet: Fleet) -> Ordeal:
    """Observe what the guests of all other nodes get through while one node boots anew; its own guests are
    started again afterwards.

    Raises:
        InstrumentError: the observation was not complete, or the node does not come back.

    """
    name = leaver(fleet.testbed)
    if name is None:
        raise broken(
            "no node can be left out", "without it no two guests are left that must not reach one another"
        )
    node = fleet.lab.nodes[name]
    others = fleet.without(name)

    def repair() -> None:
        node.wait()
        node.reconnect()
        converge_place(fleet.lab.desired, node, lambda _: None)

    with fleet.leavings.made(f"{name}, which was booted anew, without its guests", repair):
        return _besieged(others, _attacks(others), lambda _: _reboot(fleet.machines[name]))


def _besieged(fleet: Fleet, frames: list[tuple[Probe, str]], meanwhile: Callable[[Tokens], None]) -> Ordeal:
    """Let every guest attack over and over while something happens."""
    return Ordeal(
        frames, observe(fleet, (), Attack([probe for probe, _ in frames], _SECONDS, meanwhile), doubts=True)
    )


def _attacks(fleet: Fleet) -> list[tuple[Probe, str]]:
    """Return what guests send over and over, each frame with its meaning."""
    return [*((lie.probe, str(lie)) for lie in _selected(forgeries(fleet))), *_crossings(fleet)]


def _until_leak(
    fleet: Fleet, frames: Sequence[tuple[Probe, str]], tokens: Tokens, steps: Sequence[Callable[[], object]]
) -> None:
    """Do one thing after another; what has got through before makes the rest needless, since it cannot be
    taken back.
    """
    marks = [probe.mark for probe, _ in frames]
    for step in steps:
        if arrived_so_far(fleet, tokens, marks):
            return
        step()


def _free(fleet: Fleet, scene: Scene) -> IPv4Address:
    taken = {item.address for item in endpoints(fleet.testbed) if item.network == scene.sender.network}
    hosts = list(fleet.testbed.tenant(scene.sender.tenant).network(scene.sender.interface).network.hosts())
    return next(address for address in reversed(hosts) if address not in {*taken, scene.server.address})


def _first_frames(fleet: Fleet, scene: Scene) -> list[tuple[Probe, str]]:
    """Return what a guest without a flow of its own sends: lies, and honest packets for every guest."""
    found = [(lie.probe, str(lie)) for lie in _selected(list(of_scene(scene)))]
    for number, target in enumerate(endpoints(fleet.testbed)):
        head = IP(src=str(scene.sender.address), dst=str(target.address))
        frame = framed(Ether(src=scene.sender.mac, dst=target.mac), head, scene.body())
        found.append(
            (Probe(f"first{number}", scene.sender, {}, frame), f"{scene.sender.label} -> {target.label}")
        )
    return found


def _selected(lies: list[Forgery]) -> list[Forgery]:
    """Return the first lie of each sender and control: what is sent more of delays what starts anew."""
    first: dict[tuple[str, str], Forgery] = {}
    for lie in lies:
        first.setdefault((lie.sender.label, lie.control), lie)
    return list(first.values())


def _crossings(fleet: Fleet) -> list[tuple[Probe, str]]:
    """Return honest segments from every guest to every other tenant's guests; where one tenant is alone, to
    its own that are denied.
    """
    denied = [
        cell
        for cell in fleet.matrix.denied()
        if cell.protocol == "tcp" and cell.source.guest != cell.target.guest
    ]
    cells = [cell for cell in denied if cell.source.tenant != cell.target.tenant] or denied
    return list(zip(matrix_probes(cells), map(str, cells), strict=True))


def _bind(fleet: Fleet, stranger: Throwaway) -> None:
    """Make the port by which the throw-away guest is already connected, so that OVN binds it under attack."""
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
    """Start the controller's part of the switch anew."""
    controller = fleet.machines[fleet.testbed.controller.name]
    controller.read(
        f"systemctl stop {_CENTRAL}; systemctl start {_CENTRAL} && systemctl is-active {_CENTRAL}"
    )
    fleet.lab.central.northbound.sync()


def _restart_nodes(fleet: Fleet, service: str) -> None:
    """Start one part of the switch anew on every node."""
    restart = f"systemctl restart {service} && systemctl is-active {service}"
    fleet.everywhere(partial(Machine.read, command=restart))
    fleet.lab.central.northbound.sync()


def _reboot(machine: Machine) -> None:
    before, end = machine.read(_BOOT_ID), time.monotonic() + _REBOOT
    machine.read("systemd-run --quiet --on-active=1 systemctl reboot")
    while True:
        with suppress(InstrumentError):
            if machine.read(_BOOT_ID, timeout=10) != before:
                return
        if time.monotonic() > end:
            raise broken(
                f"{machine.name} does not come back", f"it has not booted anew within {_REBOOT:.0f} s"
            )
        time.sleep(1)


def _reboot_controller(fleet: Fleet) -> None:
    controller = fleet.machines[fleet.testbed.controller.name]
    _reboot(controller)
    controller.read(f"systemctl start {_CENTRAL} && systemctl is-active {_CENTRAL}", timeout=120)
    fleet.lab.central.northbound.sync()


def _change_policy(fleet: Fleet, tokens: Tokens) -> dict[str, Any]:
    """Take the rules of a flow away while a connection of it is in use, give them back, and return what its
    holder says.
    """
    flow, source, target = ordered(fleet.testbed)[0]
    switch, rules = _rules(fleet, source, flow)
    request = {
        "phase": "hold",
        "kind": KINDS[flow.protocol],
        "mac": source.mac,
        "address": str(source.address),
        "ip": str(target.address),
        "port": flow.port or 0,
        "tokens": [tokens.of(EARLY), tokens.of(LATE)],
        "duration": _SECONDS,
    }
    ask: Callable[..., dict[str, Any]] = in_guest(
        fleet, next(item for item in fleet.testbed.guests if item.label == source.guest)
    ).ask
    back = partial(fleet.lab.central.northbound.change_rules, switch.label, (), rules)
    gone = f"{switch.label} without the rules of its flow to {flow.service}"
    with fleet.leavings.made(gone, back), ThreadPoolExecutor(max_workers=1) as pool:
        holding = pool.submit(ask, request)
        try:
            _require_used(fleet, target)
            fleet.lab.central.northbound.change_rules(switch.label, rules, ())
            ask({"phase": "turn"})
            time.sleep(_WHILE)
        finally:
            ask({"phase": "release"})
            held = (
                holding.result()
            )  # before the rules are back, so that nothing which waited is let through then
    if not any(map(int, held.get("answers", [0]))) or not held.get("turned"):
        raise broken(f"{source.guest} holds no connection to {target.guest}", str(held)[:200])
    return held


def _rules(fleet: Fleet, source: Endpoint, flow: AllowedFlow) -> tuple[TenantNetwork, set[Acl]]:
    """Return the rules that are there for a flow alone."""
    tenant = fleet.testbed.tenant(source.tenant)
    network = tenant.network(source.interface)
    others = tuple(other for other in tenant.flows if other != flow)
    return network, set(acls(tenant, network)) - set(acls(replace(tenant, flows=others), network))


def _require_used(fleet: Fleet, target: Endpoint) -> None:
    """Return when frames are seen on their way to a guest, by the counters of its node."""
    guest, nic = next(
        (guest, nic) for guest in fleet.testbed.guests for nic in guest.nics if nic.mac == target.mac
    )
    await_frames(fleet.machines[guest.node], [nic.tap], _USED, _USE, RECEIVED)
