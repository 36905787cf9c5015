"""Attempts of a probe that runs as a worker, between two positive controls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.verify.attackers.worker import Attempt, pid, processes, succeeded
from tests.shapes import lab_of

GUEST = lab_of("one-node").guests[0]
ATTEMPTS = (Attempt("read", "/etc/shadow"), Attempt("list", "/var/lib/a b"), Attempt("signal", "1"))
ANSWERS = [
    f"read yes {GUEST.root_disk}",
    "read no /etc/shadow",
    "list yes /var/lib/a b",
    "signal no 1",
    f"read yes {GUEST.root_disk}",
]


def _machine(*answers: str, number: str = "4711") -> Any:
    def read(command: str, **_: object) -> str:
        return number if command.startswith("cat ") else "\n".join(answers)

    return SimpleNamespace(name="node", read=read)


def test_what_succeeded_is_what_the_probe_says() -> None:
    assert succeeded(_machine(*ANSWERS), GUEST, ATTEMPTS) == {ATTEMPTS[1]}


@pytest.mark.parametrize("answers", [
    [], ANSWERS[:-1], ANSWERS[1:], [*ANSWERS, "read no /etc/shadow"],
    [ANSWERS[0], ANSWERS[2], ANSWERS[1], *ANSWERS[3:]],
    [ANSWERS[0], "write no /etc/shadow", *ANSWERS[2:]], [ANSWERS[0], "read no /etc/passwd", *ANSWERS[2:]],
], ids=str)  # fmt: skip
def test_a_probe_that_broke_off_tells_nothing(answers: list[str]) -> None:
    with pytest.raises(InstrumentError, match="broke off"):
        succeeded(_machine(*answers), GUEST, ATTEMPTS)


@pytest.mark.parametrize("place", [0, -1])
def test_a_probe_that_cannot_open_its_own_volume_is_blind(place: int) -> None:
    answers = list(ANSWERS)
    answers[place] = f"read no {GUEST.root_disk}"
    with pytest.raises(InstrumentError, match="is blind"):
        succeeded(_machine(*answers), GUEST, ATTEMPTS)


@pytest.mark.parametrize("text", ["", "x", "12 34", "-1"])
def test_a_worker_has_a_number(text: str) -> None:
    assert pid(_machine(), GUEST) == 4711
    with pytest.raises(InstrumentError, match="has no worker"):
        pid(_machine(number=text), GUEST)


@pytest.mark.parametrize("text", ["", "a", "a 1\nb", "a 1\nb x", "a 1 2"])
def test_every_worker_is_told(text: str) -> None:
    assert processes(_machine("a 1", "b 22"), [GUEST]) == {"a": 1, "b": 22}
    with pytest.raises(InstrumentError, match="cannot be told"):
        processes(_machine(text), [GUEST])


def test_a_node_without_guests_may_have_no_worker() -> None:
    assert processes(_machine(""), []) == {}
    assert processes(_machine("a 1"), []) == {"a": 1}
    with pytest.raises(InstrumentError, match="cannot be told"):
        processes(_machine("a"), [])
