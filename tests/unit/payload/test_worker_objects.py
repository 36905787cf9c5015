"""The program that reads what workers hold, against this test's own processes (CMP-01, DEV-02)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testbed.hosts.ownership import not_private, owned_twice, parsed
from testbed.payload import worker_objects

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="frames are shown to root only")
_PAGES = 64
COMMON = ("/usr",)
# Maps a file (shared or private) or nothing, writes to each page unless told otherwise, then waits.
_HOLDER = """
import mmap, sys
kind, path = sys.argv[1:3]
size = 64 * 4096
if kind == "anonymous":
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
else:
    flags = mmap.MAP_SHARED if kind == "shared" else mmap.MAP_PRIVATE
    with open(path, "r+b") as file:
        room = mmap.mmap(file.fileno(), size, flags=flags)
for page in range(64):
    if kind == "read":
        room[page * 4096]
    else:
        room[page * 4096] = 1
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(kind: str, path: Path, **more: Any) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, kind, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, **{"stderr": subprocess.DEVNULL, **more},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process.pid
    process.communicate()


def read(**workers: int) -> Any:
    """Return an answer as it arrives."""
    return json.loads(json.dumps(worker_objects.collect({"workers": workers})))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.write_bytes(bytes(_PAGES * 4096))
    return path


def test_processes_with_memory_of_their_own_have_nothing_in_common(file: Path) -> None:
    with holder("anonymous", file) as one, holder("anonymous", file) as other:
        found = parsed(read(one=one, other=other))
    assert (found.common, found.control) == ((), 16)
    assert not_private(found, COMMON) == []
    assert all(worker.pages >= _PAGES for worker in found.workers.values())


def test_a_file_that_two_processes_share_is_seen_in_maps_and_in_frames(file: Path) -> None:
    with holder("shared", file) as one, holder("shared", file) as other:
        found = parsed(read(one=one, other=other))
    assert [tuple(entry) for entry in found.common] == [("one", "other", _PAGES, 0)]
    assert not_private(found, COMMON)[:2] == [
        f"one shares the memory of {file}",
        f"other shares the memory of {file}",
    ]
    assert owned_twice(found, {"one": "red", "other": "blue"}, {}, COMMON) == [
        f"{file} belongs to blue and red"
    ]


@pytest.mark.parametrize("kind", ["private", "read"])
def test_a_private_copy_of_a_file_has_no_frame_in_common_but_is_seen(file: Path, kind: str) -> None:
    with holder(kind, file) as one, holder(kind, file) as other:
        found = parsed(read(one=one, other=other))
    assert found.common == ()
    assert not_private(found, COMMON) == [
        f"{name} has in its memory a part of {file}" for name in ("one", "other")
    ]


def test_frames_that_a_fork_shares_are_counted(file: Path) -> None:
    with holder("anonymous", file) as parent:
        own = parsed(read(parent=parent, this=os.getpid()))
        assert own.common == ()
    child = os.fork()
    if not child:
        try:
            signal.pause()
        finally:
            os._exit(0)
    try:
        ((_, _, count, merged),) = parsed(read(child=child, this=os.getpid())).common
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert count > 1000
    assert merged == 0


def test_open_objects_have_kinds_and_identities(file: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with (
        (tmp_path / "log").open("w") as log,
        holder("anonymous", file, pass_fds=(reader, writer), stderr=log) as pid,
    ):
        objects = parsed(read(one=pid)).workers["one"].objects
        facts, pipe = log_facts(log.name), os.fstat(reader)
    os.close(reader)
    os.close(writer)
    assert ("file", facts, "write", log.name, True) in objects
    numbers = f"{os.major(pipe.st_dev)}:{os.minor(pipe.st_dev)}:{pipe.st_ino}"
    assert [item.access for item in objects if (item.kind, item.identity) == ("pipe", numbers)] == [
        "read",
        "write",
    ]


def log_facts(path: str) -> str:
    facts = Path(path).stat()
    return f"{os.major(facts.st_dev)}:{os.minor(facts.st_dev)}:{facts.st_ino}"


def test_a_file_that_others_may_change_or_that_is_another_one_is_not_fixed(tmp_path: Path) -> None:
    path = tmp_path / "library"
    path.write_text("x")
    facts = path.stat()
    assert worker_objects._is_fixed(str(path), facts)
    path.chmod(0o664)
    assert not worker_objects._is_fixed(str(path), facts)
    path.chmod(0o644)
    os.chown(path, 64100, 0)
    assert not worker_objects._is_fixed(str(path), facts)
    path.unlink()
    path.write_text("y")
    (tmp_path / "other").write_text("z")
    assert not worker_objects._is_fixed(str(path), (tmp_path / "other").stat())
    assert not worker_objects._is_fixed("/nowhere", facts)


def test_a_process_that_has_ended_is_left_out(file: Path) -> None:
    with holder("anonymous", file) as pid:
        pass
    assert read(gone=pid)["workers"] == {}


def test_devices_of_many_are_told_apart_by_what_is_behind_them() -> None:
    tun, ptmx, null = (
        os.stat_result((0o020666, 1, 1, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": os.makedev(*numbers)})
        for numbers in ((10, 200), (5, 2), (1, 3))
    )
    assert worker_objects._identified(tun, {"iff": "tap1"}) == ("interface", "tap1")
    assert worker_objects._identified(tun, {}) == ("device", "10:200")
    assert worker_objects._identified(ptmx, {"tty-index": "4"}) == ("terminal", "4")
    assert worker_objects._identified(null, {}) == ("device", "1:3")
    disk = os.stat_result((0o060660, 1, 1, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": os.makedev(253, 0)})
    assert worker_objects._identified(disk, {}) == ("block device", "253:0")
