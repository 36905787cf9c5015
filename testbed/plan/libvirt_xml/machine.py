"""libvirt domain XML of machines: pure functions of the resolved lab.

The metadata of every domain holds its lab, its name and the properties that it was made from, so that a later
run can detect changes (D9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from testbed.errors import ProvisioningError
from testbed.model.environment import Accelerator, Environment
from testbed.model.topology import IMAGES, Machine, MachineNic, Role, Topology
from testbed.plan.libvirt_xml.elements import (
    NAMESPACE,
    QEMU,
    WAITING,
    add_boot,
    add_common_devices,
    add_disk,
    add_mark,
    domain_of,
    mark_waiting,
    sub,
    text_of,
)
from testbed.untrusted import bounded_json

CREDENTIAL = "opt/io.systemd.credentials/testbed.identity"
GUEST_TO_SAVE = (
    "opt/testbed/guest"  # of the firmware of a node without identity: the domain of a guest without identity
)
ANONYMOUS = "anonymous"  # name of a domain whose memory is to be saved
_TRANSLATION_CACHE_MIB = 512
# Emulated CMPXCHG16B leaves an operand in the flags register; kernels crash of it now and then
# (docs/decisions/0015).
_MISTRANSLATED = ("cx16",)
# A busy emulator reads clocks late; the kernel's watchdog then replaces the TSC by a clock that traps on each
# read.
_CLOCK = ("tsc=nowatchdog",)
# The kernel takes no unsigned module, and root cannot write to its memory (VMM-03; kernel_lockdown(7)).
_LOCKED = ("lockdown=integrity",)
_NODE = (
    "apparmor=1 security=apparmor audit=1",
    f"testbed.mount=/dev/vdb:{IMAGES}:ro,nodev,nosuid,noexec",
    "testbed.mount=/dev/vdc:/var/lib/testbed/pools:noatime,nodev,nosuid,noexec",
)


@dataclass(frozen=True, slots=True)
class Hardware:
    """The virtual hardware of a machine, as far as saved memory depends on it.

    Machines of equal hardware can start from the same saved memory.

    Args:
        role: the role of the machine.
        memory: bytes.
        vcpus: virtual CPUs that it really gets.
        nics: interfaces, which are plugged in when it has started.
    """

    role: Role
    memory: int
    vcpus: int
    nics: int

    @classmethod
    def of(cls, machine: Machine, environment: Environment) -> Hardware:
        """Return the hardware of a machine."""
        return cls(machine.role, machine.memory, environment.vcpus(machine.vcpus), len(machine.nics))

    def __str__(self) -> str:
        return f"{self.role} with {self.memory // 2**20} MiB"


@dataclass(frozen=True, slots=True)
class MachineFiles:
    """Paths on the outer machine that a machine's domain refers to.

    Args:
        disks: qcow2 overlays in the order vda, vdb, vdc.
        console: file that receives the serial console from the first byte.
        direct: the machine's interfaces are macvtaps on devices of the daemon's network namespace, not taps
            of ours.

    """

    kernel: str
    initrd: str
    disks: tuple[str, ...]
    identity: str
    console: str
    direct: bool = False


def parsed(xml: str) -> ET.Element:
    """Return the domain that a node's libvirt describes.

    Raises:
        ProvisioningError: it is no XML; expat refuses entities that expand without bounds.

    """
    try:
        return ET.fromstring(xml)
    except ET.ParseError as error:
        fact, remedy = f"its XML: {error}", "run `testbed status`, then rebuild the node"
        raise ProvisioningError("a virtual machine cannot be read", fact=fact, remedy=remedy) from error


def read_mark(xml: str) -> tuple[str, str, dict[str, object]] | None:
    """Return lab, resource and properties from a domain's metadata, or None if it is not ours."""
    mark = parsed(xml).find(f"metadata/{{{NAMESPACE}}}lab")
    if mark is None:
        return None
    try:
        properties = bounded_json.read(mark.text or "{}")
    except ValueError:
        properties = {}  # a node may have changed it; it then differs from what it must be
    return mark.get("name", ""), mark.get("resource", ""), properties if isinstance(properties, dict) else {}


def interface_count(xml: str) -> int:
    """Return how many interfaces a domain has."""
    return len(parsed(xml).findall("devices/interface"))


def machine_id(uuid: str) -> str:
    """Return the systemd machine id of a machine or guest (32 hexadecimal digits)."""
    return uuid.replace("-", "")


def machine_xml(
    topology: Topology,
    machine: Machine,
    environment: Environment,
    files: MachineFiles,
    properties: Mapping[str, object],
    *,
    generation: str = "",
) -> str:
    """Return the domain of a node or the controller on the outer machine.

    Args:
        topology: the lab it belongs to.
        machine: the node or controller.
        environment: accelerator and emulator of the outer machine.
        files: disks, kernel and other files that it uses.
        properties: desired properties, recorded in the metadata.
        generation: random UUID of a machine that waits for saved memory and gets its interfaces afterwards;
            the empty string stands for a machine that boots.

    """
    hardware = Hardware.of(machine, environment)
    root = domain_of(
        _kind(environment), machine.domain(topology.name), machine.uuid, hardware.memory, hardware.vcpus
    )
    add_mark(root, topology.name, machine.name, properties)
    words = (f"systemd.hostname={machine.name}", f"systemd.machine_id={machine_id(machine.uuid)}")
    interfaces = [] if generation else [_interface(nic, direct=files.direct) for nic in machine.nics]
    devices = _machine(root, hardware, environment, files, words, interfaces)
    identity = sub(root, "sysinfo", type="fwcfg")
    sub(identity, "entry", name=CREDENTIAL, file=files.identity)
    if generation:
        _pluggable(root, devices, hardware, generation)
        _await_memory(root)
    return text_of(root)


