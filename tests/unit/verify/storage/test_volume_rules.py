"""Nodes do not interpret what guests write into volumes: rules, signatures and the program (STO-08)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from testbed.hosts.rules import UnseenError
from testbed.payload import volume_readers
from testbed.verify.storage import signatures
from testbed.verify.storage.volumes import Device, Mount, Reader, Rescan, State, interpreted

ID = UUID("0f2a54cc-6f63-4a0c-9a94-1f4d90f3a001")
PATH = "/pools/red/web.data.luks"
WORKER, OWN = 700, 900
STATE = State(
    readers=(Reader(OWN, "python3", "/pools"), Reader(WORKER, "qemu-system-x86", PATH)),
    devices=(Device("vda", "", 1 << 30), Device("loop0", "", 0)),
    links=(("/dev/disk/by-label/pool", "/dev/vdc"),),
    mounts=(Mount("ext4", "/dev/vdc", "/pools"),),
)
CLEAN = Rescan(STATE, STATE, 0, OWN)


def judged(found: Rescan) -> list[str]:
    return interpreted(json.loads(json.dumps(asdict(found))), {WORKER})


def with_state(**more: Any) -> State:
    """Return a state with further entries."""
    return replace(STATE, **{name: (*getattr(STATE, name), entry) for name, entry in more.items()})


def test_a_node_that_reads_nothing_has_no_fault() -> None:
    assert judged(CLEAN) == []


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"readers": Reader(7, "blkid", PATH)}, f"blkid (7) reads {PATH}"),
        ({"readers": Reader(7, "qemu-nbd", "")}, "qemu-nbd (7) reads "),
        ({"devices": Device("loop1", PATH, 512)}, f"loop1 lies over {PATH}"),
        ({"devices": Device("dm-0", "loop1", 512)}, "dm-0 lies over loop1"),
        ({"devices": Device("md127", "", 512)}, "md127 lies over another device"),
        ({"devices": Device("nbd0", "", 512)}, "nbd0 lies over another device"),
    ],
)
def test_what_lies_over_a_volume_or_reads_it_is_a_fault_at_any_time(more: Any, fault: str) -> None:
    assert fault in judged(replace(CLEAN, before=with_state(**more), after=with_state(**more)))
    assert fault in judged(replace(CLEAN, after=with_state(**more)))
    assert fault in judged(replace(CLEAN, before=with_state(**more)))


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"devices": Device("vda1", "a partition 1", 512)}, "vda1 lies over a partition 1"),
        ({"devices": Device("vdd", "", 512)}, "vdd appeared with the rescan"),
        (
            {"links": ("/dev/disk/by-label/pool", "/dev/loop0")},
            "/dev/disk/by-label/pool points to /dev/loop0 since the rescan",
        ),
        (
            {"mounts": Mount("ext4", "/dev/dm-0", "/mnt")},
            "/dev/dm-0 is mounted at /mnt since the rescan",
        ),
    ],
)
def test_what_a_rescan_brings_is_a_fault(more: Any, fault: str) -> None:
    assert fault in judged(replace(CLEAN, after=with_state(**more)))


def test_file_systems_without_a_device_may_come_with_a_service_that_starts() -> None:
    assert judged(replace(CLEAN, after=with_state(mounts=Mount("tmpfs", "tmpfs", "/run/x")))) == []


@pytest.mark.parametrize(
    "found",
    [
        replace(CLEAN, scan=1),
        replace(CLEAN, reader=901),
        replace(CLEAN, after=replace(STATE, readers=STATE.readers[1:])),
    ],
)
def test_an_attack_that_was_not_seen_is_no_pass(found: Rescan) -> None:
    with pytest.raises(UnseenError):
        judged(found)


def test_an_answer_of_another_form_is_no_pass() -> None:
    for answer in (None, {}, {**asdict(CLEAN), "more": 1}):
        with pytest.raises(UnseenError):
            interpreted(answer, {WORKER})


@pytest.mark.skipif(shutil.which("wipefs") is None, reason="there is no wipefs")
def test_programs_that_guess_believe_the_signatures(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(signatures.disguise("pool", ID).ljust(64 << 20, b"\0"))
    done = subprocess.run(["wipefs", "-n", "--json", disk], capture_output=True, text=True, check=True)
    found = {entry["type"]: entry for entry in json.loads(done.stdout)["signatures"]}
    assert found.keys() == {"dos", "ext4", "LVM2_member", "linux_raid_member"}
    assert (found["ext4"]["uuid"], found["ext4"]["label"]) == (str(ID), "pool")
    assert (found["linux_raid_member"]["uuid"], found["linux_raid_member"]["label"]) == (str(ID), "pool")


def test_a_label_that_no_file_system_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        signatures.disguise("a-label-of-17-oct", ID)


@contextmanager
def _reading(path: Path) -> Iterator[int]:
    with path.open("rb") as file:
        process = subprocess.Popen(["sleep", "60"], stdin=file)
    try:
        end = time.monotonic() + 10  # the kernel maps a program after it has closed what execve(2) closes
        while "sleep" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < end:
            time.sleep(0.01)
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="the files of other accounts' processes are shown to root only")
def test_the_program_finds_readers_by_file_and_by_mapping(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.write_bytes(b"x")
    device = volume.stat().st_dev
    with _reading(volume) as pid:
        program = Path(f"/proc/{pid}/exe").resolve()
        assert set(volume_readers._readers(device, [str(pid)])) >= {(pid, "sleep", str(volume))}
        mapped = set(volume_readers._readers(program.stat().st_dev, [str(pid)]))
        assert (pid, "sleep", str(program)) in mapped
    assert set(volume_readers._readers(device, [str(pid)])) == set()


def test_the_program_describes_devices_links_and_mounts_of_this_machine() -> None:
    names = {name for name, _, _ in volume_readers._devices()}
    assert names == {path.name for path in Path("/sys/class/block").iterdir()}
    places = {place for _, _, place in volume_readers._mounts()}
    assert {"/", "/proc"} <= places


def test_a_folder_that_is_no_file_system_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file system of its own"):
        volume_readers.collect({"pools": str(tmp_path)})
