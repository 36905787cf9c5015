"""Resolve a `Spec` into a `Topology` with all values derived. Pure and deterministic.

Numbers (addresses, tunnel keys, worker accounts) follow from a hash of the name they belong to, with probing
on collision, and a lab remembers the numbers that it gave (`testbed.model.numbers`). So adding a guest leaves
the others where they are, and tenants that use the same names and ranges get the same addresses: the wall has
to keep them apart.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from ipaddress import IPv4Network
from uuid import UUID, uuid5

from testbed.gc_pause import gc_disabled
from testbed.model import numbers
from testbed.model.numbers import Numbers, hashed
from testbed.model.topology import (
    ENCRYPTED,
    FIRST_WORKER_UID,
    AllowedFlow,
    Guest,
    GuestNic,
    Image,
    LabNetwork,
    Limits,
    Machine,
    MachineNic,
    Plane,
    Role,
    Tenant,
    TenantNetwork,
    Topology,
    Volume,
)
from testbed.topology_file.schema import ControllerSpec, GuestSpec, NodeSpec, Spec, TenantSpec
from testbed.topology_file.validation import CONTROLLER, WORKERS_PER_NODE, limits

_NAMESPACE = UUID("5f0c6a0e-93cc-5f2e-8f0b-0d8f5d6f7a41")
_MAX_TUNNEL_KEY = 2**23
_PREFIX = {Plane.MANAGEMENT: "mgmt", Plane.FABRIC: "fabr", Plane.STORAGE: "stor"}


@gc_disabled()
def resolve(spec: Spec, given: Numbers | None = None) -> Topology:
    """Return the topology that a valid file describes.

    Args:
        spec: a topology without mistakes; `testbed.topology_file.loader` guarantees that.
        given: numbers that names have already, and keep.

    """
    given = given or Numbers()
    networks = tuple(_lab_network(plane, getattr(spec.infrastructure, plane)) for plane in Plane)
    hosts = {
        plane: given.spread(
            numbers.hosts(plane, network.network),
            spec.nodes,
            range(11, network.network.num_addresses - 1),
            str(plane),
        )
        for plane, network in zip(Plane, networks, strict=True)
    }
    controller = _machine(spec, CONTROLLER, spec.controller, networks, dict.fromkeys(Plane, 10))
    nodes = tuple(
        _machine(spec, name, node, networks, {plane: hosts[plane][name] for plane in Plane})
        for name, node in spec.nodes.items()
    )
    keys = given.spread(
        numbers.KEYS,
        [f"{tenant}/{network}" for tenant, item in spec.tenants.items() for network in item.networks],
        range(1, _MAX_TUNNEL_KEY),
        "key",
    )
    slots = _worker_slots(spec, given)
    tenants = tuple(_tenant(spec, name, tenant, keys, slots, given) for name, tenant in spec.tenants.items())
    return Topology(
        spec.name,
        _digest(spec.name, networks, controller, nodes, tenants),
        networks,
        controller,
        nodes,
        tenants,
    )


def _mac(*parts: str) -> str:
    """Return a locally administered unicast MAC; 40 hashed bits make collisions improbable."""
    octets = hashlib.sha256("\0".join(("mac", *parts)).encode()).digest()[:5]
    return ":".join(f"{octet:02x}" for octet in (0x0A, *octets))


def _uuid(*parts: str) -> str:
    return str(uuid5(_NAMESPACE, "/".join(parts)))


def _interface(prefix: str, *parts: str) -> str:
    """Return an interface name of at most 15 characters, unique in a lab."""
    return f"{prefix}{hashed(*parts) % 16**8:08x}"


def _lab_network(plane: Plane, network: IPv4Network) -> LabNetwork:
    gateway = network[1] if plane is Plane.MANAGEMENT else None
    return LabNetwork(plane, network, f"br-{plane}", gateway)


def _machine(
    spec: Spec,
    name: str,
    item: NodeSpec | ControllerSpec,
    networks: tuple[LabNetwork, ...],
    hosts: dict[Plane, int],
) -> Machine:
    role = Role.NODE if isinstance(item, NodeSpec) else Role.CONTROLLER
    planes = tuple(Plane) if role is Role.NODE else (Plane.MANAGEMENT,)
    nics = tuple(
        MachineNic(
            network.plane,
            _mac(spec.name, name, network.plane),
            network.network[hosts[network.plane]],
            _interface(_PREFIX[network.plane], spec.name, name),
        )
        for network in networks
        if network.plane in planes
    )
    return Machine(name, role, _uuid(spec.name, name), item.memory, item.vcpus, nics)


def _node_of(spec: Spec, guest: GuestSpec) -> str:
    return guest.node or next(iter(spec.nodes))


def _worker_slots(spec: Spec, given: Numbers) -> dict[str, int]:
    placed: dict[str, list[str]] = {}
    for tenant, item in spec.tenants.items():
        for name, guest in item.guests.items():
            placed.setdefault(_node_of(spec, guest), []).append(f"{tenant}/{name}")
    slots: dict[str, int] = {}
    for node, labels in placed.items():
        slots.update(given.spread(numbers.workers(node), labels, range(WORKERS_PER_NODE), f"worker/{node}"))
    return slots


def _tenant(
    spec: Spec, name: str, item: TenantSpec, keys: dict[str, int], slots: dict[str, int], given: Numbers
) -> Tenant:  # fmt: skip
    networks = tuple(
        TenantNetwork(
            name,
            label,
            ranges.four,
            keys[f"{name}/{label}"],
            ranges.four[1],
            _mac(spec.name, "dhcp", name, label),
            ranges.six,
            ranges.six[1] if ranges.six else None,
        )
        for label, ranges in item.networks.items()
    )
    memberships = {guest: _networks_of(item, guest_spec) for guest, guest_spec in item.guests.items()}
    hosts = {
        network.name: _hosts(
            network, [guest for guest, joined in memberships.items() if network.name in joined], given
        )
        for network in networks
    }
    joins = {
        guest: [
            (network, hosts[network.name][guest])
            for label in joined
            for network in networks
            if network.name == label
        ]
        for guest, joined in memberships.items()
    }
    guests = tuple(
        _guest(spec, name, guest, guest_spec, slots, joins[guest])
        for guest, guest_spec in item.guests.items()
    )
    flows = tuple(
        AllowedFlow(name, flow.source, flow.target, flow.protocol, flow.port) for flow in item.allow
    )
    return Tenant(name, networks, guests, flows)


def _networks_of(item: TenantSpec, guest: GuestSpec) -> tuple[str, ...]:
    return guest.networks or tuple(item.networks)


def _hosts(network: TenantNetwork, guests: list[str], given: Numbers) -> dict[str, int]:
    """Return each guest's host number, the same in both address families."""
    return given.spread(
        numbers.guests(network), guests, range(2, network.network.num_addresses - 1), "address"
    )


