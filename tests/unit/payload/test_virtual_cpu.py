"""The program that reads a guest's processor and tries its registers: every outcome is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.payload import virtual_cpu

_EFER, _COUNTER = 0xC0000080, 0xC0010004


class _Processor:
    """A processor whose registers are answered, or fault if they are not known."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, registers: dict[int, int], *, counts: bool) -> None:
        self.registers, self._counts, self.written = registers, counts, list[tuple[int, int]]()
        monkeypatch.setattr(os, "pread", self._read)
        monkeypatch.setattr(os, "pwrite", self._write)

    def _read(self, _: int, size: int, register: int) -> bytes:
        if register not in self.registers:
            raise OSError(5, "fault")
        if register == _COUNTER and self._counts:
            self.registers[register] += 1
        return self.registers[register].to_bytes(size, "little")

    def _write(self, _: int, data: bytes, register: int) -> int:
        if register not in self.registers:
            raise OSError(5, "fault")
        self.written.append((register, int.from_bytes(data, "little")))
        return len(data)


REQUEST = {"read": {"r": 0x480}, "write": {"w": 0x481}}


def test_every_attempt_of_a_processor_without_features_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    _Processor(monkeypatch, {_EFER: 0}, counts=False)
    monkeypatch.setattr(virtual_cpu, "_SVME", 0)
    assert virtual_cpu._attempts(0, REQUEST) == {
        "control": "done", "r": "EIO", "w": "EIO", "enable SVM": "done", "count cycles": "EIO",
    }  # fmt: skip


def test_what_answers_is_told_and_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict.fromkeys((0x480, 0x481, 0xC0010000, _COUNTER), 0) | {_EFER: 0xD01}
    processor = _Processor(monkeypatch, known, counts=True)
    assert set(virtual_cpu._attempts(0, REQUEST).values()) == {"done"}
    assert processor.written == [
        (0x481, 1), (_EFER, 0x1D01), (_EFER, 0xD01), (0xC0010000, 0x430076), (0xC0010000, 0),
    ]  # fmt: skip


def test_a_counter_that_stands_still_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = _Processor(monkeypatch, {_EFER: 0, 0xC0010000: 0, _COUNTER: 7}, counts=False)
    assert virtual_cpu._attempts(0, REQUEST)["count cycles"] == "ENODATA"
    assert processor.written[-1] == (0xC0010000, 0)


def test_leaves_are_read_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuid").touch()
    monkeypatch.setattr(os, "pread", lambda *_: (0xFFFFFFFF).to_bytes(4, "little") * 4)
    found = virtual_cpu._leaves(str(tmp_path / "cpuid"))
    assert len(found) == 3 * 64 + 2 + 1  # leaves below 0x7 and 0xD
    assert found["7.2"] == [0xFFFFFFFF] * 4
