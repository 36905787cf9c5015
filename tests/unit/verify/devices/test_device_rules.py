"""Devices of guests, as recorded on a real node: each that is not declared is a fault (DEV-01)."""

from __future__ import annotations

import json
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from testbed.plan.libvirt_xml.elements import QEMU
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.verify.devices import declared, rules, seen
from tests.shapes import lab_of

LAB = lab_of("one-node")
GUEST = LAB.guests[0]
# Answers of libvirt, QEMU, the kernel and the guest red/web of topologies/one-node.yaml.
RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
WANTED = declared.entries(guest_xml(LAB, GUEST, {}))


def different(**changed: Any) -> list[str]:
    """Return the faults of the recorded guest with other answers."""
    found = {**RECORDED, **changed}
    shown = {
        **seen.of_libvirt(found["xml"]),
        **seen.of_qemu(found["answers"]),
        **seen.of_command_line(found["arguments"]),
        **seen.GuestView(found["guest"]).entries,
    }
    rules.require_shown(WANTED, shown)
    return rules.different(WANTED, shown)


def answered(name: str, *more: object, without: str = "") -> dict[str, Any]:
    """Return QEMU's recorded answers with more entries in one of them, and without those of a kind."""
    answers = deepcopy(RECORDED["answers"])
    answers[name] = [item for item in answers[name] if not without or without not in str(item)] + list(more)
    return {"answers": answers}


def told_by_guest(**changed: Any) -> dict[str, Any]:
    return {"guest": {**RECORDED["guest"], **changed}}


def test_a_real_guest_has_what_its_topology_declares() -> None:
    assert different() == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "</devices>",
            "<shmem name='x'><model type='ivshmem-plain'/></shmem></devices>",
            "shows shmem ivshmem",
        ),
        ("</devices>", "<hostdev type='pci' mode='subsystem'/></devices>", "shows hostdev pci"),
        ("</devices>", "<channel type='null'><target name='x'/></channel></devices>", "shows channel null"),
        ("type='usb' index='0' model='none'", "type='usb' index='0' model='qemu-xhci'", "usb qemu-xhci"),
        ("<driver name='qemu' type='raw'", "<shareable/><driver name='qemu' type='raw'", "<shareable>"),
        ("<driver name='qemu' type='raw'", "<driver name='qemu' type='qcow2'", 'type="qcow2"'),
        ("dev='vdb' bus='virtio'", "dev='vdb' bus='sata'", "shows disk file"),
        ("<target dev='tap", "<target dev='other", "shows interface bridge"),
        ("model='itco' action='reset'", "model='itco' action='none'", "shows watchdog"),
        ("</os>", "<smbios mode='host'/></os>", "shows smbios"),
        ("<features>", "<sysinfo type='smbios'/><features>", "shows sysinfo smbios"),
        ("<features>", "<iothreads>1</iothreads><features>", "shows iothreads"),
        ("<nosharepages/>", "<nosharepages/><hugepages/>", "shows memoryBacking"),
        ("<nosharepages/>", "", "does not show memoryBacking"),
        ("/dev/urandom", "/dev/hwrng", "shows rng virtio"),
    ],
)
def test_every_part_of_libvirts_xml_is_compared(old: str, new: str, told: str) -> None:
    assert old in RECORDED["xml"]
    faults = different(xml=RECORDED["xml"].replace(old, new, 1))
    assert any(told in fault and "libvirt's XML" in fault for fault in faults), faults


def test_an_option_for_qemu_in_the_xml_is_a_fault() -> None:
    line = f"<q:commandline xmlns:q='{QEMU}'><q:arg value='-s'/></q:commandline>"
    faults = different(xml=RECORDED["xml"].replace("</domain>", f"{line}</domain>"))
    assert any("commandline" in fault for fault in faults)


