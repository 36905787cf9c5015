"""A throw-away guest attacks its devices, and its console tells how far it came (BND-01)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.verify.attackers import device_attack


class Guest:
    """A guest whose console shows the next text at each look; one that is started again ends its attack."""

    def __init__(self, *texts: str, dies: bool = False) -> None:
        self.texts, self.program, self.starts = list(texts), "", 0
        self.guest = SimpleNamespace(console="/console", domain="red.first.frame", label="red/first.frame")
        self.machine = SimpleNamespace(read=self.read)
        self.node = SimpleNamespace(hypervisor=SimpleNamespace(runs=lambda _: not dies))

    def read(self, _: str) -> str:
        return self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]

    def start_program(self, program: str) -> None:
        self.program = program
        self.starts += 1
        if self.starts > 1:
            self.texts = ["seed=8.\nwrites=180.\nattack over."]


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


def test_a_small_attack_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_attack, "_SECONDS", 0.2)
    monkeypatch.setattr(device_attack.timeouts, "EPHEMERAL_BOOT", 0.0)
    with pytest.raises(InstrumentError, match="too small"):
        attacked("seed=7.\nwrites=20.")


@pytest.mark.parametrize(
    ("first", "starts"),
    [("seed=7.\nwrites=40.", 2), ("seed=7.\nwrites=180.\nattack over.", 2), ("seed=7.\nwrites=240.", 1)],
)
def test_a_guest_that_dies_too_early_is_started_again(
    first: str, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_attack, "_STILL", 0.05)
    guest: Any = Guest(first)
    assert device_attack.attack(guest) == device_attack.written(first) + 180 * (starts - 1)
    assert guest.starts == starts
