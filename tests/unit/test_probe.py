"""The probe's frames, and what it makes of other people's."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.guest import probe
from testbed.guest.probe import Seen

PREFIX = "tb-abcd-"
ME, YOU = "0a:00:00:00:00:01", "0a:00:00:00:00:02"
COMMON = {"mac": ME, "address": "10.0.0.1", "token": f"{PREFIX}x1.", "target_mac": YOU, "ip": "10.0.0.2", "port": 53}


def _sum(data: bytes) -> int:
    """The Internet checksum of data that holds its own checksum is zero (RFC 1071)."""
    return probe.checksum(data)


def test_checksum_of_the_rfc() -> None:
    assert probe.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


@pytest.mark.parametrize(("kind", "seen"), [("icmp", "icmp"), ("tcp-syn", "tcp"), ("udp", "udp")])
def test_a_sent_frame_is_recognised_and_sound(kind: str, seen: str) -> None:
    frame = probe.frame_of({**COMMON, "kind": kind})
    assert probe.parse(frame, PREFIX) == Seen(seen, f"{PREFIX}x1.", ME, "10.0.0.1", "10.0.0.2")
    packet = frame[14:]
    length = struct.unpack("!H", packet[2:4])[0]
    assert _sum(packet[:20]) == 0
    body = packet[20:length]
    pseudo = b"" if kind == "icmp" else packet[12:20] + struct.pack("!BBH", 0, packet[9], len(body))
    assert _sum(pseudo + body) in (0, 0xFFFF)


def test_forged_addresses_are_in_the_frame() -> None:
    frame = probe.frame_of({**COMMON, "kind": "udp", "source_mac": "0e:00:00:00:00:09", "source_ip": "203.0.113.7"})
    found = probe.parse(frame, PREFIX)
    assert found is not None
    assert (found.mac, found.ip) == ("0e:00:00:00:00:09", "203.0.113.7")


def test_arp_is_recognised_without_a_token() -> None:
    frame = probe.frame_of({**COMMON, "kind": "arp"})
    assert probe.parse(frame, PREFIX) == Seen("arp-request", "", ME, "10.0.0.1", "10.0.0.2")


def test_a_tagged_frame_is_still_recognised() -> None:
    frame = probe.frame_of({**COMMON, "kind": "udp"})
    tagged = frame[:12] + b"\x81\x00\x00\x05" + frame[12:]
    assert probe.parse(tagged, PREFIX) == probe.parse(frame, PREFIX)


def test_frames_of_others_are_no_evidence() -> None:
    assert probe.parse(probe.frame_of({**COMMON, "kind": "udp", "token": "tb-other-x1."}), PREFIX) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(data: bytes) -> None:
    found = probe.parse(data, PREFIX)
    assert found is None or found.kind


@given(st.binary(max_size=80), st.sampled_from([b"\x08\x00", b"\x08\x06", b"\x81\x00"]))
def test_any_body_is_survived(body: bytes, ethertype: bytes) -> None:
    found = probe.parse(bytes(12) + ethertype + body, PREFIX)
    assert found is None or isinstance(found, Seen)


@pytest.mark.parametrize("token", ["", "tb-", "x", "tb-$(reboot)-", "tb-a-"])
def test_a_request_with_another_token_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="no token"):
        probe._prefix({"token": token})