@pytest.mark.parametrize(
    ("name", "entry", "told"),
    [
        ("peripheral", {"name": "x", "type": "child<ivshmem-plain>"}, "devices shows ivshmem-plain"),
        ("peripheral", {"name": "x", "type": "child<virtserialport>"}, "devices shows virtserialport"),
        ("peripheral-anon", {"name": "device[0]", "type": "child<isa-debugcon>"}, "shows isa-debugcon"),
        ("peripheral-anon", {"name": "device[0]", "type": "child<isa-serial>"}, "isa-serial without a name"),
        ("unattached", {"name": "device[99]", "type": "child<isa-fdc>"}, "chipset shows isa-fdc"),
        ("objects", {"name": "x", "type": "child<memory-backend-file>"}, "shows memory-backend-file x"),
        ("objects", {"name": "pc.ram2", "type": "child<memory-backend-ram>"}, "memory-backend-ram pc.ram2"),
        ("chardevs", {"label": "x", "filename": "null"}, "character devices shows null x"),
        ("chardevs", {"label": "charserial1", "filename": "pty:/dev/pts/9"}, "shows pty charserial1"),
        ("images", {"drv": "file", "image": {"filename": "/etc/shadow"}}, "images shows file /etc/shadow"),
        ("images", {"drv": "nbd", "image": {"filename": "nbd://x/y"}}, "images shows other nbd://x/y"),
    ],
)
def test_what_only_qemu_has_is_a_fault(name: str, entry: object, told: str) -> None:
    faults = different(**answered(name, entry))
    assert len(faults) == 1
    assert told in faults[0]
    assert "not declared" in faults[0]


def test_a_network_that_only_qemu_has_is_a_fault() -> None:
    answers = deepcopy(RECORDED["answers"])
    answers["networks"] += "breach: index=0,type=user,net=10.0.2.0,restrict=off\r\n"
    assert different(answers=answers) == ["QEMU's networks shows user breach, which is not declared"]


@pytest.mark.parametrize(("function", "identity"), [(0, 0x1110), (7, 0x1000)])
def test_every_function_of_every_slot_is_compared(function: int, identity: int) -> None:
    device = {"bus": 0, "slot": 1, "function": function, "id": {"vendor": 0x1AF4, "device": identity}}
    buses = deepcopy(RECORDED["answers"]["pci"])
    buses[0]["devices"].append(device)
    (fault,) = different(answers={**RECORDED["answers"], "pci": buses})
    assert f"1af4:{identity:04x} 00:01.{function}" in fault


@pytest.mark.parametrize("option", ["-fw_cfg", "-smbios", "-debugcon", "-gdb", "-usb", "-virtfs", "-s"])
def test_an_option_that_no_guest_needs_is_a_fault(option: str) -> None:
    (fault,) = different(arguments=[*RECORDED["arguments"], option, "value"])
    assert f"command line shows {option}" in fault


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"pci": [*RECORDED["guest"]["pci"], ["00:1e.0", "1af4", "1110"]]},
            "PCI bus shows 1af4:1110 00:1e.0",
        ),
        ({"virtio": [*RECORDED["guest"]["virtio"], 19]}, "virtio devices shows 19"),
        ({"ports": [*RECORDED["guest"]["ports"], "x"]}, "virtio ports shows x"),
    ],
)
def test_what_the_guest_finds_is_compared(changed: dict[str, Any], told: str) -> None:
    (fault,) = different(**told_by_guest(**changed))
    assert told in fault


def test_a_device_that_is_missing_is_a_fault() -> None:
    faults = different(**answered("peripheral", without="virtio-rng-pci"))
    assert faults == ["QEMU's devices does not show virtio-rng-pci"]


@pytest.mark.parametrize("changed", [told_by_guest(pci=[]), answered("peripheral", without="child<")])
def test_a_source_that_shows_nothing_is_not_judged(changed: dict[str, Any]) -> None:
    with pytest.raises(rules.UnseenError, match="nothing"):
        different(**changed)


@pytest.mark.parametrize("name", RECORDED["answers"])
def test_an_answer_of_another_form_is_refused(name: str) -> None:
    answers = {**RECORDED["answers"], name: {"x": 1}}
    if name == "networks":
        with pytest.raises(rules.UnseenError, match="networks shows nothing"):
            different(answers=answers)
    elif name != "disks":  # judged by STO-02
        with pytest.raises(ValueError, match=r"type|valid"):
            seen.of_qemu(answers)
    with pytest.raises(ValueError, match="XML"):
        seen.of_libvirt("<domain>")
    with pytest.raises(ValueError, match="extra"):
        seen.GuestView({**RECORDED["guest"], "more": 1})


