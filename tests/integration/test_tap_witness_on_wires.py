"""The recorder on the near ends of guests' wires: it sees frames that a guest conceals.

It fails loudly.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checks.support.lying_guest import liar
from testbed.errors import InstrumentError
from testbed.model.reachability import Cell, endpoints
from testbed.payload.probe.frame_parser import find_token
from testbed.verify.observation import observe as network
from testbed.verify.observation import tap_witness
from testbed.verify.observation.arrivals import matrix_probes, reach
from testbed.verify.observation.observe import observe
from testbed.verify.observation.tap_witness import arrived_so_far, require_agreement
from testbed.verify.probe.client import Probe, in_guest, on_machine
from testbed.verify.probe.frames import of_cell
from testbed.verify.probe.tokens import Tokens
from tests.wire import Wire

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
Answer = dict[str, Any]


def _raw(wire: Wire) -> Probe:
    source, target = endpoints(wire.topology)
    return Probe("raw", source, {}, of_cell(Cell(source, target, "raw", None, allowed=False, reason="-")))


def _without(kind: str) -> Callable[[str, Answer], Answer]:
    """Return the answers of a guest that conceals some frames, as a function."""

    def lie(_: str, answer: Answer) -> Answer:
        records = [item for item in answer.get("records", []) if f"-{kind}" not in item["token"]]
        seen = [token for token in answer.get("seen", []) if f"-{kind}" not in token]
        return {
            **answer,
            **({"records": records} if "records" in answer else {}),
            **({"seen": seen} if "seen" in answer else {}),
        }

    return lie


def test_what_a_guest_conceals_its_node_has_seen(wire: Wire) -> None:
    """Frames that two colluding guests exchange and conceal are found by their node.

    No other frame is reported as concealed.
    """
    _, db = endpoints(wire.topology)
    wire.lie = _without("raw")
    seen = observe(wire, [_raw(wire)])  # type: ignore[arg-type]
    assert seen.arrivals("raw") == {db.guest: f"{db.guest} (which conceals it)"}
    assert seen.concealed() == {db.guest: {"raw"}}
    with pytest.raises(InstrumentError, match="red/db conceals 1 frames"):
        require_agreement(seen, ["raw"])


def test_the_guest_of_the_breach_conceals_cells_and_nothing_else(wire: Wire, tmp_path: Path) -> None:
    """The breach replaces the guest's recorder; only the node's recorder reports the cells.

    Both see the controls.
    """
    web, db = endpoints(wire.topology)
    script = tmp_path / "liar"
    script.write_text(liar(sys.executable))
    script.chmod(0o755)
    wire.pythons[db.guest] = str(script)
    cells = wire.matrix.cells
    probes = [*matrix_probes(cells), _raw(wire)]
    seen = observe(wire, probes)  # type: ignore[arg-type]
    concealed = seen.concealed()
    assert concealed.keys() == {db.guest}
    assert concealed[db.guest] >= {probe.mark for probe in matrix_probes(cells) if probe.sender == web}
    assert "raw" not in concealed[db.guest]
    assert [str(cell) for cell, arrived in reach(cells, seen) if not arrived] == []


def test_every_cell_is_seen_by_both(wire: Wire) -> None:
    """The node's recorder sees all protocols of the matrix, in both directions, as guests do."""
    cells = wire.matrix.cells
    seen = observe(wire, matrix_probes(cells))  # type: ignore[arg-type]
    assert (seen.concealed(), seen.past()) == ({}, {})
    require_agreement(seen, [probe.mark for probe in matrix_probes(cells)])
    wire.lie = _without("cell")
    concealed = observe(wire, matrix_probes(cells))  # type: ignore[arg-type]
    assert [str(cell) for cell, arrived in reach(cells, concealed) if not arrived] == []


def test_a_deaf_guest_is_a_doubt_and_no_wall(wire: Wire) -> None:
    """Frames that the node handed to a deaf guest count; without those, the run is inconclusive."""
    _, db = endpoints(wire.topology)
    wire.lie = lambda label, answer: (
        {**answer, "records": []} if label == db.guest and "records" in answer else answer
    )
    with pytest.raises(InstrumentError, match="does not work before the probes"):
        observe(wire, [_raw(wire)])  # type: ignore[arg-type]
    seen = observe(wire, [_raw(wire)], doubts=True)  # type: ignore[arg-type]
    assert seen.sightings("raw") == [db.guest]
    with pytest.raises(InstrumentError, match="does not work before the probes"):
        require_agreement(seen, [])


def test_a_path_past_the_node_is_found_and_a_made_up_one_is_not(wire: Wire) -> None:
    """A secret token of the sender has arrived by some path; a made-up token by none."""
    web, db = endpoints(wire.topology)
    wire.switch.aside = lambda frame: frame[12:14] == b"\x88\xb5"
    seen = observe(wire, [_raw(wire)])  # type: ignore[arg-type]
    assert seen.arrivals("raw") == {db.guest: f"{db.guest} (by a path that its node does not see)"}
    assert seen.past() == {db.guest: {"raw"}}
    wire.switch.wall = wire.switch.aside

    def made_up(_: str, answer: Answer) -> Answer:
        found = (find_token(item["token"].encode(), "tb-")[:12] for item in answer.get("records", []))
        prefix = next(filter(None, found), "")
        own = {"kind": "raw", "token": Tokens(prefix, b"a guess").of("raw"), "mac": web.mac, "label": "app"}
        return {**answer, "records": [*answer["records"], own]} if "records" in answer else answer

    wire.lie = made_up
    seen = observe(wire, [_raw(wire)])  # type: ignore[arg-type]
    assert any("-raw-" in str(item["token"]) for item in seen.told[db.guest])
    assert (seen.sightings("raw"), seen.past()) == ([], {})


