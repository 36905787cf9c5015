"""A frame counts as stopped when it has had its time to arrive, and when those who should have seen it are
heard of afterwards.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.model.reachability import Cell, endpoints
from testbed.verify.observation.observe import observe
from testbed.verify.probe.client import WINDOW, Instrument, Probe, in_guest, lines
from testbed.verify.probe.frames import of_cell
from testbed.verify.probe.tokens import Tokens
from tests.wire import Wire

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

TOKENS = Tokens("tb-test-", b"key")


def _raw(wire: Wire) -> Probe:
    source, target = endpoints(wire.testbed)
    return Probe("raw", source, {}, of_cell(Cell(source, target, "raw", None, allowed=False, reason="-")))


def _is_raw(frame: bytes) -> bool:
    return frame[12:14] == b"\x88\xb5"


def test_a_frame_that_is_late_by_almost_the_window_is_seen(wire: Wire) -> None:
    _, db = endpoints(wire.testbed)
    wire.switch.late = lambda frame: 0.9 * WINDOW * _is_raw(frame)
    assert observe(wire, [_raw(wire)]).sightings("raw") == [db.guest]  # type: ignore[arg-type]


def test_who_goes_deaf_within_the_window_is_noticed(wire: Wire) -> None:
    """What comes in then would have been missed."""
    since: list[float] = []

    def deaf(frame: bytes) -> bool:
        if _is_raw(frame):
            since.append(time.monotonic())
        return bool(since) and time.monotonic() > since[0] + 0.9 * WINDOW

    wire.switch.wall = deaf
    with pytest.raises(InstrumentError, match="does not work after the probes"):
        observe(wire, [_raw(wire)])  # type: ignore[arg-type]


def test_a_recorder_waits_for_the_last_controls_and_for_no_more_than_a_while(wire: Wire) -> None:
    guests = {guest.label: in_guest(wire, guest) for guest in wire.testbed.guests}  # type: ignore[arg-type]
    web, db = (guests[end.guest] for end in endpoints(wire.testbed))
    seconds, answer = _finished(wire, web, db, [["tb-test-raw-", "tb-test-other-"]])
    assert TOKENS.of("raw") in [record["token"] for record in answer["records"]]
    assert 0.4 < seconds < 3
    seconds, answer = _finished(wire, web, db, [["tb-test-raw-"], ["tb-test-other-"]])
    assert TOKENS.of("raw") in [record["token"] for record in answer["records"]]
    assert 3 < seconds < 5


def _finished(
    wire: Wire, sender: Instrument, receiver: Instrument, awaited: list[list[str]]
) -> tuple[float, Mapping[str, Any]]:
    """Return how long a receiver takes to finish that is sent one frame after half a second, and its
    answer.
    """
    _, end = endpoints(wire.testbed)
    nics = [{"label": "app", "mac": end.mac, "address": str(end.address), "address6": ""}]
    receiver.listen({"phase": "listen", "token": "tb-test-", "interfaces": nics, "patience": 10})
    probe = {**lines([_raw(wire)], TOKENS)[0], "delay": 0.5}
    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as pool:
        sending = pool.submit(sender.ask, {"phase": "send", "probes": [probe]})
        answer = receiver.ask({"phase": "finish", "token": "tb-test-", "awaited": awaited, "patience": 3})
        sending.result()
    return time.monotonic() - started, answer
