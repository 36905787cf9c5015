"""The probe with real packets: two network namespaces, and a wire that can drop frames."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, in4_pseudoheader
from scapy.layers.l2 import Ether
from scapy.utils import checksum

from checks.support.attacker_positions import positions
from checks.support.flood_scenario import Noise, burst_of
from checks.support.spoofed_frames import flood, forgeries
from testbed.errors import InstrumentError
from testbed.model.reachability import Cell, endpoints
from testbed.payload.probe.recorder import NOISE
from testbed.verify.observation import declared_flows
from testbed.verify.observation import observe as network
from testbed.verify.observation.arrivals import matrix_probes, reach
from testbed.verify.observation.observe import observe
from testbed.verify.probe import client
from testbed.verify.probe.client import Probe
from testbed.verify.probe.frames import Frame, arp_reply, framed, of_cell, syn
from testbed.verify.probe.tokens import Tokens
from tests.wire import Wire

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


ROOT = Path(__file__).parents[2]


def _missing(wire: Wire) -> set[str]:
    return {f"{cell.source.name} {cell.service}" for cell, arrived in _reach(wire) if not arrived}


def _reach(wire: Wire) -> list[tuple[Cell, bool]]:
    cells = wire.matrix.cells
    return reach(cells, observe(wire, matrix_probes(cells)))  # type: ignore[arg-type]


def test_everything_arrives_on_an_open_wire(wire: Wire) -> None:
    """Without a wall, every probe of both directions arrives, and every control works."""
    assert _missing(wire) == set()


def test_what_leaves_is_not_recorded_as_having_come_in(wire: Wire) -> None:
    """A frame on its way out has arrived nowhere, and costs its sender's recorder nothing."""
    web, db = endpoints(wire.topology)
    seen = observe(wire, matrix_probes(wire.matrix.cells))  # type: ignore[arg-type]
    for own, other in ((web, db), (db, web)):
        assert own.mac not in {record["mac"] for record in seen.records[own.guest]}
        assert own.mac in {record["mac"] for record in seen.records[other.guest]}


def test_a_switch_that_loses_frames_is_no_wall(wire: Wire) -> None:
    """Frames that an overloaded switch has dropped are no evidence about its rules."""

    def crowd(frame: bytes) -> bool:
        wire.node.lost += _is_raw(frame)
        return _is_raw(frame)

    wire.switch.wall = crowd
    with pytest.raises(InstrumentError, match="node-a lost frames by crowding"):
        _reach(wire)


def test_a_dead_recorder_is_noticed(wire: Wire) -> None:
    """Silence of a recorder that was killed proves nothing."""
    wire.kill_before = "finish"
    with pytest.raises(InstrumentError, match="the probe does not run"):
        _reach(wire)


def _is_of(number: int, *, six: bool = False) -> Callable[[bytes], bool]:
    """Return a predicate for frames of a protocol; Neighbor Discovery is not among them."""
    if six:
        return lambda frame: (
            frame[12:14] == b"\x86\xdd" and frame[20] == number and frame[54] not in (135, 136)
        )
    return lambda frame: frame[12:14] == b"\x08\0" and frame[23] == number


def test_a_dropped_frame_is_missed_at_the_receiver_and_nothing_else_is(wire: Wire) -> None:
    """A wall on the wire stops one kind of frames of one guest; only the receiver misses them.

    The frames leave their sender.
    """
    web, _ = endpoints(wire.topology)
    wire.switch.wall = lambda frame: (
        _is_raw(frame) and frame[6:12].hex(":") == web.mac and frame[:6] != frame[6:12]
    )
    assert _missing(wire) == {"web raw"}
    assert wire.switch.stopped > 0
    wire.switch.wall = lambda _: False
    assert _missing(wire) == set()


@pytest.mark.parametrize(
    ("service", "number", "six"),
    [("udp/53", 17, False), ("icmp", 1, False), ("udp/53 over IPv6", 17, True), ("icmp over IPv6", 58, True)],
)
def test_a_flow_of_any_protocol_that_is_dead_is_no_wall(
    wire: Wire, service: str, number: int, six: bool
) -> None:
    """Datagrams and echo requests are controls as connections are, in each family by itself."""
    wire.switch.wall = _is_of(number, six=six)
    with pytest.raises(
        InstrumentError,
        match=f"the declared flow red/web -> red/db {service} does not work before the probes",
    ):
        observe(wire, ())  # type: ignore[arg-type]


def _is_segment6(frame: bytes) -> bool:
    return frame[12:14] == b"\x86\xdd" and frame[20] == 6


def test_a_family_that_is_dead_is_no_wall(wire: Wire) -> None:
    """A declared flow must work over IPv6 as well, or what IPv6 does not carry proves nothing."""
    wire.switch.wall = _is_segment6
    with pytest.raises(InstrumentError, match="tcp/5432 over IPv6 does not work before the probes"):
        _reach(wire)


