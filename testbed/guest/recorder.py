"""Sniffs on interfaces and listens on ports; remembers what carries a token of the run."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import selectors
import socket
import struct
import time
from array import array
from pathlib import Path
from typing import Any

from testbed.guest.parsing import SNAP, Seen, find_token, parse

MAX_RECORDS, MAX_STRAYS, MAX_TEXT = 2000, 64, 160
NOISE = 1000
_TEST, _STAGES = 0x88B5, ("start", "end")
_ATTACH_FILTER = 26
_PACKET_ADD_MEMBERSHIP, _PACKET_STATISTICS, _SOL_PACKET, _PROMISCUOUS = 1, 6, 263, 1
_ETH_P_ALL, _OUTGOING = 3, 4
# Instructions of the kernel's packet filter, and where it tells of what kind a packet is (linux/filter.h, SKF_AD_PKTTYPE).
_LOAD, _LOAD_HALF, _LOAD_LENGTH, _TO_X = 0x20, 0x28, 0x80, 0x07
_EQUAL, _EQUAL_X, _GREATER, _RETURN = 0x15, 0x1D, 0x25, 0x06
_PACKET_TYPE = 0xFFFFF004
Request = dict[str, Any]


def interface_of(mac: str) -> str:
    """Return the name of the interface with a MAC address, or the empty string."""
    for entry in sorted(Path("/sys/class/net").iterdir()):
        with contextlib.suppress(OSError):
            if (entry / "address").read_text().strip() == mac:
                return entry.name
    return ""


def has_address(name: str, address: str) -> bool:
    """Tell whether an interface has an IPv4 address as its first one (SIOCGIFADDR)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control, contextlib.suppress(OSError):
        answer = fcntl.ioctl(control, 0x8915, struct.pack("256s", name.encode()[:15]))
        return socket.inet_ntoa(answer[20:24]) == address
    return False


def has_address6(name: str, address: str) -> bool:
    """Tell whether an interface has an IPv6 address that it may use: not tentative, no duplicate (if_inet6, IFA_F_*)."""
    with contextlib.suppress(OSError, ValueError):
        wanted = socket.inet_pton(socket.AF_INET6, address).hex()
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            found, _, _, _, flags, device = line.split()
            if (found, device) == (wanted, name):
                return not int(flags, 16) & 0x48
    return False


