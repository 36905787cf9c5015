"""The probe with real packets: two network namespaces, and between them a wire that can drop what it is told to."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from checks.forgeries import flood, forgeries
from checks.scenes import scenes
from testbed.errors import InstrumentError
from testbed.guest import wire as messages
from testbed.guest.recorder import NOISE
from testbed.model.policy import Cell, ReachMatrix, endpoints
from testbed.model.resolve import resolve
from testbed.model.testbed import Guest, Testbed
from testbed.spec.schema import Spec
from testbed.verify import network, pipes, probing
from testbed.verify.agent import Files
from testbed.verify.frames import Frame, arp_reply, framed, of_cell, syn
from testbed.verify.network import observe
from testbed.verify.observation import matrix_probes, reach
from testbed.verify.pipes import FOLDER
from testbed.verify.probing import Probe, end_all
from tests.local_agent import LocalAgent

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


ROOT = Path(__file__).parents[2]
_NUMBERS = count()
_SOL_PACKET, _IGNORE_OUTGOING, _VNET_HEADER = 263, 23, 15
_HEADER = 10  # octets of virtio_net_hdr, which carries checksums that the sender has left to its hardware


class Switch(threading.Thread):
    """Carries frames between two interfaces of this namespace, except those that a wall stops."""

    def __init__(self, names: tuple[str, str]) -> None:
        super().__init__(daemon=True)
        self.wall: Callable[[bytes], bool] = lambda _: False
        self.stopped = 0
        self.ending = False
        self.ends = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW) for _ in names]
        for end, name in zip(self.ends, names, strict=True):
            end.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            end.setsockopt(_SOL_PACKET, _VNET_HEADER, 1)
            end.bind((name, 3))

    def run(self) -> None:
        while not self.ending:
            for end in select.select(self.ends, [], [], 0.1)[0]:
                frame = end.recv(70000)
                if self.wall(frame[_HEADER:]):
                    self.stopped += 1
                else:
                    with suppress(OSError):  # a full queue loses frames, as a wire does
                        self.ends[1 - self.ends.index(end)].send(frame)


class Counters:
    """Reads what has come in from a guest, as a node's taps count it."""

    name = "node-a"

    def __init__(self, names: dict[str, str]) -> None:
        self.names, self.lost = names, 0

    def read(self, command: str, timeout: float = 30) -> str:
        if "dpctl" in command:
            taps = "".join(f"\n{path}:0" for path in re.findall(r"/sys/\S+", command))
            return f"  lookups: hit:1 missed:2 lost:{self.lost}{taps}"
        own = re.sub("|".join(self.names), lambda tap: self.names[tap[0]], command)
        return subprocess.run(["sh", "-c", own], check=True, capture_output=True, text=True, timeout=timeout).stdout.strip()


