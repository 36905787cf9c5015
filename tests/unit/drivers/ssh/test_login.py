"""A login is waited for as long as a machine's boot makes progress, and no longer than the hard limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.deadline import ProgressDeadline
from testbed.drivers.ssh import client
from testbed.drivers.ssh.client import Access, Host
from testbed.errors import InstrumentError, ProvisioningError
from tests.hostile import Clock


def _given_up(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[float], str], signs: Callable[[float], str]
) -> tuple[float, str]:
    """Return when a login with a patience of 100 s is given up, and the fact."""
    clock = Clock()
    monkeypatch.setattr(client, "ProgressDeadline", lambda *given: ProgressDeadline(*given, clock))
    monkeypatch.setattr(client.time, "sleep", lambda _: clock.sleep(1))

    def refuse(_: Host) -> None:
        raise InstrumentError("cannot log in", fact=answer(clock.now), remedy="-")

    monkeypatch.setattr(Host, "_connected", refuse)
    host = Host(Access("node-a", "192.0.2.1", Path("key"), Path("host_key")), lambda: signs(clock.now))
    with pytest.raises(ProvisioningError, match="node-a does not answer") as caught:
        host.wait(100)
    return clock.now, caught.value.fact


def test_a_dead_machine_is_given_up_with_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    end, fact = _given_up(monkeypatch, lambda _: "no route", lambda _: "last line: Kernel panic")
    assert end == 100
    assert fact.startswith(
        "no login at 192.0.2.1 within 100 s; last progress: last line: Kernel panic; 1 kinds"
    )
    assert fact.endswith("last answer: no route")


@pytest.mark.parametrize("of", ["console", "answers"])
def test_a_slow_machine_is_waited_for(monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    """Until 190 s its console goes on, or its answers come closer to a login."""

    def going(now: float) -> str:
        return f"stage {min(now, 190):.0f}"

    still = "nothing new"
    answer, signs = (going, lambda _: still) if of == "answers" else (lambda _: still, going)
    assert _given_up(monkeypatch, answer, signs)[0] == 250


def test_answers_that_alternate_are_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    end, _ = _given_up(monkeypatch, lambda now: ("no route", "refused")[int(now) % 2], lambda _: "")
    assert end == 100


def test_a_machine_that_prints_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _given_up(monkeypatch, lambda _: "no route", str)[0] == 400
