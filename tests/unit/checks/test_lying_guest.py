"""The lying guest of a breach of NET-01: its change fits the guest's recorder, and reverts."""

from __future__ import annotations

import subprocess
import zlib
from types import SimpleNamespace
from typing import Any

import pytest

from checks.support import lying_guest
from testbed.errors import InstrumentError
from testbed.verify.check import Breach
from testbed.verify.guest_agent import Output
from testbed.verify.probe.client import compose


def test_the_lie_takes_the_place_of_one_line_of_the_recorder() -> None:
    program = zlib.decompress(compose({"phase": "stop"})).decode()
    assert program.count(lying_guest.HONEST) == 1
    compile(program.replace(lying_guest.HONEST, lying_guest.LIE), "probe", "exec")
    assert not set("'\"\n\\") & set(lying_guest.LIE + lying_guest.HONEST)


def test_the_scripts_are_shell() -> None:
    for script in (lying_guest._OPEN, lying_guest._CLOSE, lying_guest._SHOW, lying_guest.liar("/run/honest")):
        subprocess.run(["sh", "-n", "-c", script], check=True)


def _context(statuses: dict[str, int], asked: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(_: object, guest: Any, argv: list[str], stdin: bytes, timeout: float) -> Output:
        name = {lying_guest._OPEN: "open", lying_guest._CLOSE: "close", lying_guest._SHOW: "show"}[argv[2]]
        asked.append(f"{guest.label} {name}")
        return Output(statuses.get(name, 0), b"", b"")

    monkeypatch.setattr(lying_guest, "run_in_guest", run)
    return SimpleNamespace(lab=SimpleNamespace(nodes={"node-a": None}))


def _breach(asked: list[str]) -> Breach:
    path = Breach(
        "path", lambda _: asked.append("open"), lambda _: asked.append("close"), lambda _: "open" in asked
    )
    return lying_guest.concealed("both", path, lambda _: SimpleNamespace(label="blue/db", node="node-a"))  # type: ignore[arg-type, return-value]


def test_a_path_is_open_while_its_guest_conceals_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    context, breach = _context({}, asked, monkeypatch), _breach(asked)
    breach.open(context)
    assert breach.in_force(context)
    breach.close(context)
    assert asked == ["open", "blue/db open", "blue/db show", "blue/db close", "close"]


def test_a_path_that_nobody_conceals_is_another_breach(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    context, breach = _context({"show": 1}, asked, monkeypatch), _breach(asked)
    breach.open(context)
    assert not breach.in_force(context)


def test_the_path_is_closed_though_the_guest_goes_on_lying(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    context, breach = _context({"close": 1}, asked, monkeypatch), _breach(asked)
    with pytest.raises(InstrumentError, match="blue/db does not change sides"):
        breach.close(context)
    assert asked == ["blue/db close", "close"]
