"""The topology file as pydantic models.

Unknown keys are refused. Names are the keys of mappings, sizes carry units, a flow is one line. Rules about
references between parts of a file are in `testbed.topology_file.validation`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from testbed.topology_file.yaml_source import shown

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
MAX_INTERFACES = 8  # of a guest: a q35 machine has slots for them beside its volumes
GUEST_MEMORY = 224 * MIB  # the default of a topology file
_UNITS = {"KiB": KIB, "MiB": MIB, "GiB": GIB}
_SIZE = re.compile(r"^([1-9][0-9]*)\s*(KiB|MiB|GiB)$")
_NAME = r"^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$"
NAME_RULE = (
    "start with a lower-case letter; then up to 19 lower-case letters, digits or hyphens, the last no hyphen"
)
_SPECIAL = tuple(
    map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))
)  # RFC 6890; multicast
_UNICAST = tuple(map(IPv6Network, ("fd00::/8", "2000::/3")))  # RFC 4193, RFC 4291
_SPECIAL6 = tuple(
    map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
)  # RFC 6890, RFC 9637
_PREFIX6 = 64  # RFC 4291, 2.5.4; the one length that hosts and OVN's address management agree on
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_BITS = {"kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9}
_BANDWIDTH = re.compile(r"^([1-9][0-9]{0,5})\s*(kbit|Mbit|Gbit)/s$")
_PACKETS = re.compile(r"^([1-9][0-9]{0,6})000/s$")
_FLOW = re.compile(r"^\s*(?P<source>\S+)\s*->\s*(?P<target>\S+)\s+(?P<service>\S+)\s*$")


def parse_size(value: object) -> int:
    """Return a size in bytes from text such as ``64 MiB``.

    Raises:
        ValueError: the text has no unit, or is no size.

    """
    match = _SIZE.match(value) if isinstance(value, str) else None
    if not match:
        msg = (
            f"{shown(value)} is not a size; write a whole number above zero and KiB, MiB or GiB, as in '64 "
            "MiB'"
        )
        raise ValueError(msg)
    return int(match[1]) * _UNITS[match[2]]


def format_size(size: int) -> str:
    """Return a size in bytes as text in the form of a topology file."""
    for unit, factor in reversed(_UNITS.items()):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"


def parse_bandwidth(value: object) -> int:
    """Return bits per second from text such as ``50 Mbit/s``.

    Raises:
        ValueError: the text has no unit, or is no bandwidth.

    """
    match = _BANDWIDTH.match(value) if isinstance(value, str) else None
    if not match:
        msg = (
            f"{shown(value)} is not a bandwidth; write a whole number above zero and kbit/s, Mbit/s or "
            "Gbit/s, as in '50 Mbit/s'"
        )
        raise ValueError(msg)
    return int(match[1]) * _BITS[match[2]]


def parse_packets(value: object) -> int:
    """Return packets per second from text such as ``2000/s``.

    Open vSwitch counts them in thousands.

    Raises:
        ValueError: the text is no packet rate, or not in thousands.

    """
    match = _PACKETS.match(value) if isinstance(value, str) else None
    if not match:
        msg = f"{shown(value)} is not a packet rate; write whole thousands per second, as in '2000/s'"
        raise ValueError(msg)
    return int(match[1]) * 1000


def _private_network(network: IPv4Network) -> IPv4Network:
    if network.prefixlen > 29:
        msg = f"{network} is too small; use a prefix length of 29 or less"
        raise ValueError(msg)
    if any(network.overlaps(special) for special in _SPECIAL):
        msg = f"{network} is reserved for other purposes; use a private network such as 10.0.0.0/24"
        raise ValueError(msg)
    return network


def _network_text(value: object) -> IPv4Network:
    if isinstance(value, IPv4Network):
        return value
    try:
        return IPv4Network(value if isinstance(value, str) else "")
    except ValueError as error:
        text = str(error) if "host bits" in str(error) else f"{shown(value)} is not a range"
        msg = f"{text}; write an address and a prefix length, as in 10.0.0.0/24"
        raise ValueError(msg) from error


@dataclass(frozen=True, slots=True)
class Ranges:
    """The address ranges of a tenant's network: one of IPv4, and at most one of IPv6."""

    four: IPv4Network
    six: IPv6Network | None = None

    @classmethod
    def parse(cls, value: object) -> Ranges:
        """Return the ranges that a file gives a network: one as text, or a list in any order.

        Raises:
            ValueError: a range is none, or is not for tenants, or there are too many or too few.

        """
        if isinstance(value, Ranges):
            return value
        found: list[IPv4Network | IPv6Network] = []
        wrong: list[str] = []
        for item in value if isinstance(value, list) else [value]:
            try:
                found.append(_tenant_range(item))
            except ValueError as error:
                wrong.append(str(error))
        if wrong:
            facts, remedies = zip(*(text.split("; ", 1) for text in wrong), strict=True)
            raise ValueError("; ".join((", and ".join(facts), *dict.fromkeys(remedies))))
        return cls._of(found)

    @classmethod
    def _of(cls, found: Sequence[IPv4Network | IPv6Network]) -> Ranges:
        four = [item for item in found if isinstance(item, IPv4Network)]
        six = [item for item in found if isinstance(item, IPv6Network)]
        if len(four) != 1 or len(six) > 1:
            msg = (
                f"{len(four)} ranges of IPv4 and {len(six)} of IPv6 are given; give one of IPv4, and one "
                "or none of IPv6"
            )
            raise ValueError(msg)
        return cls(four[0], six[0] if six else None)

    @property
    def all(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """Every range, IPv4 first."""
        return (self.four,) if self.six is None else (self.four, self.six)


def _tenant_range(item: object) -> IPv4Network | IPv6Network:
    if not isinstance(item, str):
        msg = (
            f"{shown(item)} is not a range; write an address and a prefix length, as in 10.0.0.0/24 or "
            "fd00:a::/64"
        )
        raise ValueError(msg)
    try:
        network = ip_network(item)
    except ValueError as error:
        text = str(error) if "host bits" in str(error) else f"{shown(item)} is not a range"
        msg = f"{text}; write an address and a prefix length, as in 10.0.0.0/24 or fd00:a::/64"
        raise ValueError(msg) from error
    return _private_network(network) if isinstance(network, IPv4Network) else _unicast_network(network)


def _unicast_network(network: IPv6Network) -> IPv6Network:
    if network.prefixlen != _PREFIX6:
        msg = f"{network} has not the length of an IPv6 network; use a prefix length of {_PREFIX6}"
        raise ValueError(msg)
    usable = any(network.subnet_of(unicast) for unicast in _UNICAST)
    if not usable or any(network.overlaps(special) for special in _SPECIAL6):
        msg = f"{network} is reserved for other purposes; use a unique local network such as fd00:a::/64"
        raise ValueError(msg)
    return network


def is_name(text: str) -> bool:
    """Return whether a text is a valid name of a lab, machine, tenant, guest, network or volume."""
    return re.fullmatch(_NAME, text) is not None


def _within(least: int, most: int) -> AfterValidator:
    """Return a validator of sizes, with both bounds in bytes."""

    def bounded(size: int) -> int:
        if not least <= size <= most:
            msg = (
                f"{format_size(size)} is not possible here; write a size from {format_size(least)} to "
                f"{format_size(most)}"
            )
            raise ValueError(msg)
        return size

    return AfterValidator(bounded)


Name = Annotated[str, Field(pattern=_NAME)]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema({"type": "string", "pattern": _SIZE.pattern, "examples": ["64 MiB", "2 GiB"]}),
]
MachineMemory = Annotated[Size, _within(512 * MIB, 4 * TIB)]
GuestMemory = Annotated[Size, _within(128 * MIB, TIB)]
VolumeSize = Annotated[Size, _within(MIB, 16 * TIB)]
Network = Annotated[
    IPv4Network,
    BeforeValidator(_network_text),
    AfterValidator(_private_network),
    WithJsonSchema({"type": "string", "examples": ["10.0.0.0/24"]}),
]

