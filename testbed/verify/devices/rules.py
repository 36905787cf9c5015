"""Rules about devices of guests: each returns what opens a wall, as texts. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from testbed.hosts.rules import UnseenError
from testbed.model.topology import Guest, Topology
from testbed.verify.devices.declared import Entries, Entry

# Paths of nodes that no guest has: a guest that reads one knows how its node is set up.
_PATHS = ("/var/lib/testbed", "/var/lib/libvirt", "/run/libvirt", "/var/log/libvirt", "/etc/libvirt")
_NEEDED = ("SMBIOS", "ACPI FACP", "ACPI DSDT", "fw_cfg etc/e820", "kernel command line")
# Words in the firmware and the kernel's command line of each guest.
_USUAL = frozenset(
    {
        "acpi", "bin", "boot", "console", "dev", "disk", "etc", "genroms", "hostname", "kernel",
        "kvm", "lastbus", "loglevel", "machine", "network", "pci", "pvh", "quiet", "resources",
        "rom", "root", "rsdp", "scsi", "serial", "smbios", "status", "systemd", "tables", "testbed",
        "vda",
    }
)  # fmt: skip
_SHORTEST = 3  # letters of a name that is looked for
_SHOWN = 160  # characters of an entry that a text shows


def different(wanted: Entries, shown: Entries) -> list[str]:
    """Return the devices that a guest has and must not have, and those that it lacks (DEV-01).

    Args:
        wanted: by source, from the topology.
        shown: by source; a part of the sources.
    """
    found = []
    for source, entries in shown.items():
        found += [
            f"{source} shows {_told(entry)}, which is not declared" for entry in entries - wanted[source]
        ]
        found += [f"{source} does not show {_told(entry)}" for entry in wanted[source] - entries]
    return found


def foreign(classes: Iterable[Entries], shown: Entries) -> list[str]:
    """Return the devices of an unknown guest that are of no known guest's kinds (DEV-01).

    Args:
        classes: what the guests of the topology must show.
        shown: what this one shows.
    """
    known = list(classes)
    found = []
    for source, entries in shown.items():
        kinds = {kind for wanted in known for kind, _ in wanted[source]}
        strange = sorted({entry for entry in entries if entry[0] not in kinds})
        found += [f"{source} shows {_told(entry)}, which no guest may have" for entry in strange]
    return found


def require_shown(wanted: Entries, shown: Entries) -> None:
    """Require that each source which must show something shows anything at all.

    Args:
        wanted: by source, from the topology.
        shown: by source; a part of the sources.

    Raises:
        UnseenError: a source is empty.
    """
    empty = [source for source, entries in shown.items() if wanted[source] and not entries]
    if empty:
        raise UnseenError(f"{', '.join(empty)} {'show' if len(empty) > 1 else 'shows'} nothing")


@dataclass(frozen=True, slots=True)
class Secrets:
    """Texts and numbers that must not reach a guest.

    Args:
        names: of its node and of other tenants. They can occur by chance in machine code.
        marks: labels, paths and numbers, which cannot.
    """

    names: tuple[bytes, ...]
    marks: tuple[bytes, ...]


def identifiers(topology: Topology, guest: Guest) -> Secrets:
    """Return what a guest must not read of its node and of other tenants.

    Names that the firmware of each guest contains, and those with fewer than three letters, are not looked
    for: they would be found everywhere. The labels of such a tenant's guests still are.
    """
    node = topology.machine(guest.node)
    others = [other for other in topology.guests if other.tenant != guest.tenant]
    names = {node.name, *(other.tenant for other in others)} - {guest.name, guest.tenant} - _USUAL
    labels = {other.label for other in others}
    numbers = [UUID(node.uuid), *(UUID(other.uuid) for other in others)]
    texts = [*sorted(labels), *(form for number in numbers for form in (str(number), number.hex)), *_PATHS]
    binary = [form for number in numbers for form in (number.bytes, number.bytes_le)]
    return Secrets(
        tuple(name.encode() for name in sorted(names) if len(name) >= _SHORTEST),
        (*(text.encode() for text in texts), *binary),
    )


def leaked(firmware: Mapping[str, bytes], secrets: Secrets) -> list[str]:
    """Return which tables of a guest's firmware name its node or another tenant (DEV-01).

    Args:
        firmware: SMBIOS, ACPI tables and blobs of fw_cfg, by name. ACPI tables are machine code.

    Raises:
        UnseenError: a table that each guest has was not read.
    """
    missing = [name for name in _NEEDED if not firmware.get(name)]
    if missing:
        raise UnseenError(f"not read: {', '.join(missing)}")
    return [
        f"its {name} contains {word.decode() if word.isascii() else f'the number {word.hex()}'}"
        for name, data in firmware.items()
        for word in (*secrets.marks, *(() if name.startswith("ACPI") else secrets.names))
        if re.search(
            rb"(?<![\w-])" + re.escape(word) + rb"(?![\w-])" if word.isascii() else re.escape(word), data
        )
    ]


def _told(entry: Entry) -> str:
    kind, detail = entry
    return f"{kind} {detail}".strip()[:_SHOWN]