def resumed_xml(saved: str, generation: str) -> str:
    """Return the domain of a machine that goes on where it was saved.

    Args:
        saved: the domain that it was then.
        generation: random UUID, from which its kernel learns that it is not the only one with this memory.

    """
    root = ET.fromstring(saved)
    mark_waiting(root)
    found = root.find("genid")
    if found is not None:
        found.text = generation
    if root.find(f"{{{QEMU}}}commandline") is None:
        _await_memory(root)
    return text_of(root)


def _await_memory(root: ET.Element) -> None:
    """Let QEMU wait for saved memory before anything runs."""
    arguments = sub(root, f"{{{QEMU}}}commandline")
    for word in ("-incoming", "defer"):
        sub(arguments, f"{{{QEMU}}}arg", value=word)


def waits(xml: str) -> bool:
    """Return whether a domain still waits for its memory."""
    return parsed(xml).findtext("title") == WAITING


def anonymous_xml(
    hardware: Hardware,
    environment: Environment,
    files: MachineFiles,
    generation: str,
    handed: Mapping[str, str],
) -> str:
    """Return the domain of a machine without identity and interfaces, for saving its memory.

    Args:
        generation: random UUID.
        handed: file (path) of each item that its firmware hands over, by name.

    """
    root = domain_of(_kind(environment), ANONYMOUS, generation, hardware.memory, hardware.vcpus)
    devices = _machine(root, hardware, environment, files, ("testbed.golden",), ())
    if handed:
        firmware = sub(root, "sysinfo", type="fwcfg")
        for name, file in handed.items():
            sub(firmware, "entry", name=name, file=file)
    _pluggable(root, devices, hardware, generation)
    return text_of(root)


def interface_xml(nic: MachineNic) -> str:
    """Return an interface, for a machine that has started already."""
    return text_of(_interface(nic, direct=False))


def backup_xml(disk: str, socket: str, scratch: str) -> str:
    """Return a backup of mode pull: QEMU offers a disk as it is now by NBD, under the disk's own name.

    Args:
        disk: target of the disk, such as vda; others take no part.
        socket: path of the UNIX socket that QEMU makes.
        scratch: path of a qcow2 file, which receives what the machine overwrites meanwhile.

    """
    root = ET.Element("domainbackup", mode="pull")
    sub(root, "server", transport="unix", socket=socket)
    chosen = sub(sub(root, "disks"), "disk", name=disk, backup="yes", type="file", exportname=disk)
    sub(chosen, "driver", type="qcow2")
    sub(chosen, "scratch", file=scratch)
    return text_of(root)


def _kind(environment: Environment) -> str:
    return "kvm" if environment.outer is Accelerator.KVM else "qemu"


def _machine(
    root: ET.Element, hardware: Hardware, environment: Environment, files: MachineFiles, words: Sequence[str],
    interfaces: Sequence[ET.Element],
) -> ET.Element:  # fmt: skip
    """Add a machine's kernel and hardware to a domain; return its devices."""
    own = _NODE if hardware.role is Role.NODE else ()
    add_boot(root, files.kernel, files.initrd, (*words, *_CLOCK, *_LOCKED, *own))
    features = sub(root, "features")
    sub(features, "acpi")
    if environment.outer is Accelerator.KVM:
        sub(root, "cpu", mode="host-passthrough")
    else:
        sub(sub(features, "tcg"), "tb-cache", str(_TRANSLATION_CACHE_MIB), unit="MiB")
        cpu = sub(root, "cpu", mode="custom", match="exact")
        sub(cpu, "model", "EPYC", fallback="forbid")
        for feature in ("svm", "npt") if hardware.role is Role.NODE else ():
            sub(cpu, "feature", policy="require", name=feature)
        for feature in _MISTRANSLATED:
            sub(cpu, "feature", policy="disable", name=feature)
    sub(root, "clock", offset="utc")
    sub(root, "on_crash", "destroy")
    devices = sub(root, "devices")
    sub(devices, "emulator", environment.emulator)
    for path, target in zip(files.disks, ("vda", "vdb", "vdc"), strict=False):
        add_disk(devices, path, target, "qcow2", cache="unsafe", discard="unmap")
    devices.extend(interfaces)
    serial = sub(devices, "serial", type="pty")
    sub(serial, "log", file=files.console, append="on")
    add_common_devices(devices)
    return devices


def _interface(nic: MachineNic, *, direct: bool) -> ET.Element:
    interface = ET.Element("interface", type="direct" if direct else "ethernet")
    sub(interface, "mac", address=nic.mac)
    if direct:
        sub(interface, "source", dev=nic.tap, mode="passthrough")
    else:
        sub(interface, "target", dev=nic.tap, managed="no")
    sub(interface, "model", type="virtio")
    return interface


def _pluggable(root: ET.Element, devices: ET.Element, hardware: Hardware, generation: str) -> None:
    """Give a machine a port for every device that it has or will get, and a generation.

    The kernel notices when the generation changes.
    """
    sub(root, "genid", generation)
    ports = hardware.nics + len(devices.findall("disk")) + len(devices.findall("rng"))
    sub(devices, "controller", type="pci", index="0", model="pcie-root")
    for index in range(1, ports + 1):
        sub(devices, "controller", type="pci", index=str(index), model="pcie-root-port")
