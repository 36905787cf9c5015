"""What a guest's network answered, read from frames that no guest had sent (NET-10). Pure, and without
trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

SNAP = 2048  # octets of a frame, as in `testbed.payload.probe.frame_parser`
_MAGIC = bytes((99, 130, 83, 99))
_ANSWERS, _ANSWERS6 = 67, 547  # ports that DHCP and DHCPv6 answer from


@dataclass(frozen=True, slots=True)
class Offer:
    """One answer.

    Args:
        service: protocol and, where it has one, the port that answered.
        options: options by code; empty for everything that is neither DHCP nor DHCPv6.

    """

    source: str
    service: str
    transaction: str
    options: tuple[tuple[int, bytes], ...]


def read_offer(frame: bytes) -> Offer:
    """Return what a frame offers; whatever it is, it is something. A frame is no longer than the recorder
    keeps of it.
    """
    frame = frame[:SNAP]
    ethertype, body = int.from_bytes(frame[12:14], "big"), frame[14:]
    if ethertype == 0x0806 and len(body) >= 28:
        return Offer(str(IPv4Address(body[14:18])), "ARP", "", ())
    if ethertype == 0x0800 and len(body) >= 20:
        return _read(str(IPv4Address(body[12:16])), body[9], body[(body[0] & 15) * 4 :], _ANSWERS)
    if ethertype == 0x86DD and len(body) >= 40:
        return _read(str(IPv6Address(body[8:24])), body[6], body[40:], _ANSWERS6)
    return Offer("", f"ethertype {ethertype:04x}", "", ())


def _read(source: str, protocol: int, rest: bytes, dhcp: int) -> Offer:
    port = int.from_bytes(rest[:2], "big")
    if (protocol, port) == (17, dhcp):
        if dhcp == _ANSWERS6:
            return Offer(source, "DHCPv6", rest[9:12].hex(), tuple(_options6(rest[12:])))
        return Offer(source, "DHCP", rest[12:16].hex(), tuple(_options(rest[8 + 236 :])))
    services = {1: "ICMP", 6: f"TCP port {port}", 17: f"UDP port {port}", 58: f"ICMPv6 type {rest[:1].hex()}"}
    return Offer(source, services.get(protocol, f"protocol {protocol}"), "", ())


def _options(text: bytes) -> Sequence[tuple[int, bytes]]:
    """Return the options of a DHCP message, as far as they are well-formed (RFC 2132)."""
    found, at = [], len(_MAGIC)
    if not text.startswith(_MAGIC):
        return []
    while at + 1 < len(text) and text[at] != 255:
        if text[at] == 0:
            at += 1
            continue
        found.append((text[at], text[at + 2 : at + 2 + text[at + 1]]))
        at += 2 + text[at + 1]
    return found


def _options6(text: bytes) -> Sequence[tuple[int, bytes]]:
    """Return the options of a DHCPv6 message, as far as they are well-formed (RFC 8415, 21.1)."""
    found = []
    while len(text) >= 4:
        code, size = (int.from_bytes(text[at : at + 2], "big") for at in (0, 2))
        found.append((code, text[4 : 4 + size]))
        text = text[4 + size :]
    return found
