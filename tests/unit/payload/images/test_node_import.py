"""The steps of an import on a node, with a stand-in for the confined gate (STO-03)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testbed.payload.images import node_import
from testbed.payload.images.node_import import HERE

KEY = b"k" * 64
# Prints the format that it was given, and writes the image to the volume's file as an honest gate does.
GATE = (
    f"cd {HERE} && grep -q raw request.json && dd status=none if=in/image of=out/image conv=notrunc && "
    'echo "Memory peak: 1.5M" >&2 && echo \'{"image": {"refused": ""}}\''
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of imports, which is no file system of its own here."""

    @contextmanager
    def workspace(size: int) -> Iterator[Path]:
        assert size == 8192 + 6
        for name in ("in", "out"):
            (tmp_path / name).mkdir()
        yield tmp_path

    monkeypatch.setattr(node_import, "workspace", workspace)
    return tmp_path


def imported(gate: str, encrypt: str) -> dict[str, object]:
    """Import six octets with these shell commands for the gate and the encryption."""
    request: dict[str, Any] = {
        "gate": "program", "command": ["sh", "-c", gate], "form": "raw", "size": 8192, "seconds": 20,
        "encrypt": ["sh", "-c", encrypt],
    }  # fmt: skip
    return node_import.volume(request, b"octets", KEY)


def test_the_key_goes_to_the_encryption_alone(folder: Path) -> None:
    told = imported(GATE, f"cat >{HERE}/key; cp {HERE}/out/image {HERE}/done")
    assert told == {"refused": ""}
    assert (folder / "key").read_bytes() == KEY
    assert (folder / "done").read_bytes() == b"octets".ljust(8192, b"\0")
    assert (folder / "gate.py").read_text() == "program"
    assert json.loads((folder / "request.json").read_text())["images"] == [["image", "raw"]]
    assert [path for path in folder.rglob("*") if path.is_file() and KEY in path.read_bytes()] == [
        folder / "key"
    ]


@pytest.mark.parametrize(
    ("gate", "refused"),
    [
        ('echo \'{"image": {"refused": "it has snapshots"}}\'', "it has snapshots"),
        ("echo '{}'", "the gate has no answer (status 0)"),
        ("echo garbage", "the gate has no answer (status 0)"),
        ('echo \'{"image": {"refused": ""}}\'; exit 3', "the gate has no answer (status 3)"),
        ("exit 9", "the gate has no answer (status 9)"),
    ],
)
def test_without_a_clear_answer_nothing_is_encrypted(gate: str, refused: str, folder: Path) -> None:
    assert imported(gate, f"touch {HERE}/done") == {"refused": refused}
    assert not (folder / "done").exists()


def test_a_failed_encryption_is_reported(folder: Path) -> None:
    assert folder.is_dir()
    assert imported(GATE, "echo no space >&2; exit 1") == {"refused": "", "failed": "no space\n"}


def test_the_memory_of_the_unit_is_read_from_systemd(folder: Path) -> None:
    for text, octets in (("Memory peak: 1.5M", 1572864), ("Memory peak: 7G", 7 << 30), ("none", 0)):
        told = node_import.asked(folder, ["sh", "-c", f"echo '{text}' >&2; echo []"], 20)
        assert told["memory"] == octets
        assert told["answer"] == []
