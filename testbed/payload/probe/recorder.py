"""Recorder in a guest: sniffs on its interfaces and listens on ports; remembers what carries a token of the
run.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import time
from typing import Any

from testbed.payload.probe.frame_parser import SNAP, Seen, find_token, parse
from testbed.payload.probe.interfaces import has_address, has_address6, interface_of, outlet
from testbed.payload.probe.sniffer import (
    EQUAL,
    EQUAL_X,
    GREATER,
    LOAD,
    LOAD_HALF,
    LOAD_LENGTH,
    NOISE,
    OUTGOING,
    PACKET_TYPE,
    RETURN,
    TO_X,
    Request,
    Sniffer,
    Step,
)

MAX_STRAYS, MAX_TEXT = 64, 160
_TEST, _STAGES = 0x88B5, ("start", "end")
# The kernel keeps to itself what a nested guest could not read fast enough and nobody asks for: ARP of more
# than `NOISE` octets, and what leaves this machine, except frames from an interface to itself.
_WANTED: tuple[Step, ...] = (
    (LOAD, 0, 0, PACKET_TYPE), (EQUAL, 0, 8, OUTGOING),
    (LOAD, 0, 0, 0), (TO_X, 0, 0, 0), (LOAD, 0, 0, 6), (EQUAL_X, 0, 8, 0),
    (LOAD_HALF, 0, 0, 4), (TO_X, 0, 0, 0), (LOAD_HALF, 0, 0, 10), (EQUAL_X, 5, 4, 0),
    (LOAD_HALF, 0, 0, 12), (EQUAL, 0, 3, 0x0806), (LOAD_LENGTH, 0, 0, 0), (GREATER, 0, 1, NOISE),
    (RETURN, 0, 0, 0), (RETURN, 0, 0, 0x40000),
)  # fmt: skip


def _addressed(name: str, nic: dict[str, str]) -> bool:
    """Tell whether an interface has every address that it is told to have."""
    six = nic.get("address6", "")
    return bool(name) and has_address(name, nic["address"]) and (not six or has_address6(name, six))


def _server(kind: str, family: socket.AddressFamily) -> socket.socket:
    server = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    server.setblocking(False)
    if kind == "tcp":
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return server


class Recorder(Sniffer):
    """Sniffs and listens as long as its owner turns the selector and calls what is ready."""

    def __init__(self, prefix: str, nics: list[dict[str, str]], selector: selectors.BaseSelector) -> None:
        super().__init__(prefix, selector)
        self.nics = nics
        self.servers: list[socket.socket] = []
        self.open: dict[socket.socket, float] = {}
        self.tested: set[tuple[str, str]] = set()
        self.known: set[bytes] = set()
        self.strays: set[tuple[bytes, str]] = set()

    def prepare(self, request: Request) -> Request:
        """Open everything, with retries until ``patience`` seconds have passed; return the ready state.

        If ``known`` is given, frames without a token from other MAC addresses than these are kept as they
        are: strays.
        """
        self.known = {bytes.fromhex(mac.replace(":", "")) for mac in request.get("known", [])}
        deadline = time.monotonic() + min(float(request.get("patience", 10)), 120.0)
        wanted = [(kind, int(port)) for kind in ("tcp", "udp") for port in request.get(kind, [])][:128]
        missing, nics = {f"{kind}/{port}": "" for kind, port in wanted}, self._interfaces()
        while True:
            for kind, port in wanted:
                if f"{kind}/{port}" in missing and self._listen(kind, port, missing):
                    del missing[f"{kind}/{port}"]
            nics = self._interfaces()
            if time.monotonic() > deadline or (
                not missing and all(nic["interface"] and nic["address"] for nic in nics)
            ):
                break
            time.sleep(0.2)
        for nic in nics:
            if nic["interface"]:
                self.sniff(nic["interface"], nic["label"], _WANTED)
        self.self_test("start")
        listening = [f"{kind}/{port}" for kind, port in wanted if f"{kind}/{port}" not in missing]
        return {
            "ready": True,
            "interfaces": nics,
            "listening": listening,
            "not_listening": missing,
            "pid": os.getpid(),
        }

    def _interfaces(self) -> list[dict[str, Any]]:
        names = {nic["mac"]: interface_of(nic["mac"]) for nic in self.nics}
        return [
            {
                "label": nic["label"],
                "mac": nic["mac"],
                "interface": names[nic["mac"]],
                "address": _addressed(names[nic["mac"]], nic),
            }
            for nic in self.nics
        ]

    def _listen(self, kind: str, port: int, errors: dict[str, str]) -> bool:
        """Listen on a port in every family that some interface has an address of; both or none."""
        families = (
            (socket.AF_INET, socket.AF_INET6)
            if any(nic.get("address6") for nic in self.nics)
            else (socket.AF_INET,)
        )
        opened = []
        try:
            for family in families:
                opened.append(_server(kind, family))
                opened[-1].bind(("", port))
                if kind == "tcp":
                    opened[-1].listen(32)
        except OSError as error:
            errors[f"{kind}/{port}"] = str(error)[:MAX_TEXT]
            for server in opened:
                server.close()
            return False
        for server in opened:
            self.servers.append(server)
            self.selector.register(
                server, selectors.EVENT_READ, self._accept if kind == "tcp" else self._echo
            )
        return True

    def take(self, frame: bytes, kind: int, label: str) -> None:
        """Remember what came in, and whether this recorder's own frames were heard."""
        if kind == OUTGOING:
            self.tested |= {
                (label, stage)
                for stage in _STAGES
                if find_token(frame, self.prefix) == self._test_token(stage)
            }
            return
        seen = parse(frame, self.prefix)
        if seen:
            self.remember(seen, label)
        if self.known and not (seen and seen.token.startswith(self.prefix)):
            self._keep(frame, label)

    def _keep(self, frame: bytes, label: str) -> None:
        """Keep a frame of a sender that is not known."""
        if frame[6:12] not in self.known and (frame, label) not in self.strays:
            if len(self.strays) < MAX_STRAYS:
                self.strays.add((frame, label))
            else:
                self.overflowed = True

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            if len(self.open) >= 64:
                connection.close()
                return
            connection.setblocking(False)
            self.open[connection] = time.monotonic() + 10
            self.selector.register(connection, selectors.EVENT_READ, self._answer)

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            token = find_token(connection.recv(SNAP), self.prefix)
            if token:
                self._heard("tcp-accepted", token, connection.getpeername()[0], connection.getsockname()[0])
                connection.send(f"ok-{token}".encode())
                if token.startswith(f"{self.prefix}hold"):
                    self.open[connection] = time.monotonic() + 10
                    return
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self.selector.unregister(connection)
        del self.open[connection]
        connection.close()

    def _echo(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            data, sender = server.recvfrom(SNAP)
            token = find_token(data, self.prefix)
            if token and not data.startswith(b"ok-"):
                self._heard("udp-received", token, sender[0], "")
                server.sendto(f"ok-{token}".encode(), sender)

    def _heard(self, kind: str, token: str, sender: str, own: str) -> None:
        label = next((nic["label"] for nic in self.nics if own in (nic["address"], nic.get("address6"))), "")
        self.remember(Seen(kind, token, "", sender, own), label)

    def expire(self) -> None:
        """Close connections that say nothing."""
        now = time.monotonic()
        for connection in [opened for opened, end in self.open.items() if end < now]:
            self._close(connection)

    def state(self) -> Request:
        """Return what came in, with everything that the kernel still holds, after a last frame that must be
        seen.
        """
        self.self_test("end")
        state = super().state()
        tested = all((nic["label"], stage) in self.tested for nic in self.nics for stage in _STAGES)
        strays = [{"frame": frame.hex(), "label": label} for frame, label in sorted(self.strays)]
        return {**state, "self_test": tested, "strays": strays}

    def self_test(self, stage: str) -> None:
        """Send a frame from each interface to itself; a recorder that hears at all sees it leave."""
        for nic in self.nics:
            with contextlib.suppress(OSError), outlet(nic["mac"]) as out:
                out.send(_test_frame(nic["mac"], self._test_token(stage).encode()))

    def _test_token(self, stage: str) -> str:
        return f"{self.prefix}self-{stage}."

    def close(self) -> None:
        """Stop sniffing and listening."""
        super().close()
        self.forget([*self.servers, *self.open])


def _test_frame(mac: str, payload: bytes) -> bytes:
    """Return a frame of an ethertype for experiments, from an interface to itself."""
    return (bytes.fromhex(mac.replace(":", "")) * 2 + struct.pack("!H", _TEST) + payload).ljust(60, b"\0")
