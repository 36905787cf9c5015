"""Root partitions, controller and fabric, attacked from guests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from checks.support.breaches import TABLE, acl_breach, mirrored, needs_guest, shell_breach
from checks.support.flow_shortcuts import shortcut
from checks.support.network_observation import judge
from testbed.errors import InstrumentError
from testbed.model.reachability import Endpoint, endpoints
from testbed.model.topology import Guest, Plane, Role
from testbed.plan.ovn_acls import Acl
from testbed.verify.attackers.service_scan import listening
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.probe import frames
from testbed.verify.probe.client import Probe, Record, one_observation
from testbed.verify.probe.machine_recorder import collect_from, listen_on, send_from
from testbed.verify.probe.tokens import Tokens

_OWN = ("br-int", *(f"{plane}0" for plane in Plane))


def _interfaces(machine: MachineView) -> dict[str, str]:
    text = machine.read("cd /sys/class/net && for i in *; do echo $i $(cat $i/address); done")
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)


@dataclass(frozen=True, slots=True)
class _Assault:
    """Frames of all guests to all machines, and the records of every machine.

    Args:
        probes: by node, the probes of its guests.
        seen: by machine, the records of its recorder.
    """

    tokens: Tokens
    probes: dict[str, list[Probe]]
    seen: dict[str, list[Record]]


def _taps(fleet: Fleet, name: str) -> set[str]:
    return {nic.tap for guest in fleet.topology.guests_on(name) for nic in guest.nics}


def _watch(fleet: Fleet, machine: MachineView, prefix: str) -> dict[str, str]:
    """Record on a machine's own interfaces and its guests' taps; return the own MAC addresses."""
    present = _interfaces(machine)
    watched, own = {*_OWN, *_taps(fleet, machine.name)}, fleet.topology.machine(machine.name)
    needed = {f"{nic.plane}0" for nic in own.nics} | (
        watched - {*_OWN[1:]} if own.role is Role.NODE else set()
    )
    if needed - present.keys():
        fact = f"{', '.join(sorted(needed - present.keys()))} cannot be watched"
        raise InstrumentError(
            f"{machine.name} does not have all its interfaces", fact=fact, remedy="run `testbed up`"
        )
    listen_on(
        fleet, machine, prefix, {interface: mac for interface, mac in present.items() if interface in watched}
    )
    return {interface: mac for interface, mac in present.items() if interface in _OWN}


def _attack(fleet: Fleet) -> _Assault:
    """Let all nodes' guests attack at once, since a program's start in a guest costs seconds."""
    tokens = Tokens.fresh()
    machines = list(fleet.machines.values())
    with one_observation(fleet), ThreadPoolExecutor(max_workers=len(machines)) as pool:
        sockets = _sockets(fleet)
        own = dict(
            zip(
                fleet.machines,
                pool.map(lambda machine: _watch(fleet, machine, tokens.prefix), machines),
                strict=True,
            )
        )
        probes = {
            node.name: _assault(_senders(fleet, node.name), sockets, own[node.name])
            for node in fleet.topology.nodes
        }
        send_from(
            fleet, fleet.topology.guests, tokens, [probe for found in probes.values() for probe in found]
        )
        collected = pool.map(lambda machine: collect_from(fleet, machine, tokens.prefix, _OWN[0]), machines)
        return _Assault(tokens, probes, dict(zip(fleet.machines, collected, strict=True)))


def _senders(fleet: Fleet, name: str) -> list[Endpoint]:
    return [
        item
        for item in endpoints(fleet.topology)
        if item.guest in {guest.label for guest in fleet.topology.guests_on(name)}
    ]


def _sockets(fleet: Fleet) -> list[tuple[str, str, int]]:
    """Return protocol, address and port of every socket that machines report as listening."""
    told = listening(fleet)
    found = {
        (protocol, str(nic.address), port)
        for machine in fleet.topology.machines
        for protocol, port in told[machine.name]
        for nic in machine.nics
    }
    gateway = fleet.topology.lab_network(Plane.MANAGEMENT).gateway
    return sorted({*found, ("tcp", str(gateway), 22)})


def _first(context: BreachContext) -> Guest:
    return context.guests[0]


@check(
    id="NET-09",
    objective="No guest's frame reaches the root partition, the underlay, or the machines behind them",
    severity="critical",
    effect=Effect.PROBES,
    applies=needs_guest,
    breaches=(
        shell_breach(
            "the integration bridge is up and takes a guest's frames",
            opens=lambda context: (
                f"ip link set br-int up; {TABLE} add-flow br-int "
                f"'table=0,priority=200,in_port={context.guests[0].nics[0].tap},dl_dst='$(cat "
                "/sys/class/net/br-int/address)',actions=LOCAL'"
            ),
            closes=lambda context: (
                f"{TABLE} --strict del-flows br-int 'table=0,priority=200,"
                f"in_port={context.guests[0].nics[0].tap},"
                "dl_dst='$(cat /sys/class/net/br-int/address); ip link set br-int down"
            ),
            shows=lambda _: (
                f"{TABLE} dump-flows br-int table=0 | grep -q actions=LOCAL && ip link show up dev "
                "br-int | grep -q br-int"
            ),
        ),
        mirrored(
            "a guest's frames leave by the management interface as well", _first, lambda _: "management0"
        ),
    ),
)
def test_guests_do_not_reach_the_root_partition(fleet: Fleet, node: MachineView) -> None:
    assault = fleet.observe_once("assault", lambda: _attack(fleet))
    probes, taps = assault.probes[node.name], {name: _taps(fleet, name) for name in assault.seen}
    own = taps[node.name]
    left = {item.get("token") for item in assault.seen[node.name] if item.get("label") in own}
    unseen = [probe.mark for probe in probes if assault.tokens.of(probe.mark) not in left]
    if unseen:
        what = f"{len(unseen)} of {len(probes)} frames were not seen leaving their guests"
        raise InstrumentError(
            what, fact="so their absence elsewhere means nothing", remedy="repeat the check"
        )
    macs = {sender.mac for sender in _senders(fleet, node.name)}
    reached = sorted(
        f"{name} {record.get('label')} {record.get('kind')} {str(record.get('target'))[:40]}"
        for name, records in assault.seen.items()
        for record in records
        if record.get("label") not in taps[name] and record.get("mac") in macs
    )
    assert not reached, f"{len(reached)} frames of guests reached: {'; '.join(reached[:6])}"


def _assault(
    senders: list[Endpoint], sockets: list[tuple[str, str, int]], macs: dict[str, str]
) -> list[Probe]:
    """Return a frame for each sender, socket and MAC address of the root partition.

    ARP requests for each address follow.
    """
    probes = []
    for sender in senders:
        name = sender.mac.replace(":", "")
        for number, ((protocol, address, port), mac) in enumerate(
            product(sockets, sorted(set(macs.values())))
        ):
            service = frames.syn(port) if protocol == "tcp" else frames.datagram(port)
            packet = frames.framed(
                Ether(src=sender.mac, dst=mac), IP(src=str(sender.address), dst=address), service
            )
            probes.append(Probe(f"s{name}n{number}", sender, {}, packet))
        for number, address in enumerate(sorted({address for _, address, _ in sockets})):
            question = frames.framed(
                Ether(src=sender.mac, dst=frames.BROADCAST), frames.arp_request(sender, address)
            )
            probes.append(Probe(f"s{name}a{number}", sender, {}, question))
    return probes


_TUNNELS = Acl("from-lport", 2000, "udp.dst == {4789, 6081}", "allow")


@check(
    id="NET-08",
    objective=(
        "No guest enters another tenant's network by speaking the language of the tunnels between nodes"
    ),
    severity="critical",
    effect=Effect.PROBES,
    breaches=(
        shortcut(
            "tunnelled frames of a guest are let through to another guest",
            "dl_type=0x0800,nw_proto=17,tp_dst=6081",
        ),
        acl_breach("a rule lets guests send to the ends of tunnels", lambda _: (_TUNNELS,)),
    ),
)
def test_tunnels_are_closed_to_guests(fleet: Fleet) -> None:
    through = judge(fleet, "NET-08")
    assert not through, f"tunnelled frames: {'; '.join(through[:6])}"
