"""The rules across a whole topology file: references, addresses, memory.

Each rule is a generator of `Finding` triples: place in the document, mistake, remedy. Rules never raise, and
no rule depends on another one having passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations, product

from testbed.topology_file.quantities import GIB, MIB, format_size
from testbed.topology_file.schema import Flow, GuestSpec, Spec, TenantSpec
from testbed.topology_file.yaml_source import Path, Value

CONTROLLER = "controller"
NODE_RESERVE = 640 * MIB
MACHINE_RESERVE = 1024 * MIB
WORKERS_PER_NODE = 64
TRACKED_CONNECTIONS = 65536
DEFAULT_LIMITS = {
    "bandwidth": 5_000_000,
    "packets": 1000,
    "connections": 256,
    "cpu": 80,
    "cpu_weight": 100,
    "memory_overhead": 96 * MIB,
    "disk_operations": 500,
    "disk_bandwidth": 4 * MIB,
}
IMPORTED = 128 * MIB  # of a volume that begins with an image
POOL = 32 * GIB  # file system of a node's volumes
ROOT_DISK = 2 * GIB  # of each guest
_POOL_SHARE = 0.9  # of the file system, for content; the rest is for its own structures and those of qcow2
_COMPARED = 500  # names; above that, the search for the nearest one takes milliseconds for each mistake
CUT_FLOW = "- -> - icmp"
RESERVED_NAMES = (CONTROLLER, "outer")

Finding = tuple[Path, str, str]


@dataclass(frozen=True, slots=True)
class Declared:
    """Names that the file declares, valid or not, so that one mistake is not reported twice."""

    nodes: frozenset[str]
    networks: dict[str, frozenset[str]]
    guests: dict[str, frozenset[str]]

    @classmethod
    def of(cls, data: Value) -> Declared:
        """Collect the names from the raw values of a file."""
        tenants = _mapping(_mapping(data).get("tenants"))
        return cls(
            frozenset(_mapping(_mapping(data).get("nodes"))),
            {name: frozenset(_mapping(_mapping(tenant).get("networks"))) for name, tenant in tenants.items()},
            {name: frozenset(_mapping(_mapping(tenant).get("guests"))) for name, tenant in tenants.items()},
        )


def _mapping(value: Value) -> dict[str, Value]:
    return value if isinstance(value, dict) else {}


def among(name: str, allowed: Iterable[str]) -> str:
    """Return a remedy that lists the valid names, and the nearest one if any is near."""
    names = sorted(allowed)
    if not names:
        return "remove it"
    near = get_close_matches(name, names, n=1) if len(names) <= _COMPARED else []
    listing = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"did you mean '{near[0]}'? Allowed: {listing}" if near else f"allowed: {listing}"


def limits(tenant: TenantSpec, guest: GuestSpec) -> dict[str, int]:
    """Return a guest's limits: its own, else its tenant's, else the defaults."""
    given = (item.model_dump(exclude_none=True) for item in (tenant.limits, guest.limits))
    return {**DEFAULT_LIMITS, **next(given), **next(given)}


def check(spec: Spec, declared: Declared, *, machine_memory: int | None) -> Iterator[Finding]:
    """Yield every finding of every rule.

    Args:
        spec: the file without the values that were refused and cut out.
        declared: names as the file declares them.
        machine_memory: RAM of the outer machine in bytes, or None to skip the rule that needs it.

    """
    yield from _reserved_names(spec)
    yield from _infrastructure(spec)
    for name, tenant in spec.tenants.items():
        yield from _networks(spec, name, tenant)
        yield from _guests(spec, declared, name, tenant)
        yield from _flows(declared, name, tenant)
        yield from _addresses(name, tenant)
    yield from _node_load(spec)
    if machine_memory is not None:
        yield from _machine_memory(spec, machine_memory)


def _reserved_names(spec: Spec) -> Iterator[Finding]:
    for name in spec.nodes:
        if name in RESERVED_NAMES:
            yield ("nodes", name), f"'{name}' is a name that every lab has already", "choose another name"


def _infrastructure(spec: Spec) -> Iterator[Finding]:
    networks = {name: getattr(spec.infrastructure, name) for name in ("management", "fabric", "storage")}
    for (one, first), (other, second) in combinations(networks.items(), 2):
        if first.overlaps(second):
            yield (
                ("infrastructure", other),
                f"{second} overlaps the {one} network {first}",
                "give each infrastructure network a range of its own",
            )
    for name, network in networks.items():
        usable = network.num_addresses - 12
        if len(spec.nodes) > usable:
            yield (
                ("infrastructure", name),
                f"{network} has room for {max(usable, 0)} nodes, but {len(spec.nodes)} are declared",
                "use a shorter prefix",
            )


def _networks(spec: Spec, tenant_name: str, tenant: TenantSpec) -> Iterator[Finding]:
    place: Path = ("tenants", tenant_name, "networks")
    for (one, first), (other, second) in combinations(tenant.networks.items(), 2):
        for mine, theirs in product(first.all, second.all):
            if mine.overlaps(theirs):
                yield (
                    (*place, other),
                    f"{theirs} overlaps the tenant's own network '{one}' ({mine})",
                    "networks of one tenant must not overlap; those of different tenants may",
                )
    for name, network in tenant.networks.items():
        for role in ("management", "fabric", "storage"):
            infrastructure = getattr(spec.infrastructure, role)
            if network.four.overlaps(infrastructure):
                yield (
                    (*place, name),
                    f"{network.four} overlaps the lab's {role} network {infrastructure}",
                    "choose another range, or move the lab's with 'infrastructure:'",
                )


def _guests(spec: Spec, declared: Declared, tenant_name: str, tenant: TenantSpec) -> Iterator[Finding]:
    for name, guest in tenant.guests.items():
        place: Path = ("tenants", tenant_name, "guests", name)
        yield from _placement(spec, declared, place, guest)
        yield from _images(tenant_name, name, guest)
        known = declared.networks.get(tenant_name, frozenset())
        if not guest.networks and len(known) > 1:
            yield (
                place,
                f"the tenant has {len(known)} networks and the guest names none",
                f"add 'network:'; {among('', known)}",
            )
        for network in guest.networks:
            if network not in known and network != CUT_FLOW:
                yield (*place, "network"), f"the tenant has no network '{network}'", among(network, known)
        twice = {item for item in guest.networks if guest.networks.count(item) > 1 and item != CUT_FLOW}
        for network in sorted(twice):
            yield (*place, "network"), f"the network '{network}' is named twice", "name each network once"


def _placement(spec: Spec, declared: Declared, place: Path, guest: GuestSpec) -> Iterator[Finding]:
    usable = declared.nodes - {*RESERVED_NAMES}
    if guest.node is None:
        if len(declared.nodes) > 1:
            yield (
                place,
                f"the lab has {len(declared.nodes)} nodes and the guest names none",
                (f"add 'node:'; {among('', usable)}"),
            )
    elif guest.node == CONTROLLER:
        yield (
            (*place, "node"),
            "a controller runs the fleet's services and no guests",
            among("", usable),
        )
    elif guest.node not in declared.nodes:
        yield (*place, "node"), f"there is no node '{guest.node}'", among(guest.node, usable)
    if guest.node in spec.nodes and guest.vcpus > spec.nodes[guest.node].vcpus:
        yield (
            (*place, "vcpus"),
            f"the guest wants {guest.vcpus} virtual CPUs and its node has {spec.nodes[guest.node].vcpus}",
            "lower the guest's number or raise the node's",
        )


def _flows(declared: Declared, tenant_name: str, tenant: TenantSpec) -> Iterator[Finding]:
    guests = declared.guests.get(tenant_name, frozenset())
    seen: set[Flow] = set()
    for index, flow in enumerate(tenant.allow):
        if str(flow) == CUT_FLOW:
            continue
        place: Path = ("tenants", tenant_name, "allow", index)
        for end in (flow.source, flow.target):
            if end not in guests:
                yield place, f"the tenant has no guest '{end}'", among(end, guests)
        if flow.source == flow.target:
            yield (
                place,
                f"the flow leads from '{flow.source}' to itself",
                "a guest always reaches itself; remove the line",
            )
        if flow in seen:
            yield place, f"the flow '{flow}' stands here a second time", "remove the line"
        seen.add(flow)


def _addresses(tenant_name: str, tenant: TenantSpec) -> Iterator[Finding]:
    only = next(iter(tenant.networks)) if len(tenant.networks) == 1 else None
    for name, network in tenant.networks.items():
        members = [
            guest
            for guest in tenant.guests.values()
            if name in guest.networks or (not guest.networks and name == only)
        ]
        usable = network.four.num_addresses - 3
        if len(members) > usable:
            yield (
                ("tenants", tenant_name, "networks", name),
                f"{network.four} has {usable} addresses for guests, but {len(members)} guests are attached",
                "use a shorter prefix",
            )


def _node_load(spec: Spec) -> Iterator[Finding]:
    placed: dict[str, list[GuestSpec]] = {}
    tracked: dict[str, int] = {}
    needed: dict[str, int] = {}
    for tenant in spec.tenants.values():
        for guest in tenant.guests.values():
            only = next(iter(spec.nodes)) if guest.node is None and len(spec.nodes) == 1 else ""
            node_name = guest.node or only
            placed.setdefault(node_name, []).append(guest)
            own = limits(tenant, guest)
            needed[node_name] = needed.get(node_name, 0) + guest.memory + own["memory_overhead"]
            interfaces = len(guest.networks or tenant.networks)
            tracked[node_name] = tracked.get(node_name, 0) + interfaces * own["connections"]
    for name, node in spec.nodes.items():
        guests = placed.get(name, [])
        if tracked.get(name, 0) > TRACKED_CONNECTIONS:
            yield (
                ("nodes", name),
                (
                    f"its guests may have {tracked[name]} connections tracked, and a node tracks "
                    f"{TRACKED_CONNECTIONS}"
                ),
                "lower their limits, or move a guest to another node",
            )
        yield from _pool(name, guests)
        wanted = needed.get(name, 0)
        available = node.memory - NODE_RESERVE
        if wanted > available:
            yield (
                ("nodes", name),
                f"its guests may use {format_size(wanted)}, QEMU's overhead included, and of its "
                f"{format_size(node.memory)} only {format_size(max(available, 0))} are left beside the root "
                "partition",
                "raise the node's memory, lower the guests', or move a guest to another node",
            )
        if len(guests) > WORKERS_PER_NODE:
            yield (
                ("nodes", name),
                f"{len(guests)} guests are placed on it",
                f"a node has {WORKERS_PER_NODE} worker accounts; add nodes",
            )


def _images(tenant: str, name: str, guest: GuestSpec) -> Iterator[Finding]:
    """Yield a finding for each volume whose image cannot be imported (docs/decisions/0042)."""
    for label, volume in guest.volumes.items():
        place: Path = ("tenants", tenant, "guests", name, "volumes", label)
        if volume.format and not volume.image:
            yield place, "it has the format of an image, and no image", "add 'image:', or remove 'format:'"
        if volume.image and not volume.form:
            yield (
                (*place, "image"),
                f"the name {volume.image!r} does not declare a format",
                "add 'format: raw' or 'format: qcow2': it is never found out from the content",
            )
        if volume.image and volume.size > IMPORTED:
            yield (
                (*place, "size"),
                f"a volume of {format_size(volume.size)} cannot begin with an image",
                f"use at most {format_size(IMPORTED)}: the node holds it in memory while it is imported",
            )


def _pool(name: str, guests: Iterable[GuestSpec]) -> Iterator[Finding]:
    """Yield a finding if the volumes of a node's guests, filled, do not fit the file system (DOS-04)."""
    wanted = sum(volume.size for guest in guests for volume in guest.volumes.values())
    available = int(POOL * _POOL_SHARE) // MIB * MIB
    if wanted > available:
        yield (
            ("nodes", name),
            f"the volumes of its guests take up to {format_size(wanted)}, and its file system for them has "
            f"{format_size(available)}",
            "lower their sizes, or move a guest to another node",
        )


def _machine_memory(spec: Spec, machine_memory: int) -> Iterator[Finding]:
    machines = [spec.controller.memory, *(node.memory for node in spec.nodes.values())]
    wanted = sum(machines)
    available = machine_memory - MACHINE_RESERVE
    if wanted > available:
        yield (
            ("nodes",),
            f"the lab's {len(machines)} machines want {format_size(wanted)}, and this machine can give "
            f"{format_size(max(available, 0) // MIB * MIB)}",
            "use fewer or smaller nodes, or a larger machine",
        )
