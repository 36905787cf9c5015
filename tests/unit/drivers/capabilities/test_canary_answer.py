"""What the canary's boots say about accelerator and slowness (D7)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.drivers.capabilities import canary
from testbed.drivers.host import process
from testbed.errors import InstrumentError, MachineError
from testbed.model.environment import Accelerator, Environment

IMAGE: Any = SimpleNamespace(key="k")
Found = Callable[..., Environment]


class Boots:
    """Stands for boots of the canary: seconds that one takes under each accelerator, or None if it fails."""

    def __init__(self) -> None:
        self.seconds: dict[Accelerator, float | None] = {Accelerator.KVM: 0.8, Accelerator.TCG: 5.0}
        self.asked: list[tuple[Accelerator, float]] = []
        self.now = 0.0

    def boot(self, _: str, __: object, accelerator: Accelerator, deadline: float) -> float:
        self.asked.append((accelerator, deadline))
        seconds = self.seconds[accelerator]
        self.now += min(seconds or 0.0, deadline)
        if seconds is None or seconds > deadline:
            late = f"took longer than {deadline:.0f} s" if seconds else "no such ioctl"
            raise InstrumentError("the canary does not start", fact=late, remedy="-")
        return seconds


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Boots:
    found = Boots()
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(canary, "_KVM", tmp_path / "kvm")
    monkeypatch.setattr(canary, "boot", found.boot)
    monkeypatch.setattr(canary, "_nested", lambda: True)
    monkeypatch.setattr(canary, "time", SimpleNamespace(monotonic=lambda: found.now))
    monkeypatch.setattr(process, "require", lambda *_, **__: "/usr/bin/qemu")
    monkeypatch.setattr(process, "run", lambda *_, **__: "QEMU emulator version 10\n")
    return found


def _find(folder: Path, want: Accelerator | None = None) -> tuple[Accelerator, float]:
    found = canary.environment(IMAGE, folder, want=want)
    return found.outer, found.slowness


@pytest.mark.parametrize(("seconds", "slowness"), [(0.3, 1.0), (1.0, 1.0), (6.25, 6.2), (14.0, 14.0)])
def test_slowness_is_measured_under_kvm_too(
    boots: Boots, tmp_path: Path, seconds: float, slowness: float
) -> None:
    boots.seconds[Accelerator.KVM] = seconds
    assert _find(tmp_path) == (Accelerator.KVM, slowness)


def test_kvm_that_boots_nothing_is_not_used(boots: Boots, tmp_path: Path) -> None:
    for never in (None, 1e9):
        boots.seconds[Accelerator.KVM] = never
        boots.asked.clear()
        (tmp_path / "canary.json").unlink(missing_ok=True)
        assert _find(tmp_path) == (Accelerator.TCG, 5.0)
        assert [accelerator for accelerator, _ in boots.asked] == [Accelerator.KVM, Accelerator.TCG]
    with pytest.raises(MachineError, match="KVM does not work here"):
        _find(tmp_path, Accelerator.KVM)


def test_kvm_on_a_busy_machine_gets_more_time(boots: Boots, tmp_path: Path) -> None:
    boots.seconds = {Accelerator.KVM: 28.0, Accelerator.TCG: 20.0}
    assert _find(tmp_path) == (Accelerator.KVM, 28.0)
    assert boots.asked == [(Accelerator.KVM, 15.0), (Accelerator.TCG, 120.0), (Accelerator.KVM, 30.0)]


def test_a_busy_machine_does_not_make_a_refusal_a_delay(boots: Boots, tmp_path: Path) -> None:
    boots.seconds = {Accelerator.KVM: None, Accelerator.TCG: 60.0}
    assert _find(tmp_path) == (Accelerator.TCG, 60.0)
    assert len(boots.asked) == 2


def test_the_answer_lasts_until_something_changes(boots: Boots, tmp_path: Path) -> None:
    assert _find(tmp_path) == (Accelerator.KVM, 1.0)
    os.utime(tmp_path / "kvm", (1, 1))  # as udev does at every start
    (tmp_path / "kvm").unlink()
    (tmp_path / "kvm").touch()
    boots.seconds = {Accelerator.KVM: None, Accelerator.TCG: None}
    assert _find(tmp_path) == (Accelerator.KVM, 1.0)
    assert len(boots.asked) == 1
    (tmp_path / "kvm").unlink()
    with pytest.raises(MachineError, match="does not start under emulation"):
        _find(tmp_path)