@pytest.mark.parametrize("name", ["command_line", "smbios"])
def test_a_guests_words_have_an_end(name: str) -> None:
    assert seen.GuestView({**RECORDED["guest"], name: "ff" * 15_000})
    with pytest.raises(ValueError, match="at most 30000"):
        seen.GuestView({**RECORDED["guest"], name: "ff" * 15_000 + "f"})


def test_an_unknown_guest_may_have_the_kinds_of_known_ones_only() -> None:
    known = [declared.entries(guest_xml(LAB, guest, {})) for guest in LAB.guests]
    assert rules.foreign(known, declared.entries(guest_xml(LAB, GUEST, {}))) == []
    shown: declared.Entries = {
        declared.PERIPHERALS: Counter([("virtio-rng-pci", ""), ("qemu-xhci", "")]),
        declared.PCI: Counter([("1af4:1005", "00:1d.0"), ("1b36:000d", "00:1e.0")]),
    }
    assert [fault.split(",")[0] for fault in rules.foreign(known, shown)] == [
        "QEMU's devices shows qemu-xhci", "QEMU's PCI bus shows 1b36:000d 00:1e.0",
    ]  # fmt: skip


FIRMWARE = {
    "SMBIOS": b"QEMU\0", "ACPI FACP": b"FACP", "ACPI DSDT": b"DSDT", "fw_cfg etc/e820": b"\1",
    "kernel command line": b"systemd.hostname=web\0",
}  # fmt: skip


def test_the_recorded_guests_firmware_names_nothing_of_its_node() -> None:
    secret = rules.identifiers(LAB, GUEST)
    assert rules.leaked(seen.GuestView(RECORDED["guest"]).firmware, secret) == []


@pytest.mark.parametrize(
    ("table", "data", "told"),
    [
        ("SMBIOS", b"QEMU\0node\0", "SMBIOS contains node"),
        ("ACPI SSDT", b"\x08/var/lib/testbed/x", "ACPI SSDT contains /var/lib/testbed"),
        ("fw_cfg opt/x", b"blue/web", "contains blue"),
        ("SMBIOS", b"\0" + UUID(LAB.machine("node").uuid).bytes_le, "contains the number"),
        ("fw_cfg opt/x", LAB.machine("node").uuid.replace("-", "").encode(), "contains"),
        ("fw_cfg opt/x", LAB.guests[-1].uuid.encode(), f"contains {LAB.guests[-1].uuid}"),
    ],
)
def test_firmware_that_names_the_node_or_another_tenant_is_a_fault(
    table: str, data: bytes, told: str
) -> None:
    faults = rules.leaked({**FIRMWARE, table: data}, rules.identifiers(LAB, GUEST))
    assert any(told in fault for fault in faults), faults


@pytest.mark.parametrize("data", [b"nodes", b"node-x", b"anode", b"red", b"web"])
def test_another_word_and_the_guests_own_names_are_none(data: bytes) -> None:
    assert rules.leaked({**FIRMWARE, "SMBIOS": data}, rules.identifiers(LAB, GUEST)) == []


@pytest.mark.parametrize("tenant", ["a", "ap", "dev", "disk", "root", "hij"])
def test_the_name_of_a_tenant_may_be_a_word_of_every_guests_firmware(tenant: str) -> None:
    """Tenants called "dev" or "a" are no finding; the labels of their guests are."""
    other = replace(next(guest for guest in LAB.guests if guest.tenant != GUEST.tenant), tenant=tenant)
    topology: Any = SimpleNamespace(machine=LAB.machine, guests=(GUEST, other))
    secrets = rules.identifiers(topology, GUEST)
    assert rules.leaked(seen.GuestView(RECORDED["guest"]).firmware, secrets) == []
    (fault,) = rules.leaked({**FIRMWARE, "ACPI SSDT": f"\0{other.label}\0".encode()}, secrets)
    assert f"contains {tenant}/" in fault


@pytest.mark.parametrize("name", FIRMWARE)
def test_firmware_that_was_not_read_is_not_judged(name: str) -> None:
    with pytest.raises(rules.UnseenError, match=f"not read: {name}"):
        rules.leaked({**FIRMWARE, name: b""}, rules.Secrets((), ()))
