"""A topology with every name, MAC, address, tunnel key, account and path decided.

Frozen values without behaviour beyond look-ups. Sizes are bytes. Two loads of the same file give equal
values; nothing in here depends on the machine that runs the lab.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from uuid import UUID, uuid5

IMAGES = "/var/lib/testbed/images"
POOLS = "/var/lib/testbed/pools"
LOGS = "/var/log/libvirt/qemu"
FIRST_WORKER_UID = 64100
ENCRYPTED = ".luks"  # end of the file names of encrypted volumes
# Octets before the data of such a file: the header of LUKS1 and eight slots for keys of AES-256-XTS, as QEMU
# lays them out (QEMU, crypto/block-luks.c).
LUKS_HEADER = 2_068_480
_SECRET_NAMES = UUID("6f6b1d0e-5c0b-5a5e-9f0c-7a2f3f1c0b56")  # namespace of the names of libvirt's secrets
_LARGEST = 640_000  # bits


def file_length(file: str, size: int) -> int:
    """Return the length of the file of a volume, both in bytes."""
    return size + LUKS_HEADER if file.endswith(ENCRYPTED) else size


def volume_secret(tenant: str) -> str:
    """Return the UUID of the libvirt secret that holds the key of a tenant's volumes on a node (STO-06)."""
    return str(uuid5(_SECRET_NAMES, tenant))


class Role(StrEnum):
    """The role of a machine; also the name of its image."""

    NODE = "node"
    CONTROLLER = "controller"


class Plane(StrEnum):
    """The infrastructure networks of a lab."""

    MANAGEMENT = "management"
    FABRIC = "fabric"
    STORAGE = "storage"


@dataclass(frozen=True, slots=True)
class LabNetwork:
    """An infrastructure network: one bridge in the lab's namespace.

    Args:
        gateway: the outer machine's address, on the management network only.

    """

    plane: Plane
    network: IPv4Network
    bridge: str
    gateway: IPv4Address | None


@dataclass(frozen=True, slots=True)
class MachineNic:
    """A machine's interface on an infrastructure network."""

    plane: Plane
    mac: str
    address: IPv4Address
    tap: str


@dataclass(frozen=True, slots=True)
class Machine:
    """A node or the controller."""

    name: str
    role: Role
    uuid: str
    memory: int
    vcpus: int
    nics: tuple[MachineNic, ...]

    def address(self, plane: Plane) -> IPv4Address:
        """Return the machine's address on a plane."""
        return next(nic.address for nic in self.nics if nic.plane is plane)

    def domain(self, lab: str) -> str:
        """Return the name of its libvirt domain, unique among labs that one libvirt runs."""
        return f"{lab}.{self.name}"


@dataclass(frozen=True, slots=True)
class TenantNetwork:
    """A tenant's network: one OVN logical switch.

    Args:
        key: tunnel key on the fabric (24 bits), unique in the lab.
        server: address from which OVN answers DHCP.
        network6: its IPv6 range, if it has one.
        server6: the network's own IPv6 address, if it has a range; no guest may use it.

    """

    tenant: str
    name: str
    network: IPv4Network
    key: int
    server: IPv4Address
    server_mac: str
    network6: IPv6Network | None = None
    server6: IPv6Address | None = None

    @property
    def label(self) -> str:
        """Name of the logical switch, unique in the lab."""
        return f"{self.tenant}/{self.name}"

    @property
    def ranges(self) -> str:
        """Its address ranges, IPv4 first, with a space between them."""
        return " ".join(str(item) for item in (self.network, self.network6) if item)


@dataclass(frozen=True, slots=True)
class GuestNic:
    """A guest's interface: one OVN logical port.

    Args:
        port: name of the logical port, equal to the ``iface-id`` that OVN binds.
        tap: name of the interface on the node.

    """

    network: str
    mac: str
    address: IPv4Address
    port: str
    tap: str
    address6: IPv6Address | None = None

    @property
    def addresses(self) -> str:
        """Its addresses, IPv4 first, with a space between them."""
        return " ".join(str(item) for item in (self.address, self.address6) if item)

    @property
    def port_security(self) -> str:
        """The source addresses that it may use, in OVN's notation: its MAC and IP addresses."""
        return f"{self.mac} {self.addresses}"


@dataclass(frozen=True, slots=True)
class Image:
    """A file whose content a new volume begins with, as the topology names it, and its declared format."""

    file: str
    form: str


