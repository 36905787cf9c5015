"""Memory goes through QEMU's monitor: requests, bytes, and the report of a refusal."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from testbed.drivers.hypervisor.qmp import Monitor
from testbed.errors import ProvisioningError

MEMORY = os.urandom(3 * 2**20 + 17)


class Qemu:
    """Speaks the QMP that saving memory needs, and moves bytes through the given descriptor."""

    def __init__(self, end: dict[str, Any] | None = None) -> None:
        self.end = end or {"status": "completed"}
        self.asked: list[str] = []
        self.received = b""
        self.descriptor = -1
        self.mover: threading.Thread | None = None

    def __call__(self, request: str, files: Sequence[int]) -> str:
        asked = json.loads(request)
        self.asked.append(asked["execute"])
        answer: dict[str, Any] = {}
        if asked["execute"] == "getfd":
            self.descriptor = os.dup(files[0])
        elif asked["execute"].startswith("migrate") and asked["arguments"].get("uri") == "fd:memory":
            self.mover = threading.Thread(target=self.load if "incoming" in asked["execute"] else self.save)
            self.mover.start()
        elif asked["execute"] == "query-migrate":
            answer = {"status": "active"} if self.mover and self.mover.is_alive() else self.end
        return json.dumps({"return": answer})

    def save(self) -> None:
        view = memoryview(MEMORY)
        while view:
            view = view[os.write(self.descriptor, view) :]
        os.close(self.descriptor)

    def load(self) -> None:
        while self.end["status"] == "completed" and (data := os.read(self.descriptor, 2**20)):
            self.received += data
        os.close(self.descriptor)


def _open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_saved_memory_is_what_qemu_wrote_and_what_it_reads_again(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    before = _open()
    Monitor(Qemu()).save_memory(file, 10)
    assert file.read_bytes() == MEMORY
    qemu = Qemu()
    Monitor(qemu).load_memory(file, 10)
    assert qemu.received == MEMORY
    assert qemu.asked[:2] == ["getfd", "migrate-incoming"]
    assert _open() == before


def test_a_refusal_is_told_in_qemus_words(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_bytes(MEMORY)
    with pytest.raises(ProvisioningError) as caught:
        Monitor(Qemu({"status": "failed", "error-desc": "wrong version"})).load_memory(file, 10)
    assert "failed" in caught.value.fact
    assert "wrong version" in caught.value.fact
    assert "--cold" in caught.value.remedy
    with pytest.raises(ProvisioningError) as caught:
        Monitor(lambda *_: json.dumps({"error": {"desc": "no such command"}})).load_memory(file, 10)
    assert "no such command" in caught.value.fact


def test_a_qemu_that_never_ends_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_bytes(b"")
    with pytest.raises(ProvisioningError) as caught:
        Monitor(Qemu({"status": "active"})).load_memory(file, 0.2)
    assert "after 0 s" in caught.value.fact


def test_an_existing_memory_is_never_written_over(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        Monitor(Qemu()).save_memory(file, 10)
    assert file.read_bytes() == b"old"
