"""Names and reasons from nodes, files and guests in plans, charts and pictures.

Also the last output of silent guests.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.cli.output import terminal
from testbed.engine import observe
from testbed.engine.timing import Span, chart
from testbed.lab import guest_recovery
from testbed.model.resolve import resolve
from testbed.plan import render
from testbed.plan.diff import Action, Plan, Verb
from testbed.plan.resources import Key, Kind
from testbed.report import graph
from testbed.topology_file.loader import read
from tests.hostile import WORDS

LAB = resolve(read(Path(__file__).parents[3] / "topologies/one-node.yaml").spec)
NAME = 'a"]; b\\\n::error::told <b> --> c|d'


def _require_obeyed_by_nobody(text: str) -> None:
    for line in text.split("\n"):
        assert not line.lstrip().startswith("::")
        assert "##vso[" not in line
        assert line.isprintable()


def test_a_plan_has_three_lines_for_each_action_that_loses_data() -> None:
    loses = (f"file red/{WORDS}",)
    action = Action(
        Verb.DELETE, Key("node-a", Kind.VOLUME, f"red/{WORDS}"), f"found '{WORDS}'", None, (), (), loses
    )
    shown = render.text(Plan((action, action)))
    assert len(shown.split("\n")) == 9
    _require_obeyed_by_nobody(shown)


def test_a_chart_has_one_line_for_each_span() -> None:
    shown = chart([Span(f"volume red/{WORDS}", 0, 1), Span("x" * 500, 1, 2, (f"volume red/{WORDS}",))])
    assert len(shown.split("\n")) == 4
    assert max(map(len, shown.split("\n"))) < 200
    _require_obeyed_by_nobody(shown)


def _named() -> Any:
    tenant = LAB.tenants[0]
    return replace(
        LAB, name=NAME, tenants=(replace(tenant, guests=(replace(tenant.guests[0], name=NAME),), flows=()),)
    )


def test_dot_is_quoted() -> None:
    shown = graph.dot(_named())
    assert "told" in shown
    _require_obeyed_by_nobody(shown)
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", shown)
    assert '"' not in bare
    assert "told" not in bare


def test_mermaid_is_quoted() -> None:
    shown = graph.mermaid(_named())
    assert "told" in shown
    _require_obeyed_by_nobody(shown)
    bare = re.sub(r'"[^"\n]*"', "", shown)
    assert "told" not in bare
    assert "<b>" not in shown


def test_the_last_words_of_a_silent_guest_stand_behind_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such output once made the renderer raise, and the run passed."""
    guest = LAB.guests[0]
    words = f"{WORDS}\r\nends in \\[/x]".encode()
    silent = Action(Verb.RESTART, Key(guest.node, Kind.GUEST, guest.label), "-", None, (), ("state",))
    monkeypatch.setattr(observe, "plan", lambda *_: Plan((silent,)))
    lab: Any = SimpleNamespace(
        topology=LAB, desired={}, places=[], nodes={guest.node: SimpleNamespace(console=lambda *_: words)}
    )
    with terminal.ERR.capture() as said:
        assert guest_recovery.restart_crashed_guests(lab, terminal.say) == (guest.label,)
    shown = said.get()
    _require_obeyed_by_nobody(shown)
    assert shown.split("\n")[-2].endswith("| ends in \\[/x]")
    assert "| ::error::said by a guest" in shown