TenantRanges = Annotated[
    Ranges,
    BeforeValidator(Ranges.parse),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
            ],
            "examples": ["10.0.0.0/24", ["10.0.0.0/24", "fd00:a::/64"]],
        }
    ),
]
Bandwidth = Annotated[
    int,
    BeforeValidator(parse_bandwidth),
    WithJsonSchema({"type": "string", "pattern": _BANDWIDTH.pattern, "examples": ["50 Mbit/s"]}),
]
PacketRate = Annotated[
    int,
    BeforeValidator(parse_packets),
    WithJsonSchema({"type": "string", "pattern": _PACKETS.pattern, "examples": ["2000/s"]}),
]

NetworkNames = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_empty(cls, data: object) -> object:
        """Read a key without a value, such as ``node-a:``, as an empty mapping: all defaults apply."""
        return {} if data is None else data


class Flow(_Strict):
    """One allowed flow between two guests of a tenant: ``web -> db tcp/5432``."""

    source: str
    target: str
    protocol: Literal["tcp", "udp", "icmp"]
    port: int | None = None

    @classmethod
    def parse(cls, text: object) -> Flow:
        """Return the flow that a line of the file describes.

        Raises:
            ValueError: the line does not have the form ``source -> target protocol/port``.

        """
        match = _FLOW.match(text) if isinstance(text, str) else None
        if not match:
            msg = (
                f"{shown(text)} is not a flow; write 'source -> target protocol/port', as in 'web -> db "
                "tcp/5432'"
            )
            raise ValueError(msg)
        protocol, _, port = match["service"].partition("/")
        if protocol == "icmp" and not port:
            return cls(source=match["source"], target=match["target"], protocol="icmp")
        if protocol not in ("tcp", "udp") or not _PORT.fullmatch(port) or int(port) > 65535:
            msg = (
                f"{shown(match['service'])} is not a service; write tcp/PORT or udp/PORT with a port from "
                "1 to 65535, or icmp"
            )
            raise ValueError(msg)
        return cls(
            source=match["source"],
            target=match["target"],
            protocol="tcp" if protocol == "tcp" else "udp",
            port=int(port),
        )

    def __str__(self) -> str:
        service = self.protocol if self.port is None else f"{self.protocol}/{self.port}"
        return f"{self.source} -> {self.target} {service}"