def _is_solicitation_for(address: bytes) -> Callable[[bytes], bool]:
    return lambda frame: (
        frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 135 and frame[62:78] == address
    )


def test_an_unanswered_question_for_a_neighbour_is_missed(wire: Wire) -> None:
    """A neighbour whose solicitation or advertisement is dropped is not resolved.

    The other direction still works.
    """
    web, db = endpoints(wire.topology)
    assert web.address6 is not None
    wire.run(db.guest, "ip", "neigh", "replace", str(web.address6), "lladdr", web.mac, "dev", "nic0")
    wire.switch.wall = _is_solicitation_for(web.address6.packed)
    assert _missing(wire) == {"db nd"}


def test_a_wire_that_carries_nothing_is_no_wall(wire: Wire) -> None:
    """If the declared flow does not work either, silence proves nothing."""
    wire.switch.wall = lambda _: True
    with pytest.raises(
        InstrumentError, match="the declared flow red/web -> red/db tcp/5432 does not work before the probes"
    ):
        _reach(wire)


def _is_raw(frame: bytes) -> bool:
    return frame[12:14] == b"\x88\xb5"


def _strays(wire: Wire) -> list[Probe]:
    """Return a frame that only goes from one guest to the other, one for each."""
    ends = endpoints(wire.topology)
    return [
        Probe(
            f"raw{source.name}",
            source,
            {},
            of_cell(Cell(source, target, "raw", None, allowed=False, reason="-")),
        )
        for source, target in permutations(ends)
    ]


def test_a_wall_that_opens_for_a_moment_leaks_for_that_moment(wire: Wire) -> None:
    """Frames that are sent over and over show when a wall was open, and for how long."""

    def a_moment(_: Tokens) -> None:
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
    """The time after the last frame of the attack has not been observed."""
    attack = network.Attack(_strays(wire), 2, lambda _: time.sleep(3))
    with pytest.raises(InstrumentError, match="did not attack all the time"):
        observe(wire, (), attack)  # type: ignore[arg-type]


def test_a_false_sender_is_seen_where_nothing_stops_it(wire: Wire) -> None:
    """A frame with another sender's MAC address counts as arrived."""
    web, db = endpoints(wire.topology)

    def segment(mac: str) -> Frame:
        return framed(Ether(src=mac, dst=db.mac), IP(src=str(web.address), dst=str(db.address)), syn(5432))

    frames = {"honest": segment(web.mac), "forged": segment("0e:00:00:00:00:01")}
    seen = observe(wire, [Probe(mark, web, {}, frame) for mark, frame in frames.items()])  # type: ignore[arg-type]
    assert seen.sightings("honest") == seen.sightings("forged") == [db.guest]


