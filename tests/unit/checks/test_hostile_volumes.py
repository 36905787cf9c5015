"""A guest overwrites the beginning of a volume for a while (STO-02, STO-08)."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from checks.support import hostile_volumes


def test_a_guest_restores_its_volume_exactly_whatever_was_killed(tmp_path: Path) -> None:
    """Saving twice keeps the first octets; without an end of the check, the guest restores them itself."""
    before, volume = bytes(range(256)) * 64, tmp_path / "volume"
    volume.write_bytes(before)
    header = b"header".ljust(hostile_volumes.HEAD, b"\0")

    def run(commands: str, stdin: bytes = b"") -> None:
        for old, new in (("/dev/vdb", volume), ("/run/testbed.head", tmp_path / "head")):
            commands = commands.replace(old, str(new))
        subprocess.run(["/bin/sh", "-c", commands], input=stdin, check=True, capture_output=True, timeout=60)

    def attack(save: str = hostile_volumes.SAVE) -> None:
        run(save)
        run(hostile_volumes.WRITE, header)
        assert volume.read_bytes() == header + before[hostile_volumes.HEAD :]

    attack()
    attack()
    run(hostile_volumes.RESTORE)
    assert volume.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["volume"]
    run(hostile_volumes.RESTORE)
    assert volume.read_bytes() == before
    attack(hostile_volumes.SAVE.replace("sleep 600", "sleep 1"))
    end = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) > 1 and time.monotonic() < end:
        time.sleep(0.1)
    assert volume.read_bytes() == before


def test_the_end_of_an_attack_ends_its_timer(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.write_bytes(bytes(hostile_volumes.HEAD))
    for commands in (hostile_volumes.SAVE, hostile_volumes.RESTORE):
        own = commands.replace("/dev/vdb", str(volume)).replace("/run/testbed.head", str(tmp_path / "head"))
        subprocess.run(["/bin/sh", "-c", own], check=True, capture_output=True, timeout=60)
    found = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(path)]
    assert found == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""
