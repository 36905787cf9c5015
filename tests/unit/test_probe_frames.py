"""Frames of the probe: built as the RFCs say, parsed without trust."""

from __future__ import annotations

import json
import os
import struct

import pytest

from testbed.guest import probe
from testbed.verify.network import compose

MAC, PEER = "0a:00:00:00:00:01", "0a:00:00:00:00:02"
PREFIX, TOKEN = "tb-0123abcd-", "tb-0123abcd-c1."
BASE = {"mac": MAC, "address": "10.0.0.2", "target_mac": PEER, "ip": "10.0.0.3", "port": 5432, "token": TOKEN}


def test_checksum_matches_the_example_of_rfc_1071() -> None:
    """Section 3 of the RFC adds up to ddf2."""
    assert probe.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert probe.checksum(b"\x01") == 0xFEFF


@pytest.mark.parametrize(("kind", "number"), [("icmp", 1), ("tcp-syn", 6), ("udp", 17)])
def test_checksums_verify_at_the_receiver(kind: str, number: int) -> None:
    """Header and body each add up to zero, the body with its pseudo header."""
    packet = probe.frame_of({**BASE, "kind": kind})[14:]
    body = packet[20 : struct.unpack("!H", packet[2:4])[0]]
    pseudo = b"" if number == 1 else packet[12:20] + struct.pack("!BBH", 0, number, len(body))
    assert packet[9] == number
    assert probe.checksum(packet[:20]) == 0
    assert probe.checksum(pseudo + body) == 0


@pytest.mark.parametrize(("kind", "seen"), [("icmp", "icmp"), ("tcp-syn", "tcp"), ("udp", "udp")])
def test_a_frame_says_who_sent_it(kind: str, seen: str) -> None:
    """The parser finds token, sender and target of what the builder made."""
    assert probe.parse(probe.frame_of({**BASE, "kind": kind}), PREFIX) == (seen, TOKEN, MAC, "10.0.0.2", "10.0.0.3")


def test_arp_is_told_by_its_sender_and_target() -> None:
    """ARP carries no token."""
    frame = probe.frame_of({**BASE, "kind": "arp"})
    assert probe.parse(frame, PREFIX) == ("arp-request", "", MAC, "10.0.0.2", "10.0.0.3")


def test_senders_can_be_forged() -> None:
    """Ethernet source and IP source are set independently."""
    frame = probe.frame_of({**BASE, "kind": "udp", "source_mac": PEER, "source_ip": "10.0.0.9"})
    seen = probe.parse(frame, PREFIX)
    assert seen is not None
    assert (seen.mac, seen.ip) == (PEER, "10.0.0.9")


def test_a_tagged_frame_is_seen_through() -> None:
    """A VLAN tag does not hide a token."""
    frame = probe.frame_of({**BASE, "kind": "udp"})
    seen = probe.parse(frame[:12] + b"\x81\x00\x00\x00" + frame[12:], PREFIX)
    assert seen is not None
    assert (seen.kind, seen.token) == ("udp", TOKEN)


def test_a_dhcp_answer_is_told_by_its_transaction() -> None:
    """Only answers (operation 2 from port 67) count."""
    offer = b"\x02" + probe.dhcp_discover(MAC, 0xDEADBEEF)[1:]
    packet = probe.ipv4("10.0.0.1", "10.0.0.2", 17, probe.udp("10.0.0.1", "10.0.0.2", (67, 68), offer))
    seen = probe.parse(probe.ethernet(MAC, PEER, 0x0800, packet), PREFIX)
    assert seen is not None
    assert (seen.kind, seen.token) == ("dhcp", "deadbeef")
    assert probe.parse(probe.frame_of({**BASE, "kind": "dhcp", "transaction": "deadbeef"}), PREFIX) is None


def test_foreign_tokens_are_not_ours() -> None:
    """Another run's token, a token that never ends, and no token are not recorded."""
    for token in ("tb-ffffffff-c1.", f"{PREFIX}{'a' * 99}.", "hello"):
        assert probe.parse(probe.frame_of({**BASE, "kind": "udp", "token": token}), PREFIX) is None


def test_no_frame_breaks_the_parser() -> None:
    """Every truncation of every frame, random bytes, and frames with one wrong byte parse or are ignored."""
    frames = [probe.frame_of({**BASE, "kind": kind}) for kind in ("arp", "icmp", "tcp-syn", "udp")]
    for frame in frames:
        for length in range(len(frame)):
            probe.parse(frame[:length], PREFIX)
            probe.parse(frame[:length] + b"\xff" + frame[length + 1 :], PREFIX)
    for _ in range(500):
        probe.parse(frames[3][:14] + os.urandom(40), PREFIX)


def test_a_request_is_carried_as_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Quotes and line ends of a request stay inside its literal; the program compiles."""
    nasty = {"phase": "stop", "token": PREFIX, "folder": str(tmp_path_factory.mktemp("f")), "x": "'\"\\\n'''\u2028); 1/0"}
    program = compose(nasty).decode()
    compile(program, "probe", "exec")
    literal = program.rsplit("json.loads(", 1)[1].rsplit(")))", 1)[0]
    assert json.loads(eval(literal)) == nasty
