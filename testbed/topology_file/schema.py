"""The topology file as pydantic models.

Unknown keys are refused. Names are the keys of mappings, a flow is one line. Values with units are in
`testbed.topology_file.quantities`, networks in `testbed.topology_file.address_ranges`, rules about references
between parts of a file in `testbed.topology_file.validation`.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)

from testbed.topology_file.address_ranges import Network, TenantRanges
from testbed.topology_file.quantities import (
    GIB,
    MIB,
    Bandwidth,
    DiskBandwidth,
    DiskOperations,
    GuestMemory,
    MachineMemory,
    MemoryOverhead,
    PacketRate,
    Percentage,
    VolumeSize,
    parse_volume_size,
)
from testbed.topology_file.yaml_source import shown

MAX_INTERFACES = 8  # of a guest: a q35 machine has slots for them beside its volumes
GUEST_MEMORY = 224 * MIB  # the default of a topology file
_NAME = r"^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$"
NAME_RULE = (
    "start with a lower-case letter; then up to 19 lower-case letters, digits or hyphens, the last no hyphen"
)
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_FLOW = re.compile(r"^\s*(?P<source>\S+)\s*->\s*(?P<target>\S+)\s+(?P<service>\S+)\s*$")


def is_name(text: str) -> bool:
    """Return whether a text is a valid name of a lab, machine, tenant, guest, network or volume."""
    return re.fullmatch(_NAME, text) is not None


Name = Annotated[str, Field(pattern=_NAME)]
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
    """Limits of a guest on resources shared with other guests: of each interface, and of the whole guest."""

    bandwidth: Bandwidth | None = Field(default=None, description="what the guest may send, with unit")
    packets: PacketRate | None = Field(
        default=None, description="packets that the guest may send, in thousands per second"
    )
    connections: int | None = Field(
        default=None, strict=True, ge=16, le=65536, description="connections that the node tracks for it"
    )
    cpu: Percentage | None = Field(
        default=None, description="time of each virtual CPU that the guest may use, all of QEMU included"
    )
    cpu_weight: int | None = Field(
        default=None, strict=True, ge=1, le=10000, description="share of the CPU where guests compete"
    )
    memory_overhead: MemoryOverhead | None = Field(
        default=None, description="memory that QEMU may use beside the guest's RAM, with unit"
    )
    disk_operations: DiskOperations | None = Field(
        default=None, description="operations per second on all disks of the guest together"
    )
    disk_bandwidth: DiskBandwidth | None = Field(
        default=None, description="what the guest may read and write, all disks together, with unit"
    )


def _file_name(value: object) -> object:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST or not value.isprintable():
        msg = f"{shown(value)} is not the name of a file; write up to {_LONGEST} printable characters"
        raise ValueError(msg)
    return value


_LONGEST = 255  # characters of a file's name
FileName = Annotated[
    str,
    BeforeValidator(_file_name),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": _LONGEST}),
]


class VolumeSpec(_Strict):
    """An extra disk of a guest. A size alone, such as ``64 MiB``, stands for a volume without an image."""

    size: VolumeSize = Field(description="size of the volume, with unit")
    image: FileName | None = Field(
        default=None,
        description="file whose content the new volume begins with, relative to the topology file",
    )
    format: Literal["raw", "qcow2"] | None = Field(
        default=None, description="format of the image; it follows from the ends `.raw` and `.qcow2`"
    )

    @property
    def form(self) -> str:
        """Format of the image as it is declared; it is never found out from the content (STO-02)."""
        return self.format or _FORMS.get((self.image or "").rpartition(".")[2], "")


_FORMS = {"raw": "raw", "qcow2": "qcow2"}


def _volume(value: object) -> object:
    """Read a size alone as a volume without an image."""
    return value if isinstance(value, dict | VolumeSpec) else VolumeSpec(size=_text(value))


def _text(value: object) -> int:
    """Return a size that has the form of a volume's; `VolumeSpec` reads it once more."""
    parse_volume_size(value)
    return value  # type: ignore[return-value]


VolumeEntry = Annotated[
    VolumeSpec,
    BeforeValidator(_volume),
    WithJsonSchema(
        {
            "anyOf": [
                TypeAdapter(VolumeSize).json_schema(),
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["size"],
                    "properties": {
                        "size": TypeAdapter(VolumeSize).json_schema(),
                        "image": TypeAdapter(FileName).json_schema(),
                        "format": {"enum": ["raw", "qcow2"]},
                    },
                },
            ]
        }
    ),
]


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
    volumes: dict[Name, VolumeEntry] = Field(
        default_factory=dict,
        max_length=15,
        description="extra volumes: name and size with unit, or a mapping with an image",
    )
    limits: LimitsSpec = Field(default=LimitsSpec(), description="what is missing comes from the tenant")

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
        default=LimitsSpec(), description="of each guest, where the guest has none of its own"
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
