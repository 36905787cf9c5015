"""Each phase of the probe's program has a typed request, and no other exists."""

from __future__ import annotations

from typing import get_args, get_type_hints

from testbed.payload.probe import main
from testbed.verify.probe.requests import Request, Start, Stop


def test_the_requests_are_those_that_the_program_answers() -> None:
    phases = [get_args(get_type_hints(kind)["phase"]) for kind in (*get_args(Request), Stop)]
    signals = {name for names in main._SIGNALS.values() for name in names}
    known = {"listen", "glance", "finish", "stop", *signals, *main._SENDERS}
    assert {phase for found in phases for phase in found} == known
    assert get_args(get_type_hints(Start)["phase"]) == ("start",)
