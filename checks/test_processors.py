"""Virtual processors of guests, as libvirt, QEMU and the guests show them, and what they refuse."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from checks.support.breaches import needs_guest, shell_breach
from checks.support.device_breaches import booted_breach, lodger_breach, with_option
from checks.support.judging import judging
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.processor import observe, rules

_SHOWN = 6
_IGNORED = "/sys/module/kvm/parameters/ignore_msrs"


def _nested(root: ET.Element, *_: str) -> None:
    """Give the guest of a domain what its node needs to run guests."""
    processor = root.find("cpu")
    assert processor is not None
    for feature in processor.findall("feature"):
        processor.remove(feature)


def _counting(root: ET.Element) -> None:
    """Give the guest of a domain performance counters."""
    counters = root.find("features/pmu")
    assert counters is not None
    counters.set("state", "on")


@check(
    id="CMP-04",
    objective="Every virtual processor has what is declared: it runs no guests and counts no events",
    severity="medium",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        shell_breach(
            "the hypervisor answers for registers that do not exist",
            opens=lambda _: f"echo 1 > {_IGNORED}",
            closes=lambda _: f"echo 0 > {_IGNORED}",
            shows=lambda _: f"grep -q Y {_IGNORED}",
        ),
        lodger_breach("libvirt gives a guest performance counters", _counting),
        lodger_breach(
            "QEMU gives a guest the processor of its node, of which libvirt does not know",
            with_option("-cpu", "host"),
        ),
        booted_breach(
            "a guest can run guests", _nested, lambda xml: not ET.fromstring(xml).findall("cpu/feature")
        ),
    ),
)
def test_processors_are_declared(fleet: Fleet, node: MachineView) -> None:
    guests = fleet.topology.guests_on(node.name)
    declared = guest_xml(fleet.topology, guests[0], {})
    faults = []
    with judging(f"the processors of guests on {node.name}"):
        views = {view.name: view for view in observe.domains(fleet, node)}
        for view in views.values():
            found = rules.undeclared(declared, view.xml)
            found += [f"QEMU says {text}" for words in view.words for text in rules.forbidden(words)]
            found += ["QEMU gives it performance counters"] if view.counting else []
            faults += [f"{view.name}: {text}" for text in found]
        for guest in guests:
            shown = observe.guest(fleet, guest)
            found = rules.answered(shown.attempts)
            for given, leaves in zip(views[guest.domain].words, shown.cpus.values(), strict=True):
                words = rules.words(leaves)
                found += rules.forbidden(words) + rules.different(given, words)
            faults += [f"{guest.domain}: {text}" for text in found]
    assert not faults, f"{len(faults)} differences: {'; '.join(faults[:_SHOWN])}"