def test_every_forgery_is_seen_where_nothing_stops_it(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a wall, every frame of an attack arrives: a frame that a check misses was stopped.

    A receiver with a poisoned cache finds its neighbour again when it has failed to reach it (RFC 4861, 7.3),
    and so do the controls.
    """
    monkeypatch.setattr(declared_flows, "_CONTROL", {"timeout": 5, "repeat": 5, "spacing": 0.1})
    forged = forgeries(wire)  # type: ignore[arg-type]
    assert {forgery.control for forgery in forged} == {
        "NET-02",
        "NET-03",
        "NET-04",
        "NET-05",
        "NET-06",
        "NET-07",
        "NET-08",
        "NET-11",
    }
    floods = [flood(position) for position in positions(wire)]  # type: ignore[arg-type]
    seen = observe(wire, [*floods, *(forgery.probe for forgery in forged)])  # type: ignore[arg-type]
    assert [str(forgery) for forgery in forged if not seen.sightings(forgery.mark)] == []


def test_a_flood_is_as_fast_as_it_goes(wire: Wire) -> None:
    """Without spacing, many more frames leave than with it.

    With a pause between rounds, one round leaves for each.
    """
    web, _ = endpoints(wire.topology)
    guest = next(guest for guest in wire.topology.guests if guest.label == web.guest)
    line = {
        "mac": web.mac,
        "frame": (b"\xff" * 6 + bytes.fromhex(web.mac.replace(":", "")) + b"\x88\xb5").ljust(60, b"\0").hex(),
    }
    wire.switch.wall = lambda _: True
    sent = []
    for timing in ({"spacing": 0.01}, {"spacing": 0}, {"spacing": 0, "pause": 0.1}):
        request = {"phase": "stream", "probes": [line], "duration": 1, **timing}
        sent.append(client.in_guest(wire, guest).ask(request)["sent"])  # type: ignore[arg-type]
    assert 20 < sent[0] <= 101
    assert sent[1] > 5 * sent[0]
    assert 3 < sent[2] <= 11


def test_the_kernel_cuts_one_segment_into_a_burst_of_whole_frames(wire: Wire) -> None:
    """Each frame that leaves is a TCP segment of its own, and its device completes the checksum."""
    web, db = endpoints(wire.topology)
    guest = next(guest for guest in wire.topology.guests if guest.label == web.guest)
    position = next(item for item in positions(wire) if item.sender.mac == web.mac)  # type: ignore[arg-type]
    noise = Noise(guest, guest.nics[0], position, None)
    heard: list[bytes] = []

    def wall(frame: bytes) -> bool:
        if _is_of(6)(frame):
            heard.append(frame)
        return _is_of(6)(frame)

    wire.switch.wall = wall
    line = {"mac": web.mac, "frame": burst_of(noise).hex(), "segment": 8}
    request = {"phase": "stream", "probes": [line], "duration": 5, "spacing": 0.01, "rounds": 2}
    answer = client.in_guest(wire, guest).ask(request)  # type: ignore[arg-type]
    time.sleep(0.5)
    assert (answer["sent"], answer["refused"]) == (512, 0)
    assert len(heard) == 512
    for frame in heard:
        assert len(frame[34:]) == 20 + 8
        pseudo = in4_pseudoheader(6, Ether(frame)[IP], 20 + 8)
        assert Ether(frame)[TCP].chksum == ~checksum(pseudo) & 0xFFFF
    assert {Ether(frame)[IP].dst for frame in heard} == {str(db.address)}
    assert len({Ether(frame)[TCP].seq for frame in heard}) == 256


def test_noise_is_not_read_and_everything_else_is(wire: Wire) -> None:
    """ARP frames longer than any honest ones stay in the receiver's kernel; usual ones are read."""
    web, db = endpoints(wire.topology)
    reply = framed(Ether(src=web.mac, dst=db.mac), arp_reply(web.mac, str(web.address), db))
    long = Probe("long", web, {}, lambda token: reply(token).ljust(NOISE + 1, b"\0") + token)
    seen = observe(wire, [long, Probe("short", web, {}, reply)])  # type: ignore[arg-type]
    assert (seen.sightings("long"), seen.sightings("short")) == ([], [db.guest])


@pytest.mark.parametrize(
    ("kind", "port", "number", "arrived"),
    [
        ("tcp-connect", 5432, 6, "tcp-accepted"),
        ("udp-ask", 53, 17, "udp-received"),
        ("icmp-echo", 0, 1, "icmp"),
    ],
)
def test_a_held_connection_is_used_until_a_wall_closes(
    wire: Wire, kind: str, port: int, number: int, arrived: str
) -> None:
    """Frames sent after the change of rules have names of their own.

    They show whether the connection has outlived its rule.
    """
    web, db = endpoints(wire.topology)
    guest = next(guest for guest in wire.topology.guests if guest.label == web.guest)
    instrument = client.in_guest(wire, guest)  # type: ignore[arg-type]
    closes = False

    def held(tokens: Tokens) -> None:
        request = {
            "phase": "hold",
            "kind": kind,
            "mac": web.mac,
            "address": str(web.address),
            "ip": str(db.address),
            "port": port,
            "tokens": [tokens.of("holdearly"), tokens.of("holdlate")],
            "duration": 30,
            "spacing": 0.05,
        }
        with ThreadPoolExecutor(max_workers=1) as pool:
            holding = pool.submit(instrument.ask, request)
            time.sleep(1)
            wire.switch.wall = lambda frame: closes and _is_of(number)(frame)
            instrument.ask({"phase": "turn"})
            time.sleep(1)
            instrument.ask({"phase": "release"})
            answers.append(holding.result()["answers"])
            wire.switch.wall = lambda _: False

    answers: list[list[int]] = []
    for closed in (False, True):
        closes = closed
        seen = observe(wire, (), network.Attack((), 60, held))  # type: ignore[arg-type]
        accepted = [str(record["token"]) for record in seen.records[db.guest] if record["kind"] == arrived]
        assert seen.token("holdearly") in accepted
        assert (seen.token("holdlate") in accepted) != closed
        assert answers[-1][0] > 3
        assert bool(answers[-1][1]) != closed


def test_a_throwaway_guest_sends_from_every_interface(wire: Wire) -> None:
    web, db = endpoints(wire.topology)
    raw = Cell(web, db, "raw", None, allowed=False, reason="-")
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from testbed.payload.attacks import first_frame\n"
        "attack = first_frame.attack\n"
    )

    def attacks(tokens: Tokens) -> None:
        octets = of_cell(raw)(tokens.of("first").encode())
        wire.run(
            web.guest, sys.executable, "-c", f"{program}print(attack([bytes.fromhex({octets.hex()!r})], 1))"
        )

    seen = observe(wire, (), network.Attack((), 60, attacks))  # type: ignore[arg-type]
    assert seen.sightings("first") == [db.guest]
