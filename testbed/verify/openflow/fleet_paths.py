"""Computes where any packet of a guest can go, over the tables of all nodes (NET-01).

Packets sample, and `testbed.verify.witnesses.virtual_switch.pipeline` asks about single frames; this walk
covers all packets at once. IPv6's neighbour and listener discovery is left out inside a network: the nodes'
guards filter it before these tables (NET-05).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from testbed.errors import InstrumentError
from testbed.model.reachability import Endpoint, endpoints
from testbed.model.topology import Plane
from testbed.untrusted import bounded_json
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.openflow import flow_table, symbolic
from testbed.verify.openflow.flow_table import Tables
from testbed.verify.openflow.header_space import FIELDS, Cube, cube
from testbed.verify.witnesses.virtual_switch import rows

_READ = f"{flow_table.DUMP}; echo; ovs-vsctl --format=json --columns=name,ofport,options list interface"
_SERVICES = {(0x0806, None): "arp", (0x0800, 1): "icmp", (0x0800, 6): "tcp", (0x0800, 17): "udp",
             (0x86DD, 58): "icmp6", (0x86DD, 6): "tcp6", (0x86DD, 17): "udp6"}  # fmt: skip
_GUARDED = {130, 131, 132, 133, 134, 135, 136, 143}  # RFC 4861, RFC 2710, RFC 3810
_ANYTHING, _GUARDED_SERVICE = ("anything", None), ("guarded", None)
_LEFT_OUT = ("nd",)
_DHCP = cube(
    dl_type=0x0800, nw_proto=17, tp_src=68, tp_dst=67
)  # DHCP requests, which every interface may send

Service = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class Bridge:
    """A node's integration bridge.

    Args:
        ports: names of its interfaces, by OpenFlow number.
        tunnels: OpenFlow number of the tunnel to each other node.

    """

    node: str
    tables: Tables
    ports: Mapping[str, str]
    tunnels: Mapping[str, int]

    def number(self, name: str) -> int:
        """Return the OpenFlow number of an interface.

        Raises:
            InstrumentError: it is not there.

        """
        for number, found in self.ports.items():
            if found == name:
                return int(number)
        fact = ", ".join(sorted(self.ports.values()))
        raise InstrumentError(
            f"{name} is not on the switch of {self.node}", fact=fact, remedy="run `testbed up`"
        )


@dataclass(frozen=True, slots=True)
class Arrival:
    """A class of packets from a guest's interface that can leave at some place.

    Args:
        target: the interface of a guest, or the switch's name of the place.
        path: the tables on the way, by node.
    """

    source: Endpoint
    target: Endpoint | str
    cube: Cube
    path: str

    @property
    def service(self) -> Service:
        """Service of the packets, named as in cells of the reach matrix; else guarded, or anything."""
        kind, above, port = (self.cube.number(name) for name in ("dl_type", "nw_proto", "tp_dst"))
        if kind is None or (kind, None if kind == 0x0806 else above) not in _SERVICES:
            return _ANYTHING
        name = _SERVICES[kind, None if kind == 0x0806 else above]
        if name[:3] in ("tcp", "udp"):
            return (name, port) if port is not None else _ANYTHING
        return (
            _GUARDED_SERVICE
            if name == "icmp6" and self.cube.number("icmp_type") in _GUARDED
            else (name, None)
        )

    def __str__(self) -> str:
        """Return one line for people."""
        target = self.target if isinstance(self.target, str) else self.target.label
        return f"{self.source.label} -> {target}: {self.cube}, by {self.path}"


def bridges(fleet: Fleet) -> dict[str, Bridge]:
    """Return the present switch of every node.

    Raises:
        InstrumentError: one cannot be read.
    """
    fabric = {str(node.address(Plane.FABRIC)): node.name for node in fleet.topology.nodes}
    return fleet.everywhere(lambda machine: _bridge(machine, fabric))


def _bridge(machine: MachineView, fabric: Mapping[str, str]) -> Bridge:
    text, _, table = machine.read(_READ).rpartition("\n")
    try:
        found = rows(bounded_json.read(table))
        ports = {str(row["ofport"]): str(row["name"]) for row in found}
        remote = {int(row["ofport"]): fabric.get(str(row["options"].get("remote_ip"))) for row in found}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InstrumentError(
            f"the interfaces of {machine.name} cannot be read", fact=repr(error), remedy="repeat the check"
        ) from error
    return Bridge(
        machine.name, flow_table.read(text), ports, {node: port for port, node in remote.items() if node}
    )


def arrivals(fleet: Fleet, found: Mapping[str, Bridge]) -> list[Arrival]:
    """Return the places that packets of every guest's interface can reach, other than itself.

    Inside its own network, only packets that belong to no connection are walked, since a connection begins
    with such a packet; to all other places, every packet. For each interface the walk must find that a
    program receives its DHCP requests: where no flow is declared, a walk that sees nothing would look like
    a closed wall.

    Raises:
        InstrumentError: a switch uses an action unknown to the walk, or a path that must exist is not found.
    """
    own = {item.mac: item for item in endpoints(fleet.topology)}
    interfaces = [
        (own[nic.mac], nic.tap, guest.node) for guest in fleet.topology.guests for nic in guest.nics
    ]
    owners = {tap: item for item, tap, _ in interfaces}
    return [
        arrival for source, tap, node in interfaces for arrival in _from(found, owners, source, tap, node)
    ]


def _from(
    found: Mapping[str, Bridge], owners: Mapping[str, Endpoint], source: Endpoint, tap: str, node: str
) -> Iterator[Arrival]:
    start = [cube(in_port=found[node].number(tap), tun_id=0, tun_metadata0=0)]
    for tracked, inside in ((symbolic.NEW, True), (symbolic.ANY, False)):
        answered = False
        for name, packets, path in _travel(found, node, start, tracked):
            if name == symbolic.CONTROLLER:
                answered = answered or packets.meets(_DHCP)
                continue
            target = owners.get(name, name)
            if (
                target != source
                and (isinstance(target, Endpoint) and target.network == source.network) == inside
            ):
                yield Arrival(source, target, packets, path)
        if not answered:
            what = f"the walk does not find how DHCP hears {source.label}"
            raise InstrumentError(
                what,
                fact=f"nothing of it comes to a program on {node}",
                remedy="run `testbed up`, or report it",
            )


def _travel(
    found: Mapping[str, Bridge],
    node: str,
    starts: Sequence[Cube],
    tracked: Sequence[tuple[int, int]],
    way: str = "",
) -> Iterator[tuple[str, Cube, str]]:
    """Yield the interface at which packets leave, their class there, and their path.

    A tunnel to another node is followed once.
    """
    bridge = found[node]
    peers = {port: name for name, port in bridge.tunnels.items()}
    over: dict[str, list[Cube]] = {}
    for out in symbolic.SymbolicWalk(bridge.tables, tracked).start(starts):
        peer = peers.get(int(out.port)) if out.port.isdecimal() else None
        if peer is not None and not way and node in found[peer].tunnels:
            over.setdefault(peer, []).append(out.cube.fill(FIELDS["in_port"], found[peer].tunnels[node]))
        else:
            name = (
                symbolic.CONTROLLER
                if out.port == symbolic.CONTROLLER
                else bridge.ports.get(out.port, f"{node}/{out.port}")
            )
            yield name, out.cube, f"{way}{node}: {' '.join(map(str, out.path))}"
    for peer, cubes in over.items():
        yield from _travel(found, peer, cubes, tracked, f"{node}, ")


def unexpected(fleet: Fleet, found: Sequence[Arrival]) -> list[str]:
    """Return the arrivals that no declared flow allows, one line for each pair and service.

    Raises:
        InstrumentError: a declared flow was not found, so that others may be missing as well.
    """
    allowed = {(cell.source, cell.target, (cell.protocol, cell.port)) for cell in fleet.matrix.allowed()}
    seen = {(arrival.source, arrival.target, arrival.service) for arrival in found}
    blind = [key for key in allowed - seen if key[2][0] not in _LEFT_OUT]
    if blind:
        source, target, (protocol, port) = min(blind, key=str)
        what = f"the walk does not find {source.label} -> {target.label} {protocol}/{port}, which is declared"
        raise InstrumentError(
            what, fact=f"{len(seen)} others were found", remedy="run `testbed up`, or report it"
        )
    lines: dict[tuple[Endpoint, Endpoint | str, Service], str] = {}
    for arrival in found:
        inside = isinstance(arrival.target, Endpoint) and arrival.target.network == arrival.source.network
        key = (arrival.source, arrival.target, arrival.service)
        if key not in allowed and not (inside and arrival.service == _GUARDED_SERVICE):
            lines.setdefault(key, str(arrival))
    return sorted(lines.values())
