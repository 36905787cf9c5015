"""Network walls, attacked from inside guests with raw frames and watched at the receivers."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

from checks.breaches import command, needs_guest
from testbed.errors import InstrumentError
from testbed.model.policy import Endpoint, endpoints
from testbed.model.testbed import GuestNic, Plane
from testbed.plan.acls import Acl
from testbed.verify.declare import Breach, check
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.network import (
    Observation,
    Probe,
    Record,
    collect_from,
    forget,
    listen_on,
    matrix_probes,
    observe,
    reach,
    send_from,
    tcp_flows,
)
from testbed.verify.stage import Stage

_ALLOW_ALL = (Acl("from-lport", 2000, "ip", "allow"), Acl("to-lport", 2000, "ip", "allow"))
_TABLE = "ovs-ofctl -O OpenFlow15"


def _needs_flow(stage: Stage) -> str | None:
    found = any(flow.protocol == "tcp" for tenant in stage.testbed.tenants for flow in tenant.flows)
    return None if found else "no TCP flow is declared, so there is nothing to tell a wall from a dead network by"


def _shortcut(stage: Stage) -> str:
    """Return an OpenFlow match: one tenant's frames to another tenant's guest on the same node."""
    attacker, victim = stage.strangers()
    return f"table=0,in_port={attacker.nics[0].tap},dl_dst={victim.nics[0].mac}"


def _switch(stage: Stage) -> str:
    source, _, nic, _ = stage.flow()
    return f"{source.tenant}/{nic.network}"


def _allow_all(stage: Stage) -> None:
    for rule in _ALLOW_ALL:
        stage.northbound.add_rule(_switch(stage), rule)


def _allow_no_more(stage: Stage) -> None:
    for rule in _ALLOW_ALL:
        stage.northbound.delete_rule(_switch(stage), rule)


def _all_allowed(stage: Stage) -> bool:
    return any(str(rule) in stage.northbound.switches()[_switch(stage)]["acls"] for rule in _ALLOW_ALL)


@check(
    id="NET-01",
    objective="Every guest reaches exactly what the topology allows: ARP, ICMP, TCP and UDP, both directions",
    severity="critical",
    applies=_needs_flow,
    breaches=(
        command(
            "an OpenFlow rule leads from one tenant's port to another's",
            opens=lambda s: f"{_TABLE} add-flow br-int '{_shortcut(s)},priority=200,actions=output:{s.strangers()[1].nics[0].tap}'",
            closes=lambda s: f"{_TABLE} --strict del-flows br-int '{_shortcut(s)},priority=200'",
            shows=lambda s: f"{_TABLE} dump-flows br-int '{_shortcut(s)}' | grep -q actions=output",
        ),
        Breach("a rule allows all IP inside a tenant's network", _allow_all, _allow_no_more, _all_allowed),
    ),
)
def test_reach_is_what_the_topology_allows(fleet: Fleet) -> None:
    found = reach(fleet.matrix.cells, _survey(fleet))
    rows = [f"{cell.source.label} -> {cell.target.label} {cell.service}: {arrived}" for cell, arrived in found]
    fleet.evidence.record("fleet", "matrix", f"{len(found)} cells", "\n".join(rows), time.time())
    leaks = [str(cell) for cell, arrived in found if arrived and not cell.allowed]
    assert not leaks, f"{len(leaks)} of {len(found)} cells leak: {'; '.join(leaks[:6])}"
    dead = [str(cell) for cell, arrived in found if cell.allowed and not arrived]
    assert not dead, f"{len(dead)} allowed cells do not work: {'; '.join(dead[:6])}"


@dataclass(frozen=True, slots=True)
class _Forgery:
    """A frame on a declared flow that lies about its sender."""

    mark: str
    source: Endpoint
    target: Endpoint
    port: int
    meaning: str
    lie: dict[str, str]

    def __str__(self) -> str:
        return f"{self.source.guest} -> {self.target.guest} tcp/{self.port} with {self.meaning}"


def _syn(mark: str, source: Endpoint, target: Endpoint, port: int, **forged: str) -> Probe:
    fields: dict[str, object] = {"kind": "tcp-syn", "ip": str(target.address), "target_mac": target.mac, "port": port, "repeat": 2}
    return Probe(mark, source, fields | forged)


def _survey(fleet: Fleet) -> Observation:
    """Return one observation that NET-01, NET-02 and NET-04 read: the cells of the matrix, and the forged frames.

    A guest of the lab needs seconds to start a program, so what can be sent in one go is.
    """
    return fleet.once("survey", lambda: _send_survey(fleet))


def _send_survey(fleet: Fleet) -> Observation:
    probes = matrix_probes(fleet.matrix.cells)
    forgeries = [*_false_macs(fleet), *_false_addresses(fleet)]
    for name, source, target, port in tcp_flows(fleet):
        probes.append(_syn(f"{name}rawbefore", source, target, port))
        own = [item for item in forgeries if item.mark.startswith(f"{name}x")]
        probes += [_syn(item.mark, source, target, port, **item.lie) for item in own]
        probes.append(_syn(f"{name}rawafter", source, target, port))
    return observe(fleet, probes)


def _through(fleet: Fleet, forgeries: list[_Forgery]) -> list[str]:
    """Return the forged frames that arrived.

    Raises:
        InstrumentError: the same frame, not forged, did not arrive before and after them.
    """
    observation = _survey(fleet)
    for (name, _, target, port), stage in product(tcp_flows(fleet), ("before", "after")):
        if not observation.arrived(f"{name}raw{stage}", target.guest):
            what = f"an honest frame to {target.guest} tcp/{port} did not arrive {stage} the forged ones"
            raise InstrumentError(what, fact="so nothing can be said about forged ones", remedy="repeat the check")
    return [str(item) for item in forgeries if observation.arrived(item.mark, item.target.guest)]


def _set_security(stage: Stage, addresses: list[str]) -> None:
    stage.northbound.set_security(stage.flow()[2].port, addresses)


def _pinned(nic: GuestNic) -> list[str]:
    return [f"{nic.mac} {nic.address}"]


def _security(stage: Stage) -> list[str]:
    port = stage.flow()[2].port
    return next(list(found["security"]) for found in stage.northbound.ports().values() if found["port"] == port)


@check(
    id="NET-02",
    objective="A guest sends with its own MAC address only",
    severity="high",
    applies=_needs_flow,
    breaches=(
        Breach(
            "a port's address pinning is gone",
            open=lambda stage: _set_security(stage, []),
            close=lambda stage: _set_security(stage, _pinned(stage.flow()[2])),
            in_force=lambda stage: _security(stage) == [],
        ),
    ),
)
def test_source_mac_is_pinned(fleet: Fleet) -> None:
    through = _through(fleet, _false_macs(fleet))
    assert not through, f"forged frames arrived: {'; '.join(through)}"


def _false_macs(fleet: Fleet) -> list[_Forgery]:
    everyone = endpoints(fleet.testbed)
    forgeries = []
    for name, source, target, port in tcp_flows(fleet):
        stranger = next((item for item in everyone if item.tenant != source.tenant), target)
        lies = {
            "an invented MAC address": "0e:" + ":".join(f"{octet:02x}" for octet in secrets.token_bytes(5)),
            "the receiver's MAC address": target.mac,
            "another tenant's MAC address": stranger.mac,
        }
        forgeries += [
            _Forgery(f"{name}xmac{number}", source, target, port, meaning, {"source_mac": mac})
            for number, (meaning, mac) in enumerate(lies.items())
        ]
    return forgeries


def _loose_rule(stage: Stage) -> Acl:
    """The receiver's own rule asks for the sender's address once more; this one does not."""
    _, target, nic, port = stage.flow()
    receiver = next(item for item in target.nics if item.network == nic.network)
    return Acl("to-lport", 2000, f'outport == "{receiver.port}" && tcp.dst == {port}', "allow-related")


def _unpin_address(stage: Stage) -> None:
    stage.northbound.add_rule(_switch(stage), _loose_rule(stage))
    _set_security(stage, [stage.flow()[2].mac])


def _pin_address(stage: Stage) -> None:
    stage.northbound.delete_rule(_switch(stage), _loose_rule(stage))
    _set_security(stage, _pinned(stage.flow()[2]))


@check(
    id="NET-04",
    objective="A guest sends with its own IPv4 address only",
    severity="high",
    applies=_needs_flow,
    breaches=(
        Breach(
            "a port is pinned by MAC address only, and the receiver's rule takes any sender",
            _unpin_address,
            _pin_address,
            lambda stage: _security(stage) == [stage.flow()[2].mac] or str(_loose_rule(stage)) in _rules(stage),
        ),
    ),
)
def test_source_address_is_pinned(fleet: Fleet) -> None:
    through = _through(fleet, _false_addresses(fleet))
    assert not through, f"forged frames arrived: {'; '.join(through)}"


def _false_addresses(fleet: Fleet) -> list[_Forgery]:
    forgeries = []
    for name, source, target, port in tcp_flows(fleet):
        tenant, _, network_name = source.network.partition("/")
        network = fleet.testbed.tenant(tenant).network(network_name)
        taken = {item.address for item in endpoints(fleet.testbed) if item.network == source.network}
        free = next(address for address in network.network.hosts() if address not in {*taken, network.server})
        lies = {
            "a free address of its network": str(free),
            "the network's own address": str(network.server),
            "a management address": str(fleet.testbed.controller.address(Plane.MANAGEMENT)),
            "an address of nowhere": "203.0.113.7",
        }
        forgeries += [
            _Forgery(f"{name}xip{number}", source, target, port, meaning, {"source_ip": address})
            for number, (meaning, address) in enumerate(lies.items())
        ]
    return forgeries


def _rules(stage: Stage) -> list[str]:
    return [str(rule) for rule in stage.northbound.switches()[_switch(stage)]["acls"]]


_OWN = ("br-int", *(f"{plane}0" for plane in Plane))


def _interfaces(machine: Machine) -> dict[str, str]:
    text = machine.read("cd /sys/class/net && for i in *; do echo $i $(cat $i/address); done")
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)


@dataclass(frozen=True, slots=True)
class _Assault:
    """Frames of all guests to everything that is not a guest, and what every machine saw meanwhile.

    Args:
        probes: by node, what its guests sent.
        seen: by machine, the records of its recorder.
    """

    prefix: str
    probes: dict[str, list[Probe]]
    seen: dict[str, list[Record]]


def _taps(fleet: Fleet, name: str) -> set[str]:
    return {nic.tap for guest in fleet.testbed.guests_on(name) for nic in guest.nics}


def _watch(fleet: Fleet, machine: Machine, prefix: str) -> dict[str, str]:
    """Record on a machine's own interfaces and on its guests' taps; return the MAC addresses of the former by name."""
    present = _interfaces(machine)
    watched = {*_OWN, *_taps(fleet, machine.name)}
    listen_on(machine, prefix, {interface: mac for interface, mac in present.items() if interface in watched})
    return {interface: mac for interface, mac in present.items() if interface in _OWN}


def _attack(fleet: Fleet) -> _Assault:
    """Let all guests of all nodes attack at once, since starting a program in a guest costs seconds."""
    prefix = f"tb-{secrets.token_hex(4)}-"
    machines = list(fleet.machines.values())
    with ThreadPoolExecutor(max_workers=len(machines)) as pool:
        try:
            sockets = _sockets(fleet, dict(zip(fleet.machines, pool.map(_listeners, machines), strict=True)))
            own = dict(zip(fleet.machines, pool.map(lambda machine: _watch(fleet, machine, prefix), machines), strict=True))
            probes = {node.name: _assault(_senders(fleet, node.name), sockets, own[node.name]) for node in fleet.testbed.nodes}
            send_from(fleet, fleet.testbed.guests, prefix, [probe for found in probes.values() for probe in found])
            collected = pool.map(lambda machine: collect_from(machine, prefix, _OWN[0]), machines)
            return _Assault(prefix, probes, dict(zip(fleet.machines, collected, strict=True)))
        except BaseException:
            list(pool.map(lambda machine: forget(machine, prefix), machines))
            raise


def _senders(fleet: Fleet, name: str) -> list[Endpoint]:
    return [item for item in endpoints(fleet.testbed) if item.guest in {guest.label for guest in fleet.testbed.guests_on(name)}]


def _listeners(machine: Machine) -> str:
    return machine.read("ss -Hlntu | awk '{print $1, $5}'")


def _sockets(fleet: Fleet, listeners: dict[str, str]) -> list[tuple[str, str, int]]:
    """Return kind, address and port of every listening socket of every machine, as the machines tell it."""
    found = []
    for machine in fleet.testbed.machines:
        for line in listeners[machine.name].splitlines():
            protocol, _, place = line.partition(" ")
            host, _, port = place.rpartition(":")
            kind = "tcp-syn" if protocol == "tcp" else "udp"
            if not host.startswith("127.") and host != "[::1]":
                found += [(kind, str(nic.address), int(port)) for nic in machine.nics]
    gateway = fleet.testbed.lab_network(Plane.MANAGEMENT).gateway
    return sorted({*found, ("tcp-syn", str(gateway), 22)})


@check(
    id="NET-09",
    objective="No guest's frame reaches the root partition, the underlay, or the machines behind them",
    severity="critical",
    applies=needs_guest,
    breaches=(
        command(
            "the integration bridge is up and takes a guest's frames",
            opens=lambda s: (
                f"ip link set br-int up; {_TABLE} add-flow br-int "
                f"'table=0,priority=200,in_port={s.guests[0].nics[0].tap},dl_dst='$(cat /sys/class/net/br-int/address)',actions=LOCAL'"
            ),
            closes=lambda s: (
                f"{_TABLE} --strict del-flows br-int 'table=0,priority=200,in_port={s.guests[0].nics[0].tap},"
                "dl_dst='$(cat /sys/class/net/br-int/address); ip link set br-int down"
            ),
            shows=lambda _: f"{_TABLE} dump-flows br-int table=0 | grep -q actions=LOCAL && ip link show up dev br-int | grep -q br-int",
        ),
    ),
)
def test_guests_do_not_reach_the_root_partition(fleet: Fleet, node: Machine) -> None:
    assault = fleet.once("assault", lambda: _attack(fleet))
    probes, taps = assault.probes[node.name], {name: _taps(fleet, name) for name in assault.seen}
    own = taps[node.name]
    left = {item.get("token") for item in assault.seen[node.name] if item.get("label") in own and item.get("direction") == "in"}
    unseen = [probe.mark for probe in probes if probe.fields["kind"] != "arp" and f"{assault.prefix}{probe.mark}." not in left]
    if unseen:
        what = f"{len(unseen)} of {len(probes)} frames were not seen leaving their guests"
        raise InstrumentError(what, fact="so their absence elsewhere means nothing", remedy="repeat the check")
    macs = {sender.mac for sender in _senders(fleet, node.name)}
    reached = sorted(
        f"{name} {record.get('label')} {record.get('kind')} {str(record.get('target'))[:40]}"
        for name, records in assault.seen.items()
        for record in records
        if record.get("label") not in taps[name] and record.get("direction") == "in" and record.get("mac") in macs
    )
    assert not reached, f"{len(reached)} frames of guests reached: {'; '.join(reached[:6])}"


def _assault(senders: list[Endpoint], sockets: list[tuple[str, str, int]], macs: dict[str, str]) -> list[Probe]:
    """Return one frame for each sender, listening socket and MAC address of the root partition, and ARP for each address."""
    probes = []
    for sender in senders:
        name = sender.mac.replace(":", "")
        for number, ((kind, address, port), mac) in enumerate(product(sockets, sorted(set(macs.values())))):
            fields: dict[str, object] = {"kind": kind, "ip": address, "port": port, "target_mac": mac}
            probes.append(Probe(f"s{name}n{number}", sender, fields))
        for number, address in enumerate(sorted({address for _, address, _ in sockets})):
            probes.append(Probe(f"s{name}a{number}", sender, {"kind": "arp", "ip": address}))
    return probes