FlowLine = Annotated[
    Flow,
    BeforeValidator(lambda value: value if isinstance(value, Flow) else Flow.parse(value)),
    WithJsonSchema({"type": "string", "examples": ["web -> db tcp/5432", "web -> db icmp"]}),
]


class NodeSpec(_Strict):
    """A virtual machine that is a KVM host and runs guests."""

    memory: MachineMemory = Field(default=2 * GIB, description="RAM of the node, with unit")
    vcpus: int = Field(
        default=2, strict=True, ge=1, le=64, description="virtual CPUs; under emulation a node gets one"
    )


class ControllerSpec(_Strict):
    """The virtual machine that holds the fleet's services."""

    memory: MachineMemory = Field(default=GIB, description="RAM of the controller, with unit")
    vcpus: int = Field(
        default=2, strict=True, ge=1, le=64, description="virtual CPUs; under emulation a machine gets one"
    )


class InfrastructureSpec(_Strict):
    """The networks of a lab's machines, in the lab's own network namespace."""

    management: Network = Field(
        default=IPv4Network("198.18.0.0/24"),
        description="network of administrators and of the controller's services",
    )
    fabric: Network = Field(
        default=IPv4Network("198.18.1.0/24"), description="network of the tunnels between nodes"
    )
    storage: Network = Field(
        default=IPv4Network("198.18.2.0/24"), description="network of the storage of nodes"
    )


class LimitsSpec(_Strict):
    """Limits of each guest's interface on resources shared with other guests (NET-12)."""

    bandwidth: Bandwidth | None = Field(default=None, description="what the guest may send, with unit")
    packets: PacketRate | None = Field(
        default=None, description="packets that the guest may send, in thousands per second"
    )
    connections: int | None = Field(
        default=None, strict=True, ge=16, le=65536, description="connections that the node tracks for it"
    )


class GuestSpec(_Strict):
    """A tenant's virtual machine, nested in a node."""

    node: str | None = Field(default=None, description="node it runs on; optional where there is one node")
    network: NetworkNames = Field(
        default=[],
        max_length=MAX_INTERFACES,
        description="network, or list of networks; optional where the tenant has one",
    )
    memory: GuestMemory = Field(default=GUEST_MEMORY, description="RAM of the guest, with unit")
    vcpus: int = Field(
        default=1,
        strict=True,
        ge=1,
        le=16,
        description="virtual CPUs of the guest, at most those of its node",
    )
    volumes: dict[Name, VolumeSize] = Field(
        default_factory=dict, max_length=15, description="extra volumes: name and size with unit"
    )
    limits: LimitsSpec = Field(
        default=LimitsSpec(), description="of each interface; what is missing comes from the tenant"
    )

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks, in the order of the guest's interfaces."""
        return tuple(self.network)


class TenantSpec(_Strict):
    """An owner of guests, networks and volumes.

    Tenants may use the same names and addresses.
    """

    networks: dict[Name, TenantRanges] = Field(
        min_length=1, max_length=64, description="one IPv4 range, or a list of it and one IPv6 /64"
    )
    guests: dict[Name, GuestSpec] = Field(min_length=1, max_length=4000)
    allow: list[FlowLine] = Field(
        default_factory=list,
        max_length=20_000,
        description="flows allowed inside the tenant; all else is denied",
    )
    limits: LimitsSpec = Field(
        default=LimitsSpec(), description="of each guest's interfaces, where the guest has none of its own"
    )


class Spec(_Strict):
    """A whole topology file."""

    version: Literal[1] = Field(description="version of this format")
    name: Name = Field(description="name of the lab")
    controller: ControllerSpec = ControllerSpec()
    infrastructure: InfrastructureSpec = InfrastructureSpec()
    nodes: dict[Name, NodeSpec] = Field(min_length=1, max_length=4000)
    tenants: dict[Name, TenantSpec] = Field(min_length=1, max_length=4000)


def json_schema() -> dict[str, object]:
    """Return the JSON Schema of a topology file, for editors."""
    schema = Spec.model_json_schema()
    schema["title"] = "testbed topology"
    _close(schema)
    return schema


def _close(schema: object) -> None:
    """Refuse, in place, every key that does not match a pattern of names.

    Pydantic leaves mappings with such patterns open.
    """
    if isinstance(schema, dict):
        if "patternProperties" in schema:
            schema["additionalProperties"] = False
        for part in schema.values():
            _close(part)
    elif isinstance(schema, list):
        for part in schema:
            _close(part)
