"""What a guest's network answered, read from frames that no guest had sent (NET-10). Pure, and without trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

_MAGIC = bytes((99, 130, 83, 99))
_KINDS = {1: "ICMP", 6: "TCP", 17: "UDP"}


@dataclass(frozen=True, slots=True)
class Offer:
    """One answer.

    Args:
        service: protocol and, where it has one, the port that answered.
        options: DHCP options by code; empty for everything that is not DHCP.

    """

    source: str
    service: str
    transaction: str
    options: tuple[tuple[int, bytes], ...]


def read_offer(frame: bytes) -> Offer:
    """Return what a frame offers; whatever it is, it is something."""
    ethertype, body = int.from_bytes(frame[12:14], "big"), frame[14:]
    if ethertype == 0x0806 and len(body) >= 28:
        return Offer(str(IPv4Address(body[14:18])), "ARP", "", ())
    if ethertype != 0x0800 or len(body) < 20:
        return Offer("", f"ethertype {ethertype:04x}", "", ())
    source, rest = str(IPv4Address(body[12:16])), body[(body[0] & 15) * 4 :]
    kind, port = _KINDS.get(body[9], f"protocol {body[9]}"), int.from_bytes(rest[:2], "big")
    if kind == "UDP" and port == 67:
        return Offer(source, "DHCP", rest[12:16].hex(), tuple(_options(rest[8 + 236 :])))
    return Offer(source, kind if kind not in ("TCP", "UDP") else f"{kind} port {port}", "", ())


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
