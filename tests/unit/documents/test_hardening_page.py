"""The page of hardened values has exactly the values that images and domains set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from docs.tools.catalogue import controls
from testbed.plan.libvirt_xml import machine
from testbed.plan.libvirt_xml.guest import anonymous_guest_xml

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/reference/hardening.md"
ROLES = ROOT / "playbooks/roles"
DOMAIN = "Domain of a guest"


def _lines(file: str) -> list[str]:
    """Return the lines of a file of the playbooks, each list in brackets as one line."""
    text = (ROLES / file).read_text()
    text = re.sub(r"\[\n([^]]*)]", lambda found: f"[ {' '.join(found[1].split())} ]", text)
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _inner(file: str) -> list[str]:
    """Return the lines of a file but those that begin and end a section."""
    return [line.strip() for line in _lines(file) if not line.endswith(("{", "}", "]"))]


def _values(file: str) -> list[str]:
    """Return the lines of a file of a unit but the names of its sections."""
    return [line for line in _lines(file) if not line.startswith("[")]


def _mounts() -> list[str]:
    words = " ".join(machine._NODE).split()
    return [word.partition(":")[2] for word in words if word.startswith("testbed.mount=")]


SOURCES: Mapping[str, Callable[[], list[str]]] = {
    "Kernel of every machine": lambda: _lines("base/files/sysctl.conf"),
    "Modules that accounts can ask for": lambda: (
        _lines("base/files/modprobe.conf") + _lines("switch/files/modprobe.conf")
    ),
    "QEMU under libvirt": lambda: _lines("hypervisor/files/qemu.conf"),
    "AppArmor rules that all workers share": lambda: _lines("hypervisor/files/libvirt-qemu"),
    "AppArmor rules of virtlogd": lambda: _inner("hypervisor/files/virtlogd.apparmor"),
    "Unit of virtlogd": lambda: _inner("hypervisor/files/virtlogd.conf"),
    "Unit of libvirtd": lambda: _values("hypervisor/files/libvirtd.conf"),
    "Mounts of a node": _mounts,
    "Logs of consoles": lambda: _lines("hypervisor/files/virtlogd-limits.conf"),
    "Slice of all guests": lambda: _values("hypervisor/files/machine-slice.conf"),
    "Control group of each guest": lambda: _values("hypervisor/files/machine-scope.conf"),
    "sshd of every machine": lambda: _lines("access/files/sshd_config"),
}


def _tables() -> dict[str, list[list[str]]]:
    """Return the rows of each section's table: value, reason, source, control."""
    found: dict[str, list[list[str]]] = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        rows = [line for line in text.splitlines() if line.startswith("| `")]
        cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
        found[title] = [[cell.strip().replace("\\|", "|") for cell in row] for row in cells]
    return found


@pytest.mark.parametrize("section", SOURCES)
def test_a_table_has_every_value_of_its_file_and_no_other(section: str) -> None:
    shown = Counter(row[0].strip("`") for row in _tables()[section])
    assert shown == Counter(SOURCES[section]())


def test_every_path_of_the_table_of_domains_is_in_the_domain_of_a_guest() -> None:
    rows, domain = _tables()[DOMAIN], ET.fromstring(anonymous_guest_xml())
    assert len(rows) > 5
    assert [row[0] for row in rows if domain.find(row[0].strip("`")) is None] == []


def test_every_value_has_a_reason_a_source_and_a_control_that_exists() -> None:
    known = {*controls((ROOT / "docs/controls.md").read_text()), "none"}
    rows = [row for table in _tables().values() for row in table]
    assert [row for row in rows if len(row) != 4 or not all(row)] == []
    assert {row[3] for row in rows} <= known
