"""A throw-away guest attacks its devices, and its console tells how far it came (BND-01)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.verify.attackers import device_attack


class Guest:
    """A guest whose console shows one text more at each look."""

    def __init__(self, *texts: str, dies: bool = False) -> None:
        self.texts, self.program, self.dies = list(texts), "", dies
        self.guest = SimpleNamespace(console="/console", domain="red.first.frame", label="red/first.frame")
        self.machine = SimpleNamespace(
            read=lambda _: self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        )
        self.resets = 0
        self.node = SimpleNamespace(
            hypervisor=SimpleNamespace(runs=lambda _: not self.dies, reset=self.reset)
        )

    def reset(self, _: str) -> None:
        self.resets += 1
        self.texts = ["seed=7.\nwrites=40.\nseed=8.\nwrites=180.\nattack over."]

    def start_program(self, program: str) -> None:
        self.program = program


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_attack, "_PAUSE", 0.0)


def attacked(*texts: str, dies: bool = False) -> int:
    guest: Any = Guest(*texts, dies=dies)
    found = device_attack.attack(guest)
    assert "def attack(" in guest.program
    return found


@pytest.mark.parametrize(
    ("console", "count"),
    [
        ("", 0),
        ("seed=7.\nwrites=200.\nwrites=250.\n", 250),
        ("seed=7.\nwrites=250.\nseed=8.\nwrites=50.\nwrites=100.\nattack over.\n", 350),
        ("writes=99999999999.", 0),
        ("seed=7.\nwrites=300.\nwrites=20.\n", 300),
    ],
)
def test_the_writes_of_all_boots_count(console: str, count: int) -> None:
    assert device_attack.written(console) == count


def test_an_attack_ends_with_its_program() -> None:
    assert attacked("seed=7.", "seed=7.\nwrites=1000.", "seed=7.\nwrites=1400.\nattack over.") == 1400


def test_an_attack_ends_with_its_guest() -> None:
    assert attacked("seed=7.\nwrites=1200.", dies=True) == 1200


def test_a_small_attack_is_no_pass() -> None:
    with pytest.raises(InstrumentError, match="too small"):
        attacked("seed=7.\nwrites=180.\nattack over.")


def test_a_guest_that_hangs_is_reset_until_its_attack_is_large_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_attack, "_STILL", 0.05)
    hanging: Any = Guest("seed=7.\nwrites=40.")
    assert device_attack.attack(hanging) == 220
    assert hanging.resets == 1
    enough: Any = Guest("seed=7.\nwrites=240.")
    assert device_attack.attack(enough) == 240
    assert enough.resets == 0