class Wire:
    """As much of a fleet as the network probes need: two guests, played by network namespaces."""

    def __init__(self, lab: Testbed, folder: Path) -> None:
        self.testbed, self.matrix, self.folder, self.pids = lab, ReachMatrix.of(lab), folder, dict[str, int]()
        self.programs: dict[str, int] = {}
        self.evidence = SimpleNamespace(record=lambda *_: None)
        self.instruments: dict[str, Any] = {}
        self.kill_before = ""
        self.switch: Switch
        self.counters: Counters

    def everywhere(self, do: Callable[[Any], object]) -> dict[str, object]:
        return {self.counters.name: do(self.counters)}

    def run(self, guest: str, *argv: str, stdin: bytes = b"") -> bytes:
        command = ["nsenter", "-t", str(self.pids[guest]), "-n", "-m", *argv]
        return subprocess.run(command, input=stdin, check=True, capture_output=True, timeout=90).stdout

    def files_of(self, guest: Guest) -> Files:
        own = str(self.folder / guest.domain)
        files = Files(LocalAgent(lambda path: path.replace(FOLDER, own)), guest)
        plain = files.write

        def write(path: str, text: bytes) -> bool:
            if self.kill_before and messages.unpack(text.strip())["phase"] == self.kill_before and guest.name == "db":
                program = os.pidfd_open(self.programs[guest.label])
                signal.pidfd_send_signal(program, signal.SIGKILL)
                select.select([program], [], [], 10)
            return plain(path, text)

        files.write = write  # type: ignore[method-assign]
        return files

    def in_guest(self, guest: Guest, argv: list[str], stdin: bytes = b"", timeout: float = 90) -> bytes:
        """Start the probe; everything else goes through files."""
        assert argv[0] == "/usr/bin/python3"
        own = str(self.folder / guest.domain)
        stdin = zlib.compress(zlib.decompress(stdin).replace(FOLDER.encode(), own.encode()))
        answer = self.run(guest.label, sys.executable, *argv[1:], stdin=stdin)
        self.programs[guest.label] = json.loads(answer)["pid"]
        return answer


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    tenant = {
        "networks": {"app": ["10.99.0.0/24", "fd00:99::/64"]},
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
        names = (f"tbw{os.getpid()}n{next(_NUMBERS)}", f"tbw{os.getpid()}n{next(_NUMBERS)}")
        for name, end in zip(names, ends, strict=True):
            peer = ["peer", "name", "nic0", "netns", str(made.pids[end.guest])]
            subprocess.run(["ip", "link", "add", name, "type", "veth", *peer], check=True)
            subprocess.run(["ip", "link", "set", name, "promisc", "on", "up"], check=True)
        made.switch = Switch(names)
        made.counters = Counters(dict(zip((guest.nics[0].tap for guest in made.testbed.guests), names, strict=True)))
        made.switch.start()
        for end in ends:
            made.run(end.guest, "ip", "link", "set", "nic0", "address", end.mac, "up")
            made.run(end.guest, "ip", "addr", "add", f"{end.address}/24", "dev", "nic0")
            made.run(end.guest, "ip", "addr", "add", f"{end.address6}/64", "dev", "nic0", "nodad")
        yield made
        end_all(made)  # type: ignore[arg-type]
        made.switch.ending = True
        made.switch.join()
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def _missing(wire: Wire) -> set[str]:
    return {f"{cell.source.name} {cell.service}" for cell, arrived in _reach(wire) if not arrived}


def _reach(wire: Wire) -> list[tuple[Cell, bool]]:
    cells = wire.matrix.cells
    return reach(cells, observe(wire, matrix_probes(cells)))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "WINDOW", 0.5)
    monkeypatch.setattr(network, "_PATIENCE", 3)
    monkeypatch.setattr(pipes, "_DOUBT", 0.5)
    monkeypatch.setattr(network, "_CONTROL", {"timeout": 1, "repeat": 2, "spacing": 0.1})


def test_everything_arrives_on_an_open_wire(wire: Wire) -> None:
    """Without a wall, every probe of both directions arrives, and every control works."""
    assert _missing(wire) == set()


def test_what_leaves_is_not_recorded_as_having_come_in(wire: Wire) -> None:
    """A frame on its way out has arrived nowhere, and costs its sender's recorder nothing."""
    web, db = endpoints(wire.testbed)
    seen = observe(wire, matrix_probes(wire.matrix.cells))  # type: ignore[arg-type]
    for own, other in ((web, db), (db, web)):
        assert own.mac not in {record["mac"] for record in seen.records[own.guest]}
        assert own.mac in {record["mac"] for record in seen.records[other.guest]}


def test_a_switch_that_loses_frames_is_no_wall(wire: Wire) -> None:
    """What a crowded switch has dropped says nothing about its rules."""

    def crowd(frame: bytes) -> bool:
        wire.counters.lost += _is_raw(frame)
        return _is_raw(frame)

    wire.switch.wall = crowd
    with pytest.raises(InstrumentError, match="node-a lost frames by crowding"):
        _reach(wire)


def test_a_dead_recorder_is_noticed(wire: Wire) -> None:
    """Silence of a recorder that was killed proves nothing."""
    wire.kill_before = "finish"
    with pytest.raises(InstrumentError, match="the probe does not run"):
        _reach(wire)


def _is_icmp_of(mac: str) -> Callable[[bytes], bool]:
    return lambda frame: frame[12:14] == b"\x08\0" and frame[23] == 1 and frame[6:12].hex(":") == mac


def test_a_dropped_frame_is_missed_at_the_receiver_and_nothing_else_is(wire: Wire) -> None:
    """A wall on the wire stops what one guest pings; it leaves its sender, so only the receiver can tell."""
    web, _ = endpoints(wire.testbed)
    wire.switch.wall = _is_icmp_of(web.mac)
    assert _missing(wire) == {"web icmp"}
    assert wire.switch.stopped > 0
    wire.switch.wall = lambda _: False
    assert _missing(wire) == set()


