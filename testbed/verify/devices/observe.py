"""Looks at the devices of guests: libvirt's XML, the live QEMU, and the guest itself (DEV-01, DEV-04)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from testbed.drivers.hypervisor.connection import Domain, Hypervisor
from testbed.errors import InstrumentError
from testbed.model.topology import Guest
from testbed.untrusted import bounded_json
from testbed.verify.devices import seen
from testbed.verify.devices.declared import Entries
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses.worker_processes import observed

_PROGRAM = Path(__file__).parents[2] / "payload/guest_devices.py"
_TIMEOUT = 120.0  # seconds
_FIRMWARE, _LOOPBACK = "qemu_fw_cfg", "vsock_loopback"  # modules of a guest's kernel
# Contexts and ports of vsock that a guest tries: hypervisor, host, and as many siblings as a node has.
CONTEXTS, PORTS = (0, 2, *range(3, 67)), (22, 1024, 9999)
QUESTIONS: dict[str, tuple[str, dict[str, object]]] = {
    "pci": ("query-pci", {}),
    **{
        name: ("qom-list", {"path": path})
        for name, path in (
            ("peripheral", "/machine/peripheral"),
            ("peripheral-anon", "/machine/peripheral-anon"),
            ("unattached", "/machine/unattached"),
            ("objects", "/objects"),
        )
    },
    "chardevs": ("query-chardev", {}),
    "networks": ("human-monitor-command", {"command-line": "info network"}),
    "images": ("query-named-block-nodes", {"flat": True}),
    "disks": ("query-block", {}),
}


@dataclass(frozen=True, slots=True)
class DomainView:
    """One domain of a node.

    Args:
        xml: libvirt's live XML.
        answers: QEMU's, by the names of `QUESTIONS`.
        entries: its devices, by source.
    """

    name: str
    xml: str
    answers: dict[str, object]
    entries: Entries


def domains(fleet: Fleet, node: MachineView) -> tuple[DomainView, ...]:
    """Return every domain of a node as libvirt, QEMU and the kernel show it; shared in a phase.

    Raises:
        InstrumentError: a domain of the topology is not there, or an answer is missing or has another form.
    """
    return fleet.observe_once(_shared(node), lambda: _domains(fleet, node))


def domains_again(fleet: Fleet, node: MachineView) -> tuple[DomainView, ...]:
    """Look at the domains of a node once more, after the look that checks of a phase share.

    Raises:
        InstrumentError: see `domains`.
    """
    fleet.shared.pop(_shared(node), None)
    return domains(fleet, node)


def _shared(node: MachineView) -> str:
    return f"devices on {node.name}"


def guests(fleet: Fleet, node: MachineView) -> dict[Guest, seen.GuestView]:
    """Return what each guest of a node shows of itself; checks of a phase share one look.

    Raises:
        InstrumentError: a guest does not answer, or answers in another form.
    """
    return fleet.observe_once(
        f"devices in guests of {node.name}",
        lambda: {guest: _guest(fleet, guest) for guest in fleet.topology.guests_on(node.name)},
    )


def _domains(fleet: Fleet, node: MachineView) -> tuple[DomainView, ...]:
    words = {worker.name: worker.arguments for worker in observed(fleet, node).workers}
    hypervisor = fleet.lab.nodes[node.name].hypervisor
    found = []
    for domain in hypervisor.domains():
        started = time.time()
        answers = _ask(hypervisor, domain)
        fleet.evidence.record(
            node.name, "devices", f"XML and monitor of {domain.name}", {"xml": domain.xml, **answers}, started
        )
        if not words.get(domain.name):
            raise _unseen(domain.name, "its command line is not known")
        try:
            entries = {
                **seen.of_libvirt(domain.xml),
                **seen.of_qemu(answers),
                **seen.of_command_line(words[domain.name]),
            }
        except ValueError as error:
            raise _unseen(domain.name, str(error)) from error
        found.append(DomainView(domain.name, domain.xml, answers, entries))
    missing = {guest.domain for guest in fleet.topology.guests_on(node.name)} - {view.name for view in found}
    if missing:
        raise _unseen(", ".join(sorted(missing)), "libvirt does not know them")
    return tuple(found)


def _ask(hypervisor: Hypervisor, domain: Domain) -> dict[str, object]:
    return {
        name: hypervisor.ask_monitor(domain.name, command, arguments)
        for name, (command, arguments) in QUESTIONS.items()
    }


def _guest(fleet: Fleet, guest: Guest) -> seen.GuestView:
    ports = PORTS if fleet.needs("DEV-04") else ()
    request = {"contexts": [*CONTEXTS], "ports": [*ports]}
    program = f"{_PROGRAM.read_text()}\nimport json\nprint(json.dumps(collect({request!r})))\n"
    modules = [_FIRMWARE, *([_LOOPBACK] if ports else [])]
    load = "".join(f"[ -e /sys/module/{name} ] || modprobe -q {name}; " for name in modules)
    argv = ["/bin/sh", "-c", f"{load}exec /usr/bin/python3 -IS -"]
    output = fleet.in_guest(guest, argv, program.encode(), _TIMEOUT)
    try:
        return seen.GuestView(bounded_json.read(output))
    except ValueError as error:
        raise _unseen(guest.label, str(error)) from error


def _unseen(name: str, fact: str) -> InstrumentError:
    return InstrumentError(f"the devices of {name} cannot be read", fact=fact, remedy="repeat the check")