def test_what_a_guest_sends_was_not_handed_to_it(wire: Wire) -> None:
    web, db = endpoints(wire.topology)
    seen = observe(wire, [_raw(wire)])  # type: ignore[arg-type]
    for own, other in ((web, db), (db, web)):
        assert own.mac not in {record["mac"] for record in seen.seen[own.guest]}
        assert own.mac in {record["mac"] for record in seen.seen[other.guest]}


def test_what_comes_in_meanwhile_is_asked_of_nodes(wire: Wire) -> None:
    """A disruption ends when a frame has got through, although its receiver does not report it."""
    found: list[set[str]] = []

    def meanwhile(tokens: Tokens) -> None:
        found.append(arrived_so_far(wire, tokens, ["raw"]))  # type: ignore[arg-type]
        end = time.monotonic() + 10
        while not found[-1] and time.monotonic() < end:
            found.append(arrived_so_far(wire, tokens, ["raw"]))  # type: ignore[arg-type]

    wire.lie = _without("raw")
    observe(wire, (), network.Attack([_raw(wire)], 60, meanwhile))  # type: ignore[arg-type]
    assert found[-1] == {"raw"}


@pytest.mark.parametrize(("lie", "match"), [
    ({"dropped": 1}, "the recorder in node-a cannot vouch for the whole window"),
    ({"overflowed": True}, "the recorder in node-a cannot vouch for the whole window"),
    ({"down": ["tap"]}, "the recorder in node-a cannot vouch for the whole window"),
    ({"records": []}, "a node's recorder did not hear the controls that guests heard"),
])  # fmt: skip
def test_a_node_that_cannot_vouch_for_the_window_proves_nothing(wire: Wire, lie: Answer, match: str) -> None:
    wire.node.lie = lambda answer: {**answer, **lie} if "records" in answer else answer
    with pytest.raises(InstrumentError, match=match):
        observe(wire, [_raw(wire)], doubts=True)  # type: ignore[arg-type]


def test_a_recorder_that_dies_beside_the_guests_is_noticed(wire: Wire) -> None:
    def kill(_: Tokens) -> None:
        program = os.pidfd_open(wire.node.program)
        signal.pidfd_send_signal(program, signal.SIGKILL)
        select.select([program], [], [], 10)

    with pytest.raises(InstrumentError, match="node-a"):
        observe(wire, (), network.Attack((), 60, kill))  # type: ignore[arg-type]


def test_a_tap_that_goes_away_is_noticed(wire: Wire) -> None:
    """The tap goes down and comes back: frames in between were not recorded."""
    _, name = wire.node.names.values()

    def blink(_: Tokens) -> None:
        for state in ("down", "up"):
            subprocess.run(["ip", "link", "set", name, state], check=True)
        time.sleep(2)

    with pytest.raises(InstrumentError, match="the recorder in node-a cannot vouch"):
        observe(wire, (), network.Attack((), 60, blink), doubts=True)  # type: ignore[arg-type]


def test_a_tap_that_is_not_there_is_told(wire: Wire) -> None:
    tap = wire.topology.guests[0].nics[0].tap
    wire.node.names[tap] = "tbwnone"
    with pytest.raises(InstrumentError, match="node-a cannot record what it hands to its guests") as caught:
        tap_witness.listen(wire, "tb-0123abcd-")  # type: ignore[arg-type]
    assert tap in caught.value.fact


def test_a_flood_stays_in_the_kernel(wire: Wire) -> None:
    """A flood at or from a guest costs its node no copy; a frame with a token is found in it."""
    web, db = endpoints(wire.topology)
    guest = next(guest for guest in wire.topology.guests if guest.label == web.guest)
    node, tokens = on_machine(wire, wire.node), Tokens.fresh()  # type: ignore[arg-type]
    taps = [nic.tap for guest in wire.topology.guests for nic in guest.nics]
    node.listen({"phase": "listen", "token": tokens.prefix, "taps": taps})
    head = bytes.fromhex((db.mac + web.mac).replace(":", "")) + b"\x88\xb5"
    line = {"mac": web.mac, "frame": head.ljust(1400, b"x").hex()}
    asked = {"phase": "stream", "probes": [line], "duration": 1, "spacing": 0}
    sent = in_guest(wire, guest).ask(asked)["sent"]  # type: ignore[arg-type]
    last = {"mac": web.mac, "frame": (head + tokens.of("last").encode()).hex()}
    in_guest(wire, guest).ask({**asked, "probes": [last], "rounds": 20, "pause": 0.1})  # type: ignore[arg-type]
    state = node.ask({"phase": "finish", "token": tokens.prefix})
    assert sent > 1000
    # The kernels' own frames, such as those that a new interface sends, may be copied; the flood is not.
    assert state["ignored"] < sent / 100
    assert (state["dropped"], state["overflowed"]) == (0, False)
    assert [item["label"] for item in state["records"] if item["token"] == tokens.of("last")] == [taps[1]]