def _is_segment6(frame: bytes) -> bool:
    return frame[12:14] == b"\x86\xdd" and frame[20] == 6


def test_a_family_that_is_dead_is_no_wall(wire: Wire) -> None:
    """A declared flow must work over IPv6 as well, or what IPv6 does not carry proves nothing."""
    wire.switch.wall = _is_segment6
    with pytest.raises(InstrumentError, match="tcp/5432 over IPv6 does not work before the probes"):
        _reach(wire)


def _is_solicitation_for(address: bytes) -> Callable[[bytes], bool]:
    return lambda frame: frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 135 and frame[62:78] == address


def test_an_unanswered_question_for_a_neighbour_is_missed(wire: Wire) -> None:
    """Who is asked for and does not hear it, and whose answer is not heard, is not resolved; the other way still works."""
    web, db = endpoints(wire.testbed)
    assert web.address6 is not None
    wire.run(db.guest, "ip", "neigh", "replace", str(web.address6), "lladdr", web.mac, "dev", "nic0")
    wire.switch.wall = _is_solicitation_for(web.address6.packed)
    assert _missing(wire) == {"db nd"}


def test_a_wire_that_carries_nothing_is_no_wall(wire: Wire) -> None:
    """If the declared flow does not work either, silence proves nothing."""
    wire.switch.wall = lambda _: True
    with pytest.raises(InstrumentError, match="the declared flow red/web -> red/db tcp/5432 does not work before the probes"):
        _reach(wire)


def _is_raw(frame: bytes) -> bool:
    return frame[12:14] == b"\x88\xb5"


def _strays(wire: Wire) -> list[Probe]:
    """Return a frame that only goes from one guest to the other, one for each."""
    ends = endpoints(wire.testbed)
    return [
        Probe(f"raw{source.name}", source, {}, of_cell(Cell(source, target, "raw", None, allowed=False, reason="-")))
        for source, target in permutations(ends)
    ]


def test_a_wall_that_opens_for_a_moment_leaks_for_that_moment(wire: Wire) -> None:
    """Frames that are sent over and over show when a wall was open, and for how long."""

    def a_moment(_: str) -> None:
        wire.switch.wall = lambda _: False
        time.sleep(2)
        wire.switch.wall = _is_raw

    wire.switch.wall = _is_raw
    seen = observe(wire, (), network.Attack(_strays(wire), 60, a_moment))  # type: ignore[arg-type]
    for mark in ("rawweb", "rawdb"):
        ((_, seconds, times),) = seen.windows(mark)
        assert 1 < seconds < 3
        assert times > 2


def test_an_attack_that_ends_too_early_is_noticed(wire: Wire) -> None:
    """What happens after the last frame was sent has not been watched."""
    attack = network.Attack(_strays(wire), 2, lambda _: time.sleep(3))
    with pytest.raises(InstrumentError, match="did not attack all the time"):
        observe(wire, (), attack)  # type: ignore[arg-type]


def test_a_false_sender_is_seen_where_nothing_stops_it(wire: Wire) -> None:
    """A frame with another sender's MAC address counts as arrived."""
    web, db = endpoints(wire.testbed)

    def segment(mac: str) -> Frame:
        return framed(Ether(src=mac, dst=db.mac), IP(src=str(web.address), dst=str(db.address)), syn(5432))

    frames = {"honest": segment(web.mac), "forged": segment("0e:00:00:00:00:01")}
    seen = observe(wire, [Probe(mark, web, {}, frame) for mark, frame in frames.items()])  # type: ignore[arg-type]
    assert seen.sightings("honest") == seen.sightings("forged") == [db.guest]


