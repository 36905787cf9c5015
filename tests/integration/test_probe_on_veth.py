"""The probe with real packets: two network namespaces joined by a pair of virtual interfaces."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.errors import InstrumentError
from testbed.model.policy import ReachMatrix, endpoints
from testbed.model.resolve import resolve
from testbed.model.testbed import Guest, Testbed
from testbed.spec.schema import Spec
from testbed.verify import network
from testbed.verify.network import compose, observe, reach

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


class Wire:
    """As much of a fleet as the network probes need: two guests, played by network namespaces."""

    def __init__(self, lab: Testbed, folder: Path) -> None:
        self.testbed, self.matrix, self.folder, self.pids = lab, ReachMatrix.of(lab), folder, dict[str, int]()
        self.recorders: dict[str, int] = {}
        self.kill_before = ""

    def run(self, guest: str, *argv: str, stdin: bytes = b"") -> bytes:
        command = ["nsenter", "-t", str(self.pids[guest]), "-n", "-m", *argv]
        return subprocess.run(command, input=stdin, check=True, capture_output=True, timeout=90).stdout

    def in_guest(self, guest: Guest, argv: list[str], stdin: bytes = b"", timeout: float = 90) -> bytes:
        phase = re.search(rb'"phase": "(\w+)"', stdin)[1].decode()  # type: ignore[index]
        if phase == self.kill_before and guest.name == "db":
            os.kill(self.recorders[guest.label], signal.SIGKILL)
        folder = json.dumps(str(self.folder / guest.domain)).encode()
        program = stdin.replace(b'main(json.loads(\'{', b'main(json.loads(\'{"folder": ' + folder + b", ")
        try:
            answer = self.run(guest.label, sys.executable, "-", stdin=program)
        except subprocess.CalledProcessError as error:
            raise InstrumentError("probe", fact=error.stderr.decode() + error.stdout.decode(), remedy="-") from error
        self.recorders[guest.label] = json.loads(answer).get("pid", self.recorders.get(guest.label, 0))
        return answer


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    tenant = {
        "networks": {"app": "10.99.0.0/24"},
        "guests": {"web": {}, "db": {}},
        "allow": ["web -> db tcp/5432", "web -> db udp/53", "web -> db icmp"],
    }
    spec = {"version": 1, "name": "veth", "nodes": {"node-a": {}}, "tenants": {"red": tenant}}
    made = Wire(resolve(Spec.model_validate(spec)), tmp_path)
    ends = endpoints(made.testbed)
    holders = []
    try:
        for end in ends:
            program = "mount -t sysfs sys /sys; echo ready; exec sleep 600"
            holder = subprocess.Popen(["unshare", "--net", "--mount", "sh", "-c", program], stdout=subprocess.PIPE)
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
            folder = str(tmp_path / end.guest.replace("/", "."))
            request: dict[str, object] = {"phase": "stop", "token": "tb-clean-", "folder": folder}
            made.run(end.guest, sys.executable, "-", stdin=compose(request))
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def _missing(wire: Wire) -> set[str]:
    return {f"{cell.source.name} {cell.service}" for cell, arrived in reach(wire) if not arrived}  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_WINDOW", 0.5)


def test_everything_arrives_on_an_open_wire(wire: Wire) -> None:
    """Without a wall, every probe of both directions arrives, and every control works."""
    assert _missing(wire) == set()


def test_a_dead_recorder_is_noticed(wire: Wire) -> None:
    """Silence of a recorder that was killed proves nothing."""
    wire.kill_before = "collect"
    with pytest.raises(InstrumentError, match="recorder in red/db cannot vouch"):
        reach(wire)  # type: ignore[arg-type]


def test_a_false_sender_is_seen_where_nothing_stops_it(wire: Wire) -> None:
    """A frame with another sender's MAC address counts as arrived."""
    web, db = endpoints(wire.testbed)
    fields = {"kind": "tcp-syn", "ip": str(db.address), "target_mac": db.mac, "port": 5432}
    probes = [network.Probe("honest", web, fields), network.Probe("forged", web, {**fields, "source_mac": "0e:00:00:00:00:01"})]
    seen = observe(wire, probes)  # type: ignore[arg-type]
    assert seen.arrived("honest", db.guest)
    assert seen.arrived("forged", db.guest)
