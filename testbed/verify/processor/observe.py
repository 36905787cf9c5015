"""Looks at the processors of guests: libvirt's XML, the live QEMU, and the guest itself (CMP-04)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from testbed import payload
from testbed.drivers.hypervisor.connection import Domain, Hypervisor
from testbed.errors import InstrumentError
from testbed.hosts.rules import UnseenError
from testbed.model.topology import Guest
from testbed.untrusted import bounded_json
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.processor import rules

_PROGRAM = Path(payload.__file__).parent / "virtual_cpu.py"
_TIMEOUT = 120.0  # seconds
_MOST = 64  # processors of a guest; a topology declares no more
_LOAD = "modprobe -a cpuid msr || exit 1; exec /usr/bin/python3 -IS -"


@dataclass(frozen=True, slots=True)
class DomainView:
    """The processors of one domain.

    Args:
        xml: libvirt's live XML.
        words: CPUID of each processor, as QEMU gives it.
        counting: whether QEMU gives any of them performance counters.
    """

    name: str
    xml: str
    words: tuple[rules.Words, ...]
    counting: bool


def domains(fleet: Fleet, node: MachineView) -> list[DomainView]:
    """Return the processors of every domain of a node.

    Raises:
        InstrumentError: a domain of the topology is not there, or QEMU does not answer.
        UnseenError: QEMU's answer has another form.
    """
    hypervisor = fleet.lab.nodes[node.name].hypervisor
    found = []
    for domain in hypervisor.domains():
        started = time.time()
        answer = _ask(hypervisor, domain)
        fleet.evidence.record(node.name, "processors", f"XML and monitor of {domain.name}", answer, started)
        words = tuple(rules.of_qemu(item["feature-words"]) for item in answer)
        found.append(DomainView(domain.name, domain.xml, words, any(item["pmu"] for item in answer)))
    missing = {guest.domain for guest in fleet.topology.guests_on(node.name)} - {view.name for view in found}
    if missing:
        what = f"the processors of {', '.join(sorted(missing))} cannot be read"
        raise InstrumentError(what, fact="libvirt does not know them", remedy="run `testbed up`")
    return found


def _ask(hypervisor: Hypervisor, domain: Domain) -> list[dict[str, object]]:
    """Return two properties of each processor of a domain, as QEMU answers.

    Raises:
        UnseenError: QEMU names no processor, or more than are looked at.
    """
    cpus = hypervisor.ask_monitor(domain.name, "query-cpus-fast", {})
    if not isinstance(cpus, list) or not cpus or not all(isinstance(cpu, dict) for cpu in cpus):
        raise UnseenError(f"QEMU names no processor of {domain.name}")
    if len(cpus) > _MOST:
        raise UnseenError(f"QEMU names {len(cpus)} processors of {domain.name}, and {_MOST} can be looked at")
    return [
        {
            name: hypervisor.ask_monitor(
                domain.name, "qom-get", {"path": str(cpu.get("qom-path")), "property": name}
            )
            for name in ("feature-words", "pmu")
        }
        for cpu in cpus
    ]


def guest(fleet: Fleet, guest: Guest) -> rules.Shown:
    """Return what a guest shows of its processors.

    Raises:
        InstrumentError: it does not answer.
        UnseenError: its answer has another form.
    """
    request = {"read": rules.READ, "write": rules.WRITE}
    program = f"{_PROGRAM.read_text()}\nimport json\nprint(json.dumps(collect({request!r})))\n"
    output = fleet.in_guest(guest, ["/bin/sh", "-c", _LOAD], program.encode(), _TIMEOUT)
    try:
        return rules.of_guest(bounded_json.read(output))
    except ValueError as error:
        raise UnseenError(f"the processors of {guest.label}: {error}") from error
