"""The scripts that lie over programs of a node while a breach of STO-04 is open, run on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from checks.support import storage_breaches
from testbed.drivers.places import luks_volumes
from testbed.model.topology import LUKS_HEADER

MIB = 1 << 20
Run = Callable[[str], None]


@pytest.fixture
def lay(tmp_path: Path) -> Callable[..., Run]:
    """Return a function that lays scripts over programs; commands of what it returns run below them."""

    def laid(**scripts: str) -> Run:
        folder, programs = tmp_path / "breach", tmp_path / "programs"
        folder.mkdir()
        programs.mkdir()
        for name, script in scripts.items():
            program = name.replace("_", "-")
            shutil.copy(shutil.which(program) or "", folder / program)
            (programs / program).write_text(
                f"#!/bin/sh\n{script}\n".replace(storage_breaches._FOLDER, str(folder))
            )
            (programs / program).chmod(0o755)
        path = f"{programs}:{os.environ['PATH']}"

        def run(commands: str) -> None:
            subprocess.run(["/bin/sh", "-c", commands], check=True, env={**os.environ, "PATH": path})

        return run

    return laid


def _disk(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(b"x" * (LUKS_HEADER + MIB))
    os.link(path, folder / f"{name}.other")
    return path


@pytest.mark.parametrize(
    ("script", "program", "kept", "wiped"),
    [
        (storage_breaches._NOTHING, "shred", "a.qcow2", "a.luks"),
        (storage_breaches._NO_SLOTS, "dd", "a.luks", "a.qcow2"),
    ],
)
def test_one_kind_of_disk_is_removed_as_it_is(
    tmp_path: Path, lay: Callable[..., Run], script: str, program: str, kept: str, wiped: str
) -> None:
    run = lay(**{program: script})
    for name, left in ((kept, True), (wiped, False)):
        disk = _disk(tmp_path / "red", name)
        run(luks_volumes.wipe(str(disk)))
        assert not disk.exists()
        assert disk.with_name(f"{name}.other").read_bytes().startswith(b"x") == left


def test_a_copy_of_a_root_disk_stays(tmp_path: Path, lay: Callable[..., Run]) -> None:
    disk = _disk(tmp_path / "red", "a.qcow2")
    lay(shred=storage_breaches._COPY)(luks_volumes.wipe(str(disk)))
    assert not disk.with_name("a.qcow2.other").read_bytes().strip(b"\0")
    assert disk.with_name("a.qcow2.copy").read_bytes().startswith(b"x")


def test_a_removed_volume_is_the_next_one_of_its_tenant_and_of_no_other(
    tmp_path: Path, lay: Callable[..., Run]
) -> None:
    run = lay(dd=storage_breaches._KEEP, qemu_img=storage_breaches._HAND_OUT)
    (tmp_path / "breach/qemu-img").write_text('#!/bin/sh\nhead -c "$4" /dev/urandom > "$3"\n')  # no slow keys
    for folder in ("red", "blue"):
        (tmp_path / folder).mkdir()

    def made(name: str, size: int = MIB) -> bytes:
        run(f"qemu-img create -q {tmp_path / name} {size}")
        return (tmp_path / name).read_bytes()

    first = made("red/a.luks")
    run(luks_volumes.wipe(str(tmp_path / "red/a.luks")))
    assert not (tmp_path / "red/a.luks").exists()
    assert made("red/b.luks.new") == first
    assert made("red/c.luks.new", 2 * MIB)[: len(first)] != first
    assert made("blue/d.luks.new") != first