def packet_socket(name: str, protocol: int) -> socket.socket:
    """Return a socket for the frames of one interface; protocol 0 receives none, 3 all."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    opened.bind((name, protocol))
    return opened


def _addressed(name: str, nic: dict[str, str]) -> bool:
    """Tell whether an interface has every address that it is told to have."""
    six = nic.get("address6", "")
    return bool(name) and has_address(name, nic["address"]) and (not six or has_address6(name, six))


def _leave_out(sniffer: socket.socket) -> None:
    """Let the kernel keep to itself what a nested guest could not read fast enough and nobody asks for.

    That is ARP of more than `NOISE` octets, and what leaves this machine, except frames from an interface to itself.
    """
    program = b"".join(
        struct.pack("HBBI", *step)
        for step in (
            (_LOAD, 0, 0, _PACKET_TYPE), (_EQUAL, 0, 8, _OUTGOING),
            (_LOAD, 0, 0, 0), (_TO_X, 0, 0, 0), (_LOAD, 0, 0, 6), (_EQUAL_X, 0, 8, 0),
            (_LOAD_HALF, 0, 0, 4), (_TO_X, 0, 0, 0), (_LOAD_HALF, 0, 0, 10), (_EQUAL_X, 5, 4, 0),
            (_LOAD_HALF, 0, 0, 12), (_EQUAL, 0, 3, 0x0806), (_LOAD_LENGTH, 0, 0, 0), (_GREATER, 0, 1, NOISE),
            (_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0x40000),
        )
    )  # fmt: skip
    text = array("B", program)  # of which the address can be told without ctypes, which takes a nested guest a second to import
    sniffer.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", len(program) // 8, text.buffer_info()[0]))


def outlet(mac: str) -> socket.socket:
    """Return a socket that sends frames from the interface with a MAC address."""
    return packet_socket(interface_of(mac) or "none", 0)


def _server(kind: str, family: socket.AddressFamily) -> socket.socket:
    server = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    server.setblocking(False)
    if kind == "tcp":
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return server


class Recorder:
    """Sniffs and listens as long as its owner turns the selector and calls what is ready."""

    def __init__(self, prefix: str, nics: list[dict[str, str]], selector: selectors.BaseSelector) -> None:
        self.prefix, self.nics, self.selector = prefix, nics, selector
        self.sniffers: list[tuple[socket.socket, str]] = []
        self.servers: list[socket.socket] = []
        self.open: dict[socket.socket, float] = {}
        self.seen: dict[tuple[Seen, str], list[float]] = {}
        self.tested: set[tuple[str, str]] = set()
        self.known: set[bytes] = set()
        self.strays: set[tuple[bytes, str]] = set()
        self.down: set[str] = set()
        self.overflowed, self.dropped = False, 0
        self.started = time.monotonic()

    def prepare(self, request: Request) -> Request:
        """Open everything, with retries until ``patience`` seconds have passed; return the ready state.

        If ``known`` is given, frames without a token from other MAC addresses than these are kept as they are: strays.
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
            if time.monotonic() > deadline or (not missing and all(nic["interface"] and nic["address"] for nic in nics)):
                break
            time.sleep(0.2)
        for nic in nics:
            if nic["interface"]:
                self._sniff(nic["interface"], nic["label"])
        self.self_test("start")
        listening = [f"{kind}/{port}" for kind, port in wanted if f"{kind}/{port}" not in missing]
        return {"ready": True, "interfaces": nics, "listening": listening, "not_listening": missing, "pid": os.getpid()}

    def _interfaces(self) -> list[dict[str, Any]]:
        names = {nic["mac"]: interface_of(nic["mac"]) for nic in self.nics}
        return [
            {"label": nic["label"], "mac": nic["mac"], "interface": names[nic["mac"]], "address": _addressed(names[nic["mac"]], nic)}
            for nic in self.nics
        ]

    def _listen(self, kind: str, port: int, errors: dict[str, str]) -> bool:
        """Listen on a port in every family that some interface has an address of; both or none."""
        families = (socket.AF_INET, socket.AF_INET6) if any(nic.get("address6") for nic in self.nics) else (socket.AF_INET,)
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
            self.selector.register(server, selectors.EVENT_READ, self._accept if kind == "tcp" else self._echo)
        return True

    def _sniff(self, name: str, label: str) -> None:
        sniffer = packet_socket(name, _ETH_P_ALL)
        sniffer.setblocking(False)
        _leave_out(sniffer)
        sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        member = struct.pack("iHH8s", socket.if_nametoindex(name), _PROMISCUOUS, 0, b"")
        sniffer.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, member)
        self.sniffers.append((sniffer, label))
        self.selector.register(sniffer, selectors.EVENT_READ, lambda opened: self._drain(opened, label))

    def _drain(self, sniffer: socket.socket, label: str) -> None:
        for _ in range(5000):
            try:
                frame, source = sniffer.recvfrom(SNAP)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    raise
                self.down.add(label)
            else:
                if source[2] == _OUTGOING:
                    self.tested |= {(label, stage) for stage in _STAGES if find_token(frame, self.prefix) == self._test_token(stage)}
                    continue
                seen = parse(frame, self.prefix)
                if seen:
                    self._record(seen, label)
                if self.known and not (seen and seen.token.startswith(self.prefix)):
                    self._keep(frame, label)

    def _keep(self, frame: bytes, label: str) -> None:
        """Keep a frame of a sender that is not known."""
        if frame[6:12] not in self.known and (frame, label) not in self.strays:
            if len(self.strays) < MAX_STRAYS:
                self.strays.add((frame, label))
            else:
                self.overflowed = True

    def _record(self, seen: Seen, label: str) -> None:
        """Remember when something came in first and last, and how often."""
        now, times = time.monotonic(), self.seen.get((seen, label))
        if times is not None:
            times[1:] = now, times[2] + 1
        elif len(self.seen) < MAX_RECORDS:
            self.seen[seen, label] = [now, now, 1]
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
        self._record(Seen(kind, token, "", sender, own), label)

    def expire(self) -> None:
        """Close connections that say nothing."""
        now = time.monotonic()
        for connection in [opened for opened, end in self.open.items() if end < now]:
            self._close(connection)

    def tokens(self) -> set[str]:
        """Return the tokens of all that has come in so far."""
        return {seen.token for seen, _ in self.seen}

    def hear(self, awaited: list[list[str]], patience: float) -> None:
        """Go on until one token of each group has come in, for so many seconds at most."""
        end = time.monotonic() + min(patience, 10.0)
        while any(self.tokens().isdisjoint(group) for group in awaited) and (left := end - time.monotonic()) > 0:
            select.select([sniffer for sniffer, _ in self.sniffers], [], [], left)
            for sniffer, label in self.sniffers:
                self._drain(sniffer, label)

    def state(self) -> Request:
        """Return what came in, with everything that the kernel still holds, after a last frame that must be seen."""
        self.self_test("end")
        for sniffer, label in self.sniffers:
            self._drain(sniffer, label)
            counts = sniffer.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            self.dropped += struct.unpack("II", counts)[1]
        tested = all((nic["label"], stage) in self.tested for nic in self.nics for stage in _STAGES)
        records = [{**seen._asdict(), "label": label, "at": round(first - self.started, 3),
                    "until": round(last - self.started, 3), "times": times}
                   for (seen, label), (first, last, times) in self.seen.items()]  # fmt: skip
        return {"alive": True, "self_test": tested, "dropped": self.dropped, "overflowed": self.overflowed,
                "down": sorted(self.down), "records": records,
                "strays": [{"frame": frame.hex(), "label": label} for frame, label in sorted(self.strays)]}  # fmt: skip

    def self_test(self, stage: str) -> None:
        """Send a frame from each interface to itself; a recorder that hears at all sees it leave."""
        for nic in self.nics:
            with contextlib.suppress(OSError), outlet(nic["mac"]) as out:
                out.send(_test_frame(nic["mac"], self._test_token(stage).encode()))

    def _test_token(self, stage: str) -> str:
        return f"{self.prefix}self-{stage}."

    def close(self) -> None:
        """Stop sniffing and listening."""
        for opened in [*(sniffer for sniffer, _ in self.sniffers), *self.servers, *self.open]:
            with contextlib.suppress(KeyError):
                self.selector.unregister(opened)
            opened.close()


def _test_frame(mac: str, payload: bytes) -> bytes:
    """Return a frame of an ethertype for experiments, from an interface to itself."""
    return (bytes.fromhex(mac.replace(":", "")) * 2 + struct.pack("!H", _TEST) + payload).ljust(60, b"\0")
