"""The ephemeral guest: its archive and its resources."""

from __future__ import annotations

import re
import subprocess
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

from testbed.model.resolve import resolve
from testbed.plan.libvirt_xml.machine import read_mark
from testbed.topology_file.loader import read
from testbed.verify.attackers.ephemeral_guest import (
    _PROGRAM,
    NAME,
    SECOND_TAP,
    Throwaway,
    _xml,
    cpio,
    second_interface,
)

TOPOLOGY = Path(__file__).parents[4] / "topologies/one-node.yaml"


def test_an_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    files = {"init": b"#!/bin/sh\nexit 0\n", "attack.py": b"x" * 1001}
    subprocess.run(["cpio", "--quiet", "-id"], input=cpio(files), cwd=tmp_path, check=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert all(path.stat().st_mode & 0o777 == 0o755 for path in tmp_path.iterdir())


def _made() -> tuple[Any, Throwaway]:
    topology = resolve(read(TOPOLOGY).spec)
    node = SimpleNamespace(topology=topology, name="node")
    fleet: Any = SimpleNamespace(
        topology=topology, lab=SimpleNamespace(nodes={"node": node}), machines={"node": None}
    )
    return topology, Throwaway.beside(fleet, topology.guests[0], IPv4Address("10.0.0.250"))


def test_it_is_a_stranger_of_a_known_tenant() -> None:
    """It shares no account, port or address with a guest of the lab; the plan can remove it."""
    lab, made = _made()
    assert made.guest.uid not in {guest.uid for guest in lab.guests}
    assert made.endpoint.network == "red/app"
    assert made.endpoint.mac not in {nic.mac for guest in lab.guests for nic in guest.nics}
    assert read_mark(_xml(made.node, made.guest)) == (lab.name, f"red/{NAME}", {})


def test_it_is_confined_and_has_no_disk_of_its_own() -> None:
    _, made = _made()
    root = ET.fromstring(_xml(made.node, made.guest))
    (disk,) = root.findall("devices/disk")
    assert disk.find("readonly") is not None
    assert {label.get("model") for label in root.findall("seclabel")} == {"dac", "apparmor"}
    assert root.findtext("os/initrd", "").startswith("/run/")


def test_what_is_plugged_in_has_nothing_of_the_first_interface() -> None:
    _, made = _made()
    found = ET.fromstring(second_interface(_xml(made.node, made.guest)))
    target = found.find("target")
    assert target is not None
    assert target.get("dev") == SECOND_TAP
    assert found.find("address") is None
    assert made.guest.nics[0].mac not in ET.tostring(found, encoding="unicode")
    assert made.guest.nics[0].port not in ET.tostring(found, encoding="unicode")


def test_its_program_is_there_and_it_has_a_slot_for_each_device() -> None:
    _, made = _made()
    assert _PROGRAM.is_file()
    root = ET.fromstring(_xml(made.node, made.guest))
    models = [item.get("model") for item in root.findall("devices/controller")]
    assert models.count("pcie-root-port") == 2
    mac = ET.fromstring(second_interface(_xml(made.node, made.guest))).find("mac")
    assert mac is not None
    assert re.fullmatch("0e(:[0-9a-f]{2}){5}", mac.get("address", ""))
