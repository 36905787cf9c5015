"""The resources that must exist, with flat properties: the desired side of a plan. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from testbed.gc_pause import gc_disabled
from testbed.model.environment import Environment
from testbed.model.topology import Guest, Machine, Plane, Role, TenantNetwork, Topology
from testbed.plan import compute_limits, ovn_northbound
from testbed.plan.host_config.nd_guard import GUARDS
from testbed.plan.host_config.settings import settings
from testbed.plan.ovn_acls import acls

OUTER = "outer"

Value = str | int | list[str]
Properties = Mapping[str, Value]
# Of the secret with the key of a tenant's volumes on a node: libvirt writes it to no disk and gives it to no
# client (STO-06).
HELD_KEY: Properties = {"key": "the tenant's", "ephemeral": "yes", "private": "yes"}


class Kind(StrEnum):
    """Kinds of resources."""

    NETWORK = "lab-network"
    TAP = "tap"
    MACHINE = "machine"
    SWITCH = "logical-switch"
    PORT = "logical-port"
    POOL = "pool"
    VOLUME = "volume"
    VOLUME_KEY = "volume-key"
    GUEST = "guest"
    SETTING = "setting"
    LIMIT = "limit"
    COMPUTE = "compute-limits"
    DATABASE = "database"


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """The name of a resource.

    Args:
        place: its place: ``outer``, the controller or a node.

    """

    place: str
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.place}: {self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing that must exist.

    Args:
        properties: its desired properties; sizes in bytes.
        after: resources of the same place that must exist first.

    """

    key: Key
    properties: Properties
    after: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of the desired state besides the topology.

    Args:
        environment: capabilities of the outer machine.
        images: digest of each image by name.

    """

    environment: Environment
    images: Mapping[str, str]


def places(topology: Topology) -> tuple[str, ...]:
    """Return every place of a lab, the outer machine first."""
    return (OUTER, *(machine.name for machine in topology.machines))


@gc_disabled()
def desired(topology: Topology, inputs: Inputs) -> dict[Key, Resource]:
    """Return every resource of a lab by key."""
    found = [*_outer(topology, inputs), *central(topology)]
    place, logical = (
        topology.controller.name,
        tuple(item.key for item in found if item.key.kind in (Kind.SWITCH, Kind.PORT)),
    )
    # Strays are recognised by the lack of a mark, so they are removed only when all resources of the lab are
    # there.
    found.append(
        Resource(Key(place, Kind.DATABASE, ovn_northbound.NAME), dict(ovn_northbound.told(())), logical)
    )
    for machine in topology.machines:
        found += [
            Resource(Key(machine.name, Kind.SETTING, item.name), {"value": item.value})
            for item in settings(topology, machine)
        ]
    for node in topology.nodes:
        found += _node(node, topology.guests_on(node.name), inputs)
    return {resource.key: resource for resource in found}


def _outer(topology: Topology, inputs: Inputs) -> Iterator[Resource]:
    for network in topology.networks:
        address = f"{network.gateway}/{network.network.prefixlen}" if network.gateway else ""
        yield Resource(
            Key(OUTER, Kind.NETWORK, network.plane), {"bridge": network.bridge, "address": address}
        )
    for machine in topology.machines:
        taps = []
        for nic in machine.nics:
            key = Key(OUTER, Kind.TAP, f"{machine.name}/{nic.plane}")
            taps.append(key)
            properties: Properties = {"interface": nic.tap, "bridge": topology.lab_network(nic.plane).bridge}
            yield Resource(key, properties, (Key(OUTER, Kind.NETWORK, nic.plane),))
        yield Resource(
            Key(OUTER, Kind.MACHINE, machine.name), machine_properties(topology, machine, inputs), tuple(taps)
        )


def machine_properties(topology: Topology, machine: Machine, inputs: Inputs) -> Properties:
    """Return the desired properties of a machine; any difference but of its state replaces it."""
    images = [inputs.images[machine.role]]
    if machine.role is Role.NODE:
        images.append(inputs.images["guest"])
    return {
        "accelerator": inputs.environment.outer,
        "memory": machine.memory,
        "vcpus": inputs.environment.vcpus(machine.vcpus),
        "images": images,
        "interfaces": [f"{nic.plane} {nic.mac} {nic.address} {nic.tap}" for nic in machine.nics],
        "controller": str(topology.controller.address(Plane.MANAGEMENT)),
        "peers": _peers(topology, machine),
        "state": "running",
    }


def _peers(topology: Topology, machine: Machine) -> list[str]:
    """Return the nodes that a node has tunnels to, sorted; it learns of them when it is made."""
    others = [node for node in topology.nodes if machine.role is Role.NODE and node.name != machine.name]
    return sorted(f"{node.name} {node.address(Plane.FABRIC)}" for node in others)


def dhcp_options(network: TenantNetwork) -> dict[str, str]:
    """Return all options of DHCP for guests of a network, by OVN's names (NET-10).

    The MTU is 1500 without Geneve (58 octets) and ESP (at most 37: RFC 4303, RFC 4106).
    """
    return {
        "server_id": str(network.server),
        "server_mac": network.server_mac,
        "lease_time": "86400",
        "mtu": "1400",
    }


def dhcp6_options(network: TenantNetwork) -> dict[str, str]:
    """Return all options of DHCPv6 for guests of a network, by OVN's names (NET-10).

    Empty where the network has no IPv6.
    """
    return {"server_id": network.server_mac} if network.network6 else {}


def _settings(cidr: object, options: Mapping[str, str]) -> list[str]:
    """Return the DHCP settings of a switch: range and options, or nothing without a range."""
    return sorted(f"{name}={value}" for name, value in {"cidr": cidr, **options}.items()) if cidr else []


def central(topology: Topology) -> Iterator[Resource]:
    """Yield the resources of OVN's northbound database.

    They are a switch for each tenant network, and a port for each guest's interface.
    """
    place = topology.controller.name
    for tenant in topology.tenants:
        for network in tenant.networks:
            switch = Key(place, Kind.SWITCH, network.label)
            yield Resource(
                switch,
                {
                    "network": network.ranges,
                    "tunnel_key": network.key,
                    "dhcp": _settings(network.network, dhcp_options(network)),
                    "dhcp6": _settings(network.network6, dhcp6_options(network)),
                    "names": 0,
                    "acls": [str(rule) for rule in acls(tenant, network)],
                    "options": [],
                },
            )
            for guest in tenant.guests:
                for nic in guest.nics:
                    if nic.network == network.name:
                        yield Resource(
                            Key(place, Kind.PORT, f"{guest.label}/{nic.network}"),
                            {
                                "port": nic.port,
                                "switch": network.label,
                                "addresses": nic.port_security,
                                "security": [nic.port_security],
                                "dhcp": network.label,
                                "dhcp6": network.label if network.network6 else "",
                                "bandwidth": guest.limits.bandwidth,
                                "connections": guest.limits.connections,
                            },
                            (switch,),
                        )


def _node(node: Machine, guests: Sequence[Guest], inputs: Inputs) -> Iterator[Resource]:
    for tenant in dict.fromkeys(guest.tenant for guest in guests):
        uids = sorted(guest.uid for guest in guests if guest.tenant == tenant)
        access = ["user::rwx", "group::---", "mask::--x", "other::---", *(f"user:{uid}:--x" for uid in uids)]
        yield Resource(Key(node.name, Kind.POOL, tenant), {"owner": "root", "access": sorted(access)})
        if any(guest.volumes for guest in guests if guest.tenant == tenant):
            yield Resource(Key(node.name, Kind.VOLUME_KEY, tenant), HELD_KEY)
    for guest in guests:
        pool = Key(node.name, Kind.POOL, guest.tenant)
        volumes = []
        for file, size in ((guest.root_file, 0), *((volume.file, volume.size) for volume in guest.volumes)):
            key = Key(node.name, Kind.VOLUME, f"{guest.tenant}/{file}")
            volumes.append(key)
            shape: dict[str, Value] = {"owner": guest.uid, "mode": "600", "links": 1}
            yield Resource(key, {**shape, "size": size} if size else shape, (pool,))
        if guest.volumes:
            volumes.append(Key(node.name, Kind.VOLUME_KEY, guest.tenant))
        guards = GUARDS if any(nic.address6 for nic in guest.nics) else ()
        walls = [Key(node.name, Kind.SETTING, name) for name in ("services", *guards)]
        key = Key(node.name, Kind.GUEST, guest.label)
        yield Resource(key, guest_properties(guest, inputs), (*volumes, *walls))
        yield Resource(Key(node.name, Kind.COMPUTE, guest.label), compute_limits.wanted(guest), (key,))
        for nic in guest.nics:
            yield Resource(
                Key(node.name, Kind.LIMIT, f"{guest.label}/{nic.network}"),
                {"packets": guest.limits.packets, "connections": guest.limits.connections},
                (key,),
            )


def guest_properties(guest: Guest, inputs: Inputs) -> Properties:
    """Return the desired properties of a guest.

    A difference restarts or replaces it (`testbed.plan.diff`).

    It asks for its addresses when it starts, and keeps them for a day.
    """
    return {
        "memory": guest.memory,
        "vcpus": guest.vcpus,
        "image": inputs.images["guest"],
        "interfaces": [
            f"{nic.mac} {nic.port} {nic.tap}{' dhcp6' if nic.address6 else ''}" for nic in guest.nics
        ],
        "addresses": [nic.addresses for nic in guest.nics],
        "volumes": [volume.file for volume in guest.volumes],
        "worker": guest.worker,
        "confinement": "apparmor",
        "state": "running",
    }
