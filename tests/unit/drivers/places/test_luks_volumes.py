"""Encrypted volumes: the secrets of a node's libvirt, the removal of disks, and the keys on this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from testbed.drivers.places import luks_volumes
from testbed.drivers.places.volume_keys import VolumeKeys, fingerprint
from testbed.errors import ProvisioningError
from testbed.model.resolve import resolve
from testbed.model.topology import LUKS_HEADER, file_length, volume_secret
from testbed.plan.diff import Action, Verb
from testbed.plan.resources import HELD_KEY, Key, Kind, Resource
from testbed.topology_file.loader import read

LAB = resolve(read(Path(__file__).parents[4] / "topologies/one-node.yaml").spec)
SECRET = Key("node", Kind.VOLUME_KEY, "red")


class Libvirt:
    """Keeps secrets as libvirt does."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.values: dict[str, bytes] = {}

    def secrets(self) -> dict[str, str]:
        return self.held

    def define_secret(self, xml: str, value: bytes, marked: str) -> None:
        assert "testbed key" not in xml
        uuid = ET.fromstring(marked).findtext("uuid") or ""
        self.held[uuid], self.values[uuid] = marked, value

    def undefine_secret(self, uuid: str) -> None:
        self.held.pop(uuid, None)


def _repaired(tmp_path: Path) -> tuple[Any, VolumeKeys]:
    libvirt: Any = Libvirt()
    keys = VolumeKeys(tmp_path / "pki")
    luks_volumes.repair(Action(Verb.CREATE, SECRET, "", Resource(SECRET, HELD_KEY), ()), libvirt, keys)
    return libvirt, keys


def test_a_secret_that_is_made_is_the_one_that_is_wanted(tmp_path: Path) -> None:
    libvirt, keys = _repaired(tmp_path)
    assert luks_volumes.observed("node", libvirt, keys, LAB) == {SECRET: HELD_KEY}
    assert libvirt.values == {volume_secret("red"): keys.key("node", "red")}


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ('ephemeral="yes"', 'ephemeral="no"', "ephemeral"),
        ('private="yes"', 'private="no"', "private"),
        ("testbed key ", "testbed key 0", "key"),
    ],
)
def test_each_property_of_a_secret_is_observed(tmp_path: Path, old: str, new: str, name: str) -> None:
    libvirt, keys = _repaired(tmp_path)
    uuid = volume_secret("red")
    assert old in libvirt.held[uuid]
    libvirt.held[uuid] = libvirt.held[uuid].replace(old, new)
    found = luks_volumes.observed("node", libvirt, keys, LAB)[SECRET]
    assert [key for key in HELD_KEY if found[key] != HELD_KEY[key]] == [name]


@pytest.mark.parametrize("tenant", ["../../../etc", "green", ""])
def test_a_secret_of_nobody_is_called_by_its_uuid_unless_it_is_a_tenants(tmp_path: Path, tenant: str) -> None:
    libvirt, keys = _repaired(tmp_path)
    uuid = volume_secret(tenant)
    libvirt.held = {uuid: libvirt.held[volume_secret("red")].replace("pools/red<", f"pools/{tenant}<")}
    (key,) = luks_volumes.observed("node", libvirt, keys, LAB)
    assert key.name == ("green" if tenant == "green" else uuid)


def test_the_key_of_a_tenant_that_goes_is_destroyed(tmp_path: Path) -> None:
    libvirt, keys = _repaired(tmp_path)
    first = keys.key("node", "red")
    luks_volumes.repair(Action(Verb.DELETE, SECRET, "", None, ()), libvirt, keys)
    assert not libvirt.held
    assert not list((tmp_path / "pki").glob("*red*"))
    assert keys.key("node", "red") != first


def test_keys_are_private_differ_and_stay(tmp_path: Path) -> None:
    keys = VolumeKeys(tmp_path / "pki")
    made = {keys.key(node, tenant) for node in ("a", "b") for tenant in ("red", "blue")}
    assert len(made) == len({fingerprint(key) for key in made}) == 4
    assert VolumeKeys(tmp_path / "pki").key("a", "red") in made
    files = [*(tmp_path / "pki").iterdir()]
    assert {file.stat().st_mode & 0o7777 for file in files} == {0o600}
    files[0].write_text("x")
    with pytest.raises(ProvisioningError, match="cannot be used"):
        [keys.key(node, tenant) for node in ("a", "b") for tenant in ("red", "blue")]


def test_what_is_removed_leaves_no_content(tmp_path: Path) -> None:
    """STO-04: another name of the file shows what is left in its blocks."""
    for name, length, left in (
        ("web.qcow2", 300_000, 0),
        ("web.data.luks", LUKS_HEADER + 200_000, LUKS_HEADER + 200_000 - luks_volumes._HEAD * 2**20),
    ):
        disk, other = tmp_path / name, tmp_path / f"{name}.other"
        disk.write_bytes(b"x" * length)
        os.link(disk, other)
        subprocess.run(["/bin/sh", "-c", luks_volumes.wipe(str(disk))], check=True)
        assert not disk.exists()
        assert other.read_bytes().count(b"x") == left
        assert not other.read_bytes()[: min(length, LUKS_HEADER)].strip(b"\0")
        subprocess.run(["/bin/sh", "-c", luks_volumes.wipe(str(disk))], check=True)


def test_a_container_is_made_as_long_as_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "x.luks"
    made = subprocess.run(
        ["/bin/sh", "-c", luks_volumes.make(str(path), 2**20)],
        input=b"0" * 64,
        check=False,
        capture_output=True,
    )
    assert made.returncode == 0, made.stderr
    assert path.stat().st_size == file_length(path.name, 2**20)
    assert luks_volumes.capacity(path.name, path.stat().st_size) == 2**20


@pytest.mark.parametrize(("failures", "status"), [(2, 0), (luks_volumes.TRIES, 1)])
def test_a_container_that_a_busy_node_did_not_make_is_made_again(
    tmp_path: Path, failures: int, status: int
) -> None:
    """The first calls of qemu-img fail after they have read the key; each gets the whole key."""
    program, keys, path = tmp_path / "qemu-img", tmp_path / "keys", tmp_path / "volume"
    program.write_text(
        f"#!/bin/sh\ncat >> {keys}; echo >> {keys}\n"
        f"[ $(wc -l < {keys}) -gt {failures} ] && truncate -s {2**20 + LUKS_HEADER} {path}\n"
    )
    program.chmod(0o755)
    command = luks_volumes.make(str(path), 2**20).replace("sleep 1", ":")
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        input=b"5eed",
        check=False,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.returncode == status
    tried = min(failures + 1, luks_volumes.TRIES)
    assert keys.read_text().split() == ["5eed"] * tried
    assert path.exists() == (status == 0)