def _guest(
    spec: Spec,
    tenant: str,
    name: str,
    item: GuestSpec,
    slots: dict[str, int],
    hosts: list[tuple[TenantNetwork, int]],
) -> Guest:
    slot = slots[f"{tenant}/{name}"]
    nics = tuple(
        GuestNic(
            network.name,
            _mac(spec.name, tenant, name, network.name),
            network.network[host],
            _uuid(spec.name, tenant, name, network.name),
            _interface("tap", spec.name, tenant, name, network.name),
            network.network6[host] if network.network6 else None,
        )
        for network, host in hosts
    )
    volumes = tuple(
        Volume(
            label,
            volume.size,
            f"{name}.{label}{ENCRYPTED}",
            Image(volume.image, volume.form) if volume.image else None,
        )
        for label, volume in item.volumes.items()
    )
    return Guest(
        tenant=tenant,
        name=name,
        node=_node_of(spec, item),
        uuid=_uuid(spec.name, tenant, name),
        memory=item.memory,
        vcpus=item.vcpus,
        worker=f"worker{slot:02d}",
        uid=FIRST_WORKER_UID + slot,
        nics=nics,
        volumes=volumes,
        limits=Limits(**limits(spec.tenants[tenant], item)),
    )


def _digest(
    name: str,
    networks: tuple[LabNetwork, ...],
    controller: Machine,
    nodes: tuple[Machine, ...],
    tenants: tuple[Tenant, ...],
) -> str:
    machines = [asdict(machine) for machine in (controller, *nodes)]
    content = [
        name,
        *map(asdict, networks),
        *machines,
        *(asdict(tenant, dict_factory=_present) for tenant in tenants),
    ]
    return hashlib.sha256(json.dumps(content, default=str, sort_keys=True).encode()).hexdigest()


def _present(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Leave out IPv6 fields of a network without IPv6, and images that are none: a lab keeps its digest."""
    return {
        name: value
        for name, value in pairs
        if value is not None or not (name.endswith("6") or name == "image")
    }