def test_every_forgery_is_seen_where_nothing_stops_it(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """No frame of an attack is lost by its sender or unreadable at its receiver: what a check does not see was stopped.

    A receiver that believed a lie finds its neighbour again when it has failed to reach it (RFC 4861, 7.3), and so do the controls.
    """
    monkeypatch.setattr(network, "_CONTROL", {"timeout": 5, "repeat": 5, "spacing": 0.1})
    lies = forgeries(wire)  # type: ignore[arg-type]
    assert {lie.control for lie in lies} == {"NET-02", "NET-03", "NET-04", "NET-05", "NET-06", "NET-07", "NET-08", "NET-11"}
    floods = [flood(scene) for scene in scenes(wire)]  # type: ignore[arg-type]
    seen = observe(wire, [*floods, *(lie.probe for lie in lies)])  # type: ignore[arg-type]
    assert [str(lie) for lie in lies if not seen.sightings(lie.mark)] == []


def test_a_flood_is_as_fast_as_it_goes(wire: Wire) -> None:
    """Without spacing, many more frames leave than with it; with a pause between rounds, one round for each."""
    web, _ = endpoints(wire.testbed)
    guest = next(guest for guest in wire.testbed.guests if guest.label == web.guest)
    line = {"mac": web.mac, "frame": (b"\xff" * 6 + bytes.fromhex(web.mac.replace(":", "")) + b"\x88\xb5").ljust(60, b"\0").hex()}
    wire.switch.wall = lambda _: True
    sent = []
    for timing in ({"spacing": 0.01}, {"spacing": 0}, {"spacing": 0, "pause": 0.1}):
        request = {"phase": "stream", "probes": [line], "duration": 1, **timing}
        sent.append(probing.in_guest(wire, guest).ask(request)["sent"])  # type: ignore[arg-type]
    assert 20 < sent[0] <= 101
    assert sent[1] > 5 * sent[0]
    assert 3 < sent[2] <= 11


def test_noise_is_not_read_and_everything_else_is(wire: Wire) -> None:
    """ARP as long as no honest ARP is stays in the kernel of who receives it; ARP of the usual length does not."""
    web, db = endpoints(wire.testbed)
    reply = framed(Ether(src=web.mac, dst=db.mac), arp_reply(web.mac, str(web.address), db))
    long = Probe("long", web, {}, lambda token: reply(token).ljust(NOISE + 1, b"\0") + token)
    seen = observe(wire, [long, Probe("short", web, {}, reply)])  # type: ignore[arg-type]
    assert (seen.sightings("long"), seen.sightings("short")) == ([], [db.guest])


def test_a_held_connection_is_used_until_a_wall_closes(wire: Wire) -> None:
    """What is sent after the turn has a name of its own, and shows whether the connection has outlived its rule."""
    web, db = endpoints(wire.testbed)
    guest = next(guest for guest in wire.testbed.guests if guest.label == web.guest)
    instrument = probing.in_guest(wire, guest)  # type: ignore[arg-type]
    closes = False

    def held(prefix: str) -> None:
        tokens = [f"{prefix}{mark}." for mark in ("holdearly", "holdlate")]
        request = {"phase": "hold", "mac": web.mac, "address": str(web.address), "ip": str(db.address), "port": 5432,
                   "tokens": tokens, "duration": 30, "spacing": 0.05}  # fmt: skip
        with ThreadPoolExecutor(max_workers=1) as pool:
            holding = pool.submit(instrument.ask, request)
            time.sleep(1)
            wire.switch.wall = lambda frame: closes and frame[12:14] == b"\x08\0" and frame[23] == 6
            instrument.ask({"phase": "turn"})
            time.sleep(1)
            instrument.ask({"phase": "release"})
            answers.append(holding.result()["answers"])
            wire.switch.wall = lambda _: False

    answers: list[list[int]] = []
    for closed in (False, True):
        closes = closed
        seen = observe(wire, (), network.Attack((), 60, held))  # type: ignore[arg-type]
        accepted = [str(record["token"]) for record in seen.records[db.guest] if record["kind"] == "tcp-accepted"]
        assert seen.token("holdearly") in accepted
        assert (seen.token("holdlate") in accepted) != closed
        assert answers[-1][0] > 3
        assert bool(answers[-1][1]) != closed


def test_a_throwaway_guest_sends_from_every_interface(wire: Wire) -> None:
    web, db = endpoints(wire.testbed)
    raw = Cell(web, db, "raw", None, allowed=False, reason="-")
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom testbed.guest.first import attack\n"

    def attacks(prefix: str) -> None:
        octets = of_cell(raw)(f"{prefix}first.".encode())
        wire.run(web.guest, sys.executable, "-c", f"{program}print(attack([bytes.fromhex({octets.hex()!r})], 1))")

    seen = observe(wire, (), network.Attack((), 60, attacks))  # type: ignore[arg-type]
    assert seen.sightings("first") == [db.guest]
