"""What frames say about themselves. Pure, and without trust: every frame is read by bounds."""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

SNAP = 2048
_ARP, _IPV4, _IPV6 = 0x0806, 0x0800, 0x86DD


class Seen(NamedTuple):
    """What a frame says about itself.

    ``token`` may be empty for ARP and for Neighbor Discovery, and is the transaction id for an answer of
    DHCP, whose ``target`` is the address that it hands out; ``to`` is the MAC address that the frame is for.
    """

    kind: str
    token: str
    mac: str
    ip: str
    target: str
    to: str = ""


def _mac_text(octets: bytes) -> str:
    return octets.hex(":")


def find_token(data: bytes, prefix: str) -> str:
    """Return the first token of a run in some bytes, or the empty string."""
    found = re.search(re.escape(prefix).encode() + rb"[a-z0-9-]{1,64}\.", data[:SNAP])
    return found[0].decode() if found else ""


def parse(frame: bytes, prefix: str) -> Seen | None:
    """Return what a frame says if it is ARP, Neighbor Discovery, an answer of DHCP, or carries a token of
    this run.
    """
    if len(frame) < 14:
        return None
    seen = _parse(frame, prefix)
    return seen and seen._replace(to=_mac_text(frame[:6]))


def _parse(frame: bytes, prefix: str) -> Seen | None:
    source, at = _mac_text(frame[6:12]), 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8") and at < 20:
        at += 4
    body = frame[at + 2 : SNAP]
    ethertype = int.from_bytes(frame[at : at + 2], "big")
    token = find_token(frame, prefix)
    if ethertype == _ARP:
        return _parse_arp(body, token)
    if ethertype == _IPV4 and len(body) >= 20 and body[0] >> 4 == 4:
        return _parse_ipv4(body, source, token)
    if ethertype == _IPV6 and len(body) >= 40 and body[0] >> 4 == 6:
        return _parse_ipv6(body, source, token)
    return Seen("raw", token, source, "", "") if token else None


def _parse_arp(body: bytes, token: str) -> Seen | None:
    if len(body) < 28 or body[:6] != b"\0\x01\x08\0\x06\x04":
        return None
    kind = {1: "arp-request", 2: "arp-reply"}.get(int.from_bytes(body[6:8], "big"))
    sender, target = socket.inet_ntoa(body[14:18]), socket.inet_ntoa(body[24:28])
    return Seen(kind, token, _mac_text(body[8:14]), sender, target) if kind else None


def _parse_ipv6(body: bytes, mac: str, token: str) -> Seen | None:
    sender, target, asked = (
        socket.inet_ntop(socket.AF_INET6, body[at : at + 16].ljust(16, b"\0")) for at in (8, 24, 48)
    )
    if (
        body[6] == 58 and len(body) >= 64 and body[40] in (135, 136)
    ):  # no extension headers in between (RFC 4861)
        told = (sender, asked) if body[40] == 135 else (asked, target)
        return Seen("nd-request" if body[40] == 135 else "nd-reply", token, mac, *told)
    if (
        not token
        and body[6] == 17
        and body[40:44] == b"\x02\x23\x02\x22"
        and body[48:49] in (b"\x02", b"\x07")
    ):
        return Seen("dhcp6", body[49:52].hex(), mac, sender, _handed_out(body[52:]))
    return Seen("ip6", token, mac, sender, target) if token else None


def _handed_out(options: bytes) -> str:
    """Return the address that an answer of DHCPv6 hands out, or the empty string (RFC 8415, 21.4 and
    21.6).
    """
    while len(options) >= 4:
        code, size = (int.from_bytes(options[at : at + 2], "big") for at in (0, 2))
        if code == 3:
            options = options[16:]  # what is inside of an IA_NA, after its three fields
        elif code == 5 and len(options) >= 20:
            return socket.inet_ntop(socket.AF_INET6, options[4:20])
        else:
            options = options[4 + size :]
    return ""


def _parse_ipv4(body: bytes, mac: str, token: str) -> Seen | None:
    sender, target = socket.inet_ntoa(body[12:16]), socket.inet_ntoa(body[16:20])
    rest = body[(body[0] & 15) * 4 :]
    if not token:
        if body[9] == 17 and rest[:4] == b"\0\x43\0\x44" and len(rest) >= 28 and rest[8] == 2:
            return Seen(
                "dhcp",
                f"{int.from_bytes(rest[12:16], 'big'):08x}",
                mac,
                sender,
                socket.inet_ntoa(rest[24:28]),
            )
        return None
    kind = {1: "icmp", 6: "tcp", 17: "udp"}.get(body[9], "ip")
    if kind == "icmp":
        kind = {b"\x08": "icmp", b"\0": "icmp-reply"}.get(rest[:1], "icmp-error")
    return Seen(kind, token, mac, sender, target)