@dataclass(frozen=True, slots=True)
class Volume:
    """A guest's extra disk, in bytes."""

    name: str
    size: int
    file: str
    image: Image | None = None

    @property
    def encrypted(self) -> bool:
        """Whether its file is a LUKS container, by the name that this tool has given it."""
        return self.file.endswith(ENCRYPTED)

    @property
    def octets(self) -> int:
        """Length of its file."""
        return file_length(self.file, self.size)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a guest on resources shared with other guests (NET-12, DOS-02 to DOS-04).

    The first three are those of each of its interfaces. Others are of the whole guest; 0 is no limit.

    Args:
        bandwidth: bits per second that it may send.
        packets: packets per second that it may send; whole thousands.
        connections: connections that its node tracks for it.
        cpu: percentage of the time of each of its virtual CPUs that its worker may use, all threads together.
        cpu_weight: its share of the CPU where guests compete.
        memory_overhead: bytes of memory that its worker may use beside the guest's RAM.
        disk_operations: operations per second on all of its disks together.
        disk_bandwidth: bytes per second from and to all of its disks together.

    """

    bandwidth: int
    packets: int
    connections: int
    cpu: int = 0
    cpu_weight: int = 0
    memory_overhead: int = 0
    disk_operations: int = 0
    disk_bandwidth: int = 0

    @property
    def burst(self) -> int:
        """Bits that may be sent at once.

        A guest may hand over 64 KiB in one piece; a smaller burst would never let it pass.
        """
        return max(self.bandwidth // 10, _LARGEST)


@dataclass(frozen=True, slots=True)
class Guest:
    """A tenant's nested virtual machine."""

    tenant: str
    name: str
    node: str
    uuid: str
    memory: int
    vcpus: int
    worker: str
    uid: int
    nics: tuple[GuestNic, ...]
    volumes: tuple[Volume, ...]
    limits: Limits

    @property
    def label(self) -> str:
        """Name of the guest in the lab: ``tenant/guest``."""
        return f"{self.tenant}/{self.name}"

    @property
    def domain(self) -> str:
        """Name of the libvirt domain on the node."""
        return f"{self.tenant}.{self.name}"

    @property
    def root_disk(self) -> str:
        """Path of the root overlay on the node."""
        return f"{self.pool}/{self.root_file}"

    @property
    def root_file(self) -> str:
        """File name of the root overlay in the tenant's pool."""
        return f"{self.name}.qcow2"

    @property
    def disks(self) -> tuple[str, ...]:
        """Paths of everything the guest writes to, on the node: the root overlay, then the volumes."""
        return (self.root_disk, *(f"{self.pool}/{volume.file}" for volume in self.volumes))

    @property
    def most_memory(self) -> int:
        """Bytes of memory that its worker may use: the guest's RAM, and what QEMU needs beside it."""
        return self.memory + self.limits.memory_overhead

    @property
    def most_cpu(self) -> int:
        """Percentage of one CPU that its worker may use, all virtual CPUs and other threads together."""
        return self.vcpus * self.limits.cpu

    @property
    def console(self) -> str:
        """Path of what the guest has written to its serial console, on the node."""
        return f"{LOGS}/{self.domain}.console.log"

    @property
    def pool(self) -> str:
        """Folder of the tenant's volumes on the node."""
        return f"{POOLS}/{self.tenant}"


@dataclass(frozen=True, slots=True)
class AllowedFlow:
    """A flow that the topology allows, inside one tenant. ``port`` is None for ICMP."""

    tenant: str
    source: str
    target: str
    protocol: str
    port: int | None

    @property
    def service(self) -> str:
        """The service as a topology file writes it."""
        return self.protocol if self.port is None else f"{self.protocol}/{self.port}"


@dataclass(frozen=True, slots=True)
class Tenant:
    """An owner of networks and guests."""

    name: str
    networks: tuple[TenantNetwork, ...]
    guests: tuple[Guest, ...]
    flows: tuple[AllowedFlow, ...]

    def network(self, name: str) -> TenantNetwork:
        """Return one of the tenant's networks."""
        return next(network for network in self.networks if network.name == name)


@dataclass(frozen=True)
class Topology:
    """A whole lab, resolved.

    Args:
        digest: SHA-256 of the resolved content (hexadecimal); equal for files that mean the same.

    """

    __test__ = False

    name: str
    digest: str
    networks: tuple[LabNetwork, ...]
    controller: Machine
    nodes: tuple[Machine, ...]
    tenants: tuple[Tenant, ...]

    @property
    def machines(self) -> tuple[Machine, ...]:
        """The controller and every node."""
        return (self.controller, *self.nodes)

    @cached_property
    def guests(self) -> tuple[Guest, ...]:
        """Every guest of every tenant."""
        return tuple(guest for tenant in self.tenants for guest in tenant.guests)

    def tenant(self, name: str) -> Tenant:
        """Return a tenant by name."""
        return self._tenants[name]

    def machine(self, name: str) -> Machine:
        """Return a machine by name."""
        return next(machine for machine in self.machines if machine.name == name)

    def guests_on(self, node: str) -> tuple[Guest, ...]:
        """Return the guests that are placed on a node."""
        return tuple(self._placed.get(node, ()))

    @cached_property
    def _tenants(self) -> dict[str, Tenant]:
        return {tenant.name: tenant for tenant in self.tenants}

    @cached_property
    def _placed(self) -> dict[str, list[Guest]]:
        placed: dict[str, list[Guest]] = {}
        for guest in self.guests:
            placed.setdefault(guest.node, []).append(guest)
        return placed

    @cached_property
    def tunnel_ends(self) -> tuple[str, ...]:
        """The addresses at which nodes take tunnels, sorted as text."""
        return tuple(sorted(str(node.address(Plane.FABRIC)) for node in self.nodes))

    def without(self, node: str) -> Topology:
        """Return the same lab without one node's guests, and without the flows that need them."""
        tenants = []
        for tenant in self.tenants:
            guests = tuple(guest for guest in tenant.guests if guest.node != node)
            names = {guest.name for guest in guests}
            flows = tuple(flow for flow in tenant.flows if {flow.source, flow.target} <= names)
            tenants.append(replace(tenant, guests=guests, flows=flows))
        return replace(self, tenants=tuple(tenants))

    def with_guest(self, guest: Guest) -> Topology:
        """Return the same lab with one more guest of one of its tenants."""
        tenants = (
            replace(tenant, guests=(*tenant.guests, guest)) if tenant.name == guest.tenant else tenant
            for tenant in self.tenants
        )
        return replace(self, tenants=tuple(tenants))

    def lab_network(self, plane: Plane) -> LabNetwork:
        """Return an infrastructure network."""
        return next(network for network in self.networks if network.plane is plane)

    def switches(self) -> Iterator[TenantNetwork]:
        """Yield every tenant network."""
        for tenant in self.tenants:
            yield from tenant.networks
