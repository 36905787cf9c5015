"""Saved memory: used only for equal machines, verified, reported, and bounded."""

from __future__ import annotations

import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from testbed.drivers.host.content_store import claim, file_digest
from testbed.drivers.images.cache import Image
from testbed.drivers.snapshots import golden_inventory, machine_memory
from testbed.drivers.snapshots.golden_inventory import digest_key
from testbed.drivers.snapshots.machine_memory import MemorySnapshot, SnapshotStore
from testbed.drivers.snapshots.origin import started_from
from testbed.errors import ImageError
from testbed.model.environment import Accelerator, Environment
from testbed.model.topology import Role
from testbed.plan.libvirt_xml.machine import Hardware

NODE = Hardware(Role.NODE, 2 * 2**30, 1, 3)
CONTROLLER = Hardware(Role.CONTROLLER, 2**30, 1, 1)
TCG = Environment(Accelerator.TCG, Accelerator.KVM, 4.0, "/usr/bin/qemu", (("qemu", "QEMU 7.2.22"),))


class Cache:
    """A cache folder, and a freezer that writes files at once instead of booting anything."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        claim(folder)
        self.images = {name: self.image(name) for name in ("node", "controller", "guest")}
        self.booted: list[str] = []
        self.fails = False
        monkeypatch.setattr(SnapshotStore, "_freeze", self.freeze)

    def image(self, name: str) -> Image:
        disk = self.folder / name / "disk.qcow2"
        disk.parent.mkdir()
        disk.write_text(name)
        return Image(name, "k", disk.parent, {disk.name: file_digest(disk)}, "")

    def freeze(self, hardware: Hardware, partial: Path, key: str) -> None:
        self.booted.append(str(hardware))
        (partial / "console.log").write_text("a boot")
        if self.fails:
            raise ImageError("cannot save", fact="no boot", remedy="none")
        (partial / "memory").write_text(f"memory of a {hardware}")
        (partial / "vda.qcow2").write_text("an overlay")
        (partial / "inventory").write_text(f"an inventory with {key}")

    def store(self, environment: Environment = TCG) -> SnapshotStore:
        return SnapshotStore(self.folder, self.images, environment)

    def digests(self) -> set[str]:
        return {image.digest for image in self.images.values()}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    return Cache(tmp_path, monkeypatch)


def _quiet(_: str) -> None:
    pass


def _saved(found: MemorySnapshot | str) -> MemorySnapshot:
    assert isinstance(found, MemorySnapshot), found
    return found


def test_machines_of_equal_hardware_are_saved_once(cache: Cache) -> None:
    cache.store().ensure([NODE, CONTROLLER, NODE], _quiet)
    cache.store().ensure([NODE, CONTROLLER], _quiet)
    assert sorted(cache.booted) == ["controller with 1024 MiB", "node with 2048 MiB"]
    saved = _saved(cache.store().find(NODE))
    saved.verify()
    assert saved.memory.read_text() == "memory of a node with 2048 MiB"
    assert [disk.name for disk in saved.disks] == ["vda.qcow2"]
    assert saved.memory.stat().st_mode & 0o777 == 0o444


def test_two_processes_that_need_one_memory_save_it_once(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two locks of one process exclude each other like those of two: each is of a descriptor of its own."""
    begun, waits = Event(), Event()

    def freeze(_: SnapshotStore, hardware: Hardware, partial: Path, key: str) -> None:
        begun.set()
        assert waits.wait(20), "the second process does not wait for the first"
        cache.freeze(hardware, partial, key)

    monkeypatch.setattr(SnapshotStore, "_freeze", freeze)
    with ThreadPoolExecutor(max_workers=1) as pool:
        first = pool.submit(cache.store().ensure, [NODE], _quiet)
        assert begun.wait(20)
        cache.store().ensure([NODE], lambda text: waits.set() if "waiting for another" in text else None)
        first.result()
    assert cache.booted == ["node with 2048 MiB"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_was_saved_no_longer_belongs_to_the_account_that_saved_it(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freeze(_: SnapshotStore, hardware: Hardware, partial: Path, key: str) -> None:
        cache.freeze(hardware, partial, key)
        for path in partial.iterdir():
            os.chown(path, 4711, 4711)

    monkeypatch.setattr(SnapshotStore, "_freeze", freeze)
    cache.store().ensure([NODE], _quiet)
    folder = _saved(cache.store().find(NODE)).folder
    assert {path.stat().st_uid for path in folder.iterdir()} == {0}


OTHERS: dict[str, tuple[Environment, Hardware, str]] = {
    "emulator": (
        replace(TCG, versions=(("qemu", "QEMU 10.0"),)),
        NODE,
        "its emulator is QEMU 7.2.22, and QEMU 10.0 is needed",
    ),
    "accelerator": (replace(TCG, outer=Accelerator.KVM), NODE, "its accelerator is tcg, and kvm is needed"),
    "memory": (
        TCG,
        replace(NODE, memory=3 * 2**30),
        "its hardware is node with 2048 MiB, and node with 3072 MiB is needed",
    ),
    "interfaces": (TCG, replace(NODE, nics=4), "its domain is "),
    "role": (TCG, CONTROLLER, "no controller has been saved yet"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_not_fit_is_refused_with_the_reason(cache: Cache, name: str) -> None:
    cache.store().ensure([NODE], _quiet)
    environment, hardware, reason = OTHERS[name]
    found = cache.store(environment).find(hardware)
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize("image", ["node", "guest"])
def test_another_image_needs_another_memory(cache: Cache, image: str) -> None:
    cache.store().ensure([NODE], _quiet)
    cache.images[image] = replace(cache.images[image], digests={"disk.qcow2": "rebaked"})
    assert "its images is" in str(cache.store().find(NODE))
    assert machine_memory.prune(cache.folder) == []
    assert machine_memory.prune(cache.folder, cache.digests())
    assert machine_memory.stored(cache.folder) == []


def test_another_libvirt_or_machine_type_needs_another_memory(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store().ensure([NODE], _quiet)
    monkeypatch.setattr(machine_memory, "library_version", lambda: 11003000)
    assert "its libvirt is" in str(cache.store().find(NODE))
    monkeypatch.undo()
    before = machine_memory.anonymous_xml
    monkeypatch.setattr(machine_memory, "anonymous_xml", lambda *a: before(*a).replace("q35", "pc-q35-6.0"))
    assert "its domain is" in str(cache.store().find(NODE))


def test_another_program_of_the_inventory_needs_another_memory(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden reading is compared with those of labs, so both must come from the same program."""
    cache.store().ensure([NODE], _quiet)
    monkeypatch.setattr(golden_inventory, "program_digest", lambda: "of another program")
    assert "its inventory is" in str(cache.store().find(NODE))


def test_the_golden_reading_is_kept_with_the_memory_and_verified(cache: Cache) -> None:
    cache.store().ensure([NODE], _quiet)
    saved = _saved(cache.store().find(NODE))
    assert (saved.folder / "inventory").read_text() == f"an inventory with {digest_key(saved.key)}"
    assert [disk.name for disk in saved.disks] == ["vda.qcow2"]
    (saved.folder / "inventory").chmod(0o644)
    (saved.folder / "inventory").write_text("another")
    with pytest.raises(ImageError, match="not what was saved"):
        saved.verify()


@pytest.mark.parametrize("change", ["other", None])
def test_a_corrupted_or_missing_memory_is_told_with_its_remedy(cache: Cache, change: str | None) -> None:
    cache.store().ensure([NODE], _quiet)
    saved = _saved(cache.store().find(NODE))
    saved.memory.chmod(0o644)
    if change is None:
        saved.memory.unlink()
    else:
        saved.memory.write_text(change)
    with pytest.raises(ImageError, match="not what was saved") as caught:
        saved.verify()
    assert str(saved.memory) in caught.value.fact
    assert "testbed image rm node" in caught.value.remedy


def test_only_a_few_are_kept_and_the_ones_in_use_among_them(cache: Cache) -> None:
    sizes = [replace(NODE, memory=size * 2**30) for size in range(2, 9)]
    for age, hardware in enumerate(sizes):
        cache.store().ensure([hardware], _quiet)
        for saved in machine_memory.stored(cache.folder):
            if saved.made["hardware"] == str(hardware):
                os.utime(saved.folder / "golden.json", (1000 + age, 1000 + age))
        if hardware == sizes[3]:
            _saved(cache.store().find(sizes[0])).use()
    kept = {saved.made["hardware"] for saved in machine_memory.stored(cache.folder)}
    assert len(kept) == 4
    assert str(sizes[0]) in kept


def test_a_save_that_fails_leaves_nothing(cache: Cache) -> None:
    cache.fails = True
    with pytest.raises(ImageError, match="cannot save"):
        cache.store().ensure([NODE], _quiet)
    assert list(cache.folder.glob("golden-*")) == []


def test_nothing_is_saved_from_an_image_that_has_changed(cache: Cache) -> None:
    cache.images["guest"].file("disk.qcow2").write_text("another disk")
    with pytest.raises(ImageError, match="the image guest is not what was baked"):
        cache.store().ensure([NODE], _quiet)
    assert cache.booted == []


def test_what_a_killed_save_left_is_cleared_and_never_used(cache: Cache) -> None:
    left = cache.folder / "golden-node-0123456789abcdef.partial-999999999"
    mine = cache.folder / f"golden-node-1123456789abcdef.partial-{os.getpid()}"
    for folder in (left, mine):
        folder.mkdir()
        (folder / "golden.json").write_text("{}")
    assert machine_memory.stored(cache.folder) == []
    cache.store().ensure([CONTROLLER], _quiet)
    assert not left.exists()
    assert mine.exists()


def test_what_cannot_be_written_is_told(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(ImageError, match="cannot save a node") as caught:
        cache.store().ensure([NODE], _quiet)
    assert "Permission denied" in caught.value.fact


def test_a_full_disk_is_told_before_anything_boots(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20})())
    with pytest.raises(ImageError, match="cannot save machines"):
        cache.store().ensure([NODE], _quiet)
    assert cache.booted == []


def test_the_manifest_says_what_it_was_made_with(cache: Cache) -> None:
    cache.store().ensure([NODE], _quiet)
    made: dict[str, Any] = json.loads((_saved(cache.store().find(NODE)).folder / "golden.json").read_text())[
        "made"
    ]
    assert made["emulator"] == "QEMU 7.2.22"
    assert made["accelerator"] == "tcg"
    assert made["processor"] == "emulated"


def _overlay(file: Path, base: Path) -> Path:
    """Write the head of a qcow2 file that is based on another."""
    name = str(base).encode()
    file.write_bytes(b"QFI\xfb" + struct.pack(">IQI", 3, 104, len(name)) + bytes(84) + name)
    return file


def test_a_machine_says_by_its_disk_which_state_it_started_from(cache: Cache, tmp_path: Path) -> None:
    cache.store().ensure([NODE, CONTROLLER], _quiet)
    saved = _saved(cache.store().find(NODE))
    disk = _overlay(tmp_path / "vda.qcow2", saved.disks[0])
    assert started_from(disk) == saved
    assert started_from(_overlay(disk, cache.folder / "node" / "disk.qcow2")) is None
    _overlay(disk, cache.folder / "golden-node-0123456789abcdef" / "vda.qcow2")
    with pytest.raises(FileNotFoundError, match="is gone"):
        started_from(disk)
    with pytest.raises(FileNotFoundError):
        started_from(tmp_path / "none")


def test_one_file_of_a_state_can_be_verified(cache: Cache) -> None:
    cache.store().ensure([NODE], _quiet)
    saved = _saved(cache.store().find(NODE))
    saved.verify_one("inventory")
    with pytest.raises(ImageError, match="not what was saved"):
        saved.verify_one("nothing")
    (saved.folder / "inventory").chmod(0o644)
    (saved.folder / "inventory").write_text("another")
    with pytest.raises(ImageError, match="not what was saved"):
        saved.verify_one("inventory")
