"""The probe with real packets: two network namespaces joined by a pair of virtual interfaces."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.model.policy import Cell, ReachMatrix, endpoints
from testbed.model.resolve import resolve
from testbed.model.testbed import Testbed
from testbed.spec.schema import Spec
from testbed.verify.reach import (
    ReachObservation,
    compose,
    mac_variants,
    new_token,
    observe_reach,
    observe_spoof,
    why_inconclusive,
    why_spoof_inconclusive,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root and nft"),
]


class Wire:
    """Two guests, played by network namespaces."""

    def __init__(self, lab: Testbed, folder: Path) -> None:
        self.lab, self.folder, self.pids = lab, folder, dict[str, int]()
        self.recorders: dict[str, int] = {}
        self.kill_before = ""

    def run(self, guest: str, *argv: str, stdin: bytes = b"") -> bytes:
        command = ["nsenter", "-t", str(self.pids[guest]), "-n", *argv]
        return subprocess.run(command, input=stdin, check=True, capture_output=True, timeout=90).stdout

    def execute(self, guest: str, phase: str, request: dict[str, Any]) -> dict[str, Any]:
        if phase == self.kill_before and guest == "red/db":
            os.kill(self.recorders[guest], signal.SIGKILL)
        request = {**request, "folder": str(self.folder / guest.replace("/", "."))}
        try:
            answer: dict[str, Any] = json.loads(self.run(guest, sys.executable, "-", stdin=compose(request)))
        except subprocess.CalledProcessError as error:
            raise InstrumentError("probe", fact=error.stderr.decode() + error.stdout.decode(), remedy="-") from error
        self.recorders[guest] = answer.get("pid", self.recorders.get(guest, 0))
        return answer

    def drop(self, rule: str) -> None:
        text = f"table netdev t {{ chain c {{ type filter hook egress device nic0 priority 0; {rule} drop; }}; }}"
        self.run("red/web", "nft", "-f", "-", stdin=text.encode())


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    tenant = {
        "networks": {"app": "10.99.0.0/24"},
        "guests": {"web": {}, "db": {}},
        "allow": ["web -> db tcp/5432", "web -> db udp/53", "web -> db icmp"],
    }
    spec = {"version": 1, "name": "veth", "nodes": {"node-a": {}}, "tenants": {"red": tenant}}
    made = Wire(resolve(Spec.model_validate(spec)), tmp_path)
    ends = endpoints(made.lab)
    holders = []
    try:
        for end in ends:
            holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo ready; exec sleep 600"], stdout=subprocess.PIPE)
            holders.append(holder)
            assert holder.stdout is not None
            holder.stdout.readline()
            made.pids[end.guest] = holder.pid
        first, second = ends
        peer = ["peer", "name", "nic0", "netns", str(made.pids[second.guest])]
        made.run(first.guest, "ip", "link", "add", "nic0", "type", "veth", *peer)
        for end in ends:
            made.run(end.guest, "ip", "link", "set", "nic0", "address", end.mac, "up")
            made.run(end.guest, "ip", "addr", "add", f"{end.address}/24", "dev", "nic0")
        yield made
        for end in ends:
            made.execute(end.guest, "stop", {"phase": "stop", "token": "tb-clean-"})
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def _observe(wire: Wire) -> tuple[ReachObservation, dict[str, Cell]]:
    matrix = ReachMatrix.of(wire.lab)
    observation = observe_reach(wire.lab, matrix, wire.execute, new_token(), window=0.5)
    return observation, {f"{cell.source.name} {cell.service}": cell for cell in matrix.cells}


def test_everything_arrives_on_an_open_wire(wire: Wire) -> None:
    """Without a wall, every probe of both directions arrives and every control works."""
    observation, cells = _observe(wire)
    assert all(observation.controls_before.values())
    assert all(observation.controls_after.values())
    assert {name for name, cell in cells.items() if not observation.sights[cell].arrived} == set()
    assert all(receiver.alive and receiver.heard_control for receiver in observation.receivers.values())


def test_a_dropped_frame_is_a_sound_negative(wire: Wire) -> None:
    """What a filter drops did not arrive, and that counts; everything else still arrives."""
    wire.drop("tcp dport 7")
    observation, cells = _observe(wire)
    assert {name for name, cell in cells.items() if not observation.sights[cell].arrived} == {"web tcp/7"}
    assert why_inconclusive(observation, cells["web tcp/7"]) is None


def test_a_dead_recorder_is_noticed(wire: Wire) -> None:
    """Silence of a recorder that was killed proves nothing."""
    wire.drop("tcp dport 7")
    wire.kill_before = "collect"
    observation, cells = _observe(wire)
    assert not observation.receivers["red/db"].alive
    assert "recorder of red/db" in (why_inconclusive(observation, cells["web tcp/7"]) or "")


def test_a_cut_wire_is_inconclusive(wire: Wire) -> None:
    """If nothing at all passes, no denied cell passes for it."""
    wire.drop("meta protocol ip")
    observation, cells = _observe(wire)
    assert not any(observation.controls_before.values())
    assert "heard no control" in (why_inconclusive(observation, cells["web tcp/7"]) or "")


@pytest.mark.parametrize("pinned", [True, False])
def test_false_senders_are_told_from_true_ones(wire: Wire, *, pinned: bool) -> None:
    """With the MAC pinned, false senders are soundly absent; without, they are seen."""
    web, db = endpoints(wire.lab)
    if pinned:
        wire.drop(f"ether saddr != {web.mac}")
    variants = mac_variants(web, db)
    observation = observe_spoof(wire.lab, wire.execute, new_token(), web.guest, db.guest, variants, window=0.5)
    assert observation.before
    assert observation.after
    assert [observation.sights[spoof].arrived for spoof in variants] == [not pinned] * len(variants)
    assert [why_spoof_inconclusive(observation, spoof) for spoof in variants] == [None] * len(variants)
