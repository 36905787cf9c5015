"""Conversations with a service over TCP, UDP or ICMP, from one interface, as anyone holds them."""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import Any

from testbed.payload.probe.interfaces import interface_of
from testbed.payload.probe.recorder import MAX_TEXT

_TYPES = {"tcp-connect": socket.SOCK_STREAM, "udp-ask": socket.SOCK_DGRAM, "icmp-echo": socket.SOCK_RAW}
_ECHO, _ECHO6 = (8, 0), (128, 129)  # request and reply, RFC 792 and RFC 4443
KINDS = frozenset(_TYPES)


class Talk:
    """One conversation: a connection, or datagrams and echo requests that belong together.

    Args:
        probe: ``kind``, the ``mac`` of the interface, the own ``address``, and ``ip`` and ``port`` of the
            service.
        patience: seconds that connecting and each answer may take.

    Raises:
        OSError: refused, unreachable, or no connection in time.

    """

    def __init__(self, probe: dict[str, Any], patience: float) -> None:
        self.kind, self.patience, self.number = str(probe["kind"]), patience, 0
        self.echo = self.kind == "icmp-echo"
        self.six, self.id = ":" in probe["ip"], int.from_bytes(os.urandom(2), "big")
        protocol = (socket.IPPROTO_ICMPV6 if self.six else socket.IPPROTO_ICMP) if self.echo else 0
        self.opened = socket.socket(
            socket.AF_INET6 if self.six else socket.AF_INET, _TYPES[self.kind], protocol
        )
        try:
            self.opened.setsockopt(
                socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface_of(probe["mac"]).encode()
            )
            self.opened.bind((probe["address"], 0))
            self.opened.settimeout(patience)
            self.opened.connect((probe["ip"], 0 if self.echo else int(probe["port"])))
        except BaseException:
            self.opened.close()
            raise

    def __enter__(self) -> Talk:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.opened.close()

    def end_at_once(self) -> None:
        """Let nothing be sent on after the end, which a connection would do."""
        if self.kind == "tcp-connect":
            self.opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def wait_for(self, patience: float) -> None:
        """Wait so many seconds for each answer from now on."""
        self.patience = patience
        self.opened.settimeout(patience)

    def say(self, token: bytes) -> str:
        """Say something and return what is answered; an echo is told as a service would answer.

        Raises:
            OSError: the conversation has ended, or there is no answer in time.

        """
        if not self.echo:
            self.opened.sendall(token)
            return self.opened.recv(MAX_TEXT).decode(errors="replace")
        self.number += 1
        request, reply = _ECHO6 if self.six else _ECHO
        text = struct.pack("!BBHHH", request, 0, 0, self.id, self.number % 2**16) + token
        self.opened.send(text if self.six else text[:2] + _checksum(text) + text[4:])
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            answer = self.opened.recv(2048)
            answer = answer if self.six else answer[(answer[0] & 15) * 4 :]
            if (
                answer[:2] == bytes((reply, 0)) and answer[4:6] == text[4:6]
            ):  # or that of an earlier request, which is late
                return f"ok-{answer[8 : 8 + MAX_TEXT].decode(errors='replace')}"
        msg = "no echo in time"
        raise TimeoutError(msg)


def _checksum(text: bytes) -> bytes:
    """Return the Internet checksum of a message that has zeros in its place (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(text) + 1) // 2}H", text + b"\0" * (len(text) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
