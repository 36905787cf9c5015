"""Answers about devices that are missing: a domain that is not seen whole is not judged (DEV-01)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.drivers.hypervisor.connection import Domain
from testbed.errors import InstrumentError
from testbed.verify.devices import observe, seen
from tests.shapes import lab_of

LAB = lab_of("one-node")
RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded.json").read_text())
NODE: Any = SimpleNamespace(name="node")
NAMES = [guest.domain for guest in LAB.guests_on("node")]
WORDS = dict.fromkeys(NAMES, RECORDED["arguments"])


def _monitor(_: str, command: str, arguments: dict[str, object]) -> object:
    (name,) = (name for name, question in observe.QUESTIONS.items() if question == (command, arguments))
    return RECORDED["answers"][name]


def _look(
    monkeypatch: pytest.MonkeyPatch, names: list[str], words: dict[str, Any], xml: str = RECORDED["xml"]
) -> tuple[observe.DomainView, ...]:
    """Look at a node on which these domains run, and on which these command lines are known."""
    workers = [SimpleNamespace(name=name, arguments=arguments) for name, arguments in words.items()]
    monkeypatch.setattr(observe, "observed", lambda *_: SimpleNamespace(workers=workers))
    hypervisor = SimpleNamespace(
        domains=lambda: [Domain(name, "-", "running", xml) for name in names], ask_monitor=_monitor
    )
    fleet: Any = SimpleNamespace(
        topology=LAB,
        lab=SimpleNamespace(nodes={"node": SimpleNamespace(hypervisor=hypervisor)}),
        evidence=SimpleNamespace(record=lambda *_: None),
        observe_once=lambda _, look: look(),
    )
    return observe.domains(fleet, NODE)


def test_every_domain_is_seen_from_all_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    views = _look(monkeypatch, [*NAMES, "stranger"], {**WORDS, "stranger": RECORDED["arguments"]})
    assert [view.name for view in views] == [*NAMES, "stranger"]
    sides = (
        seen.of_libvirt(RECORDED["xml"]),
        seen.of_qemu(RECORDED["answers"]),
        seen.of_command_line(RECORDED["arguments"]),
    )
    assert views[0].entries == {source: found for side in sides for source, found in side.items()}


def test_a_domain_that_is_not_seen_whole_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the topology that libvirt does not know, or one without XML or a command line."""
    with pytest.raises(InstrumentError, match=f"devices of {NAMES[-1]} cannot be read"):
        _look(monkeypatch, NAMES[:-1], WORDS)
    with pytest.raises(InstrumentError, match="devices of stranger cannot be read"):
        _look(monkeypatch, [*NAMES, "stranger"], WORDS)
    with pytest.raises(InstrumentError, match=f"devices of {NAMES[0]} cannot be read"):
        _look(monkeypatch, NAMES, WORDS, xml="<domain>")
