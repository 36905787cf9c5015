"""Tokens cannot be guessed, and every frame of every probe carries its own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checks.support.attacker_positions import positions
from checks.support.network_observation import control_frames
from checks.support.spoofed_frames import flood, forgeries, thefts
from testbed.model.reachability import ReachMatrix, endpoints
from testbed.model.resolve import resolve
from testbed.payload.probe.frame_parser import find_token, parse
from testbed.payload.probe.tap_recorder import SEARCHED
from testbed.topology_file.loader import read
from testbed.verify.observation import observe
from testbed.verify.observation.arrivals import matrix_probes
from testbed.verify.probe.client import Probe, lines
from testbed.verify.probe.tokens import Tokens

TOPOLOGIES = sorted((Path(__file__).parents[4] / "topologies").glob("*.yaml"))
TOKENS = Tokens("tb-0123abcd-", b"key")


def test_a_token_is_known_by_its_mark_and_its_proof() -> None:
    token = TOKENS.of("cell1")
    assert token.startswith("tb-0123abcd-cell1-")
    assert token.startswith(TOKENS.beginning("cell1"))
    assert TOKENS.mark_of(token) == "cell1"
    assert find_token(f"..{token}..".encode(), TOKENS.prefix) == token


def test_a_proof_is_80_bits_of_an_hmac_of_the_mark() -> None:
    """The text of 80 bits in base 32 has 16 characters (RFC 4648, section 6)."""
    proofs = {TOKENS.of(mark).removeprefix(TOKENS.beginning(mark)) for mark in ("a", "b", "c")}
    assert {len(proof) for proof in proofs} == {17}
    assert len(proofs) == 3


@pytest.mark.parametrize(
    "token",
    [
        "",
        None,
        7,
        ["tb-0123abcd-cell1-"],
        "tb-0123abcd-cell1.",
        "tb-0123abcd-cell1-.",
        "tb-0123abcd--.",
        "\ud800",
        "tb-0123abcd-ü-x.",
        TOKENS.of("cell1").upper(),
        TOKENS.of("cell1")[:-1],
        TOKENS.of("cell1") + ".",
        TOKENS.of("cell1").replace("cell1", "cell2"),
        Tokens(TOKENS.prefix, b"other").of("cell1"),
        Tokens("tb-ffffffff-", TOKENS.key).of("cell1"),
        "01abcdef",
    ],
)
def test_a_token_that_was_never_handed_out_belongs_to_no_probe(token: object) -> None:
    assert TOKENS.mark_of(token) == ""


def test_two_observations_have_nothing_in_common() -> None:
    one, other = Tokens.fresh(), Tokens.fresh()
    assert (one.prefix, one.of("a")) != (other.prefix, other.of("a"))
    assert Tokens(one.prefix, other.key).of("a") != one.of("a")
    assert repr(one.key) not in repr(one)


def test_a_question_to_dhcp_has_a_public_kind_and_a_number_that_nobody_guesses() -> None:
    numbers = {TOKENS.transaction(kind, mark) for kind in (1, 2) for mark in ("red/web@app", "red/db@app")}
    assert {number >> 24 for number in numbers} == {1, 2}
    assert len({number & 0xFFFFFF for number in numbers}) == 2
    assert TOKENS.transaction(1, "a") != Tokens(TOKENS.prefix, b"other").transaction(1, "a")


def test_a_control_is_the_answer_to_a_question_that_nobody_else_could_put() -> None:
    """An answer of DHCP counts for the interface and the stage that its number was made for."""
    fleet = _fleet(TOPOLOGIES[0])
    everyone = endpoints(fleet.topology)
    numbers = {
        observe._transaction(tokens, stage, own)
        for tokens in (TOKENS, Tokens(TOKENS.prefix, b"other"))
        for stage in ("before", "after")
        for own in everyone
    }
    assert len({number & 0xFFFFFF for number in numbers}) == 4 * len(everyone)
    wanted = f"{observe._transaction(TOKENS, 'before', everyone[0]):08x}"
    for token, heard in ((wanted, True), (f"01{'0' * 6}", False), (f"02{wanted[2:]}", False)):
        record = {"label": everyone[0].interface, "kind": "dhcp", "token": token}
        assert observe._heard(everyone[0], [record], set(), wanted) is heard


def _fleet(path: Path) -> Any:
    topology = resolve(read(path).spec)
    return SimpleNamespace(topology=topology, matrix=ReachMatrix.of(topology))


def _probes(fleet: Any) -> list[Probe]:
    all_positions, times = positions(fleet), ("before", "after")
    guests = [guest.label for guest in fleet.topology.guests]
    own = [
        probe for label in guests for time in times for probe in observe._controls(fleet, label, time, TOKENS)
    ]
    told = [probe for label in guests for probe in observe._last_words(fleet, label, TOKENS)]
    trusted = [
        probe
        for position in all_positions
        if position.port
        for time in times
        for probe in control_frames(position, time)
    ]
    greed = [probe for position in all_positions for probe in thefts(position)]
    lies = [lie.probe for lie in forgeries(fleet)]
    return [
        *own,
        *told,
        *trusted,
        *greed,
        *lies,
        *map(flood, all_positions),
        *matrix_probes(fleet.matrix.cells),
    ]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda path: path.stem)
def test_a_mark_belongs_to_one_sender(topology: Path) -> None:
    """A mark that two senders know would prove a path from neither.

    Frames without a token need no mark of their own.
    """
    owners: dict[str, set[str]] = {}
    for probe in _probes(_fleet(topology)):
        if probe.frame is None or probe.frame(b"one") != probe.frame(b"two"):
            owners.setdefault(probe.mark, set()).add(probe.sender.guest)
    assert len(owners) > 50
    assert {mark: found for mark, found in owners.items() if len(found) > 1} == {}


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda path: path.stem)
def test_every_frame_is_told_by_its_token_where_both_recorders_look(topology: Path) -> None:
    """The token is whole in ARP, ND options, data, tags, tunnels and DHCP.

    It is within the part of a frame that a node's kernel searches, however long the frame is.
    """
    bare = 0
    for probe in _probes(_fleet(topology)):
        if probe.frame is None:
            continue
        token = TOKENS.of(probe.mark)
        frame = probe.frame(token.encode())
        if frame == probe.frame(b"other"):
            bare += 1  # of DHCP, whose answers repeat a number; and the flood
            assert probe.mark.startswith(("dhcp", "theft", "starve", "six3", "six4", "flood"))
            continue
        assert len(frame) <= 1514
        assert frame.index(token.encode()) <= SEARCHED
        seen = parse(frame, TOKENS.prefix)
        assert seen is not None
        assert TOKENS.mark_of(seen.token) == probe.mark
    assert bare


def test_a_guest_is_given_its_own_tokens_and_no_others() -> None:
    """Requests to a guest hold no token of another one, as text or as octets of frames."""
    fleet = _fleet(TOPOLOGIES[-1])
    probes, guests = _probes(fleet), fleet.topology.guests
    for guest in guests:
        own = lines([probe for probe in probes if probe.sender.guest == guest.label], TOKENS)
        given = json.dumps([own, observe._finish(fleet, guest.label, TOKENS)])
        foreign = [TOKENS.of(probe.mark) for probe in probes if probe.sender.guest != guest.label]
        assert foreign
        assert [token for token in foreign if token in given or token.encode().hex() in given] == []
