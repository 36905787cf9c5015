"""The program that writes canaries in a guest and searches its disks, on files of this machine (STO-04)."""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
from pathlib import Path

import pytest

from testbed.payload.residues import guest_canaries

TEXTS = {name: secrets.token_hex(32) for name in ("kept", "discarded", "absent")}
SIZE = 3 * guest_canaries._CHUNK


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "O_DIRECT", 0)  # not every file system has it
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[int, ...]]]:
    """Return what the kernel is asked to discard; it does nothing."""
    done: list[tuple[int, tuple[int, ...]]] = []

    def ioctl(_: int, request: int, argument: bytes) -> None:
        done.append((request, struct.unpack(f"={len(argument) // 8}Q", argument)))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return done


def test_canaries_are_written_discarded_and_counted(
    disk: Path, tmp_path: Path, asked: list[tuple[int, tuple[int, ...]]]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    told = guest_canaries.write(
        {
            "device": str(disk),
            "regions": [[0, 8192, TEXTS["kept"], False], [SIZE - 8192, 8192, TEXTS["discarded"], True]],
            "files": [[str(one), 4096, TEXTS["kept"], False], [str(other), 4096, TEXTS["discarded"], True]],
            "texts": TEXTS,
        }
    )
    assert told["found"] == {"kept": 256, "discarded": 256, "absent": 0}
    assert (told["size"], told["read"]) == (SIZE, SIZE)
    assert told["files"] == {str(one): 128, str(other): 128}
    assert (one.read_bytes(), other.exists()) == (bytes.fromhex(TEXTS["kept"]) * 128, False)
    assert asked == [(0x1277, (SIZE - 8192, 8192)), (0xC0185879, (0, 1 << 63, 0))]


@pytest.mark.parametrize("place", [guest_canaries._CHUNK - 1, guest_canaries._CHUNK - 31, SIZE - 32])
def test_a_canary_is_counted_once_wherever_it_lies(disk: Path, place: int) -> None:
    with disk.open("r+b") as file:
        file.seek(place)
        file.write(bytes.fromhex(TEXTS["kept"]))
    told = guest_canaries.search({"device": str(disk), "texts": TEXTS})
    assert told["found"] == {"kept": 1, "discarded": 0, "absent": 0}
