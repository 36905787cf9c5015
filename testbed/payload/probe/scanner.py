"""Asks many services at once and tells what came back: as ordinary clients do, or with frames (NET-09)."""

from __future__ import annotations

import contextlib
import errno
import re
import select
import socket
import time
from pathlib import Path
from typing import Any

from testbed.payload.probe.frame_parser import SNAP
from testbed.payload.probe.interfaces import interface_of, packet_socket
from testbed.payload.probe.recorder import MAX_TEXT

MAX_ASKS = 400  # at once; most of them have a socket of their own
_AGAIN = 1.0  # seconds after which what was not answered is sent once more
_EVERYTHING, _BURST = 3, 500
_BEAT = 0.1  # seconds
_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}
Request = dict[str, Any]


class Ask:
    """One question and its state: ``open``, ``refused``, ``unreachable``, ``silent``, or ``error`` and
    why.
    """

    def __init__(self, request: Request, outlets: Outlets) -> None:
        self.name, self.kind, self.state = str(request["id"]), str(request["kind"]), "silent"
        self.data = bytes.fromhex(str(request.get("frame", "")))
        self.expected = re.compile(str(request.get("expect", "")))
        try:
            self.socket = outlets.wire(request) if self.kind == "frame" else outlets.client(request)
        except (OSError, ValueError, KeyError) as error:
            self._failed(error)

    @property
    def waiting(self) -> bool:
        """Whether an answer may still come."""
        return self.state == "silent"

    def send(self) -> None:
        """Ask, or ask again; TCP does so by itself."""
        if self.kind != "tcp" and self.waiting:
            try:
                self.socket.send(self.data)
            except OSError as error:
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        number = getattr(error, "errno", None)
        if number == errno.ECONNREFUSED:
            self.state = "refused"
        elif number in _UNREACHABLE:
            self.state = "unreachable"
        else:
            self.state = f"error: {error!r}"[:MAX_TEXT]

    def read(self) -> None:
        """Take what has come back to a client's socket."""
        try:
            if self.kind == "udp":
                self.socket.recv(SNAP)
            number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, "the connection failed")
            self.state = "open"
        except OSError as error:
            self._failed(error)


class Outlets:
    """Sockets to ask through: a client's for each service, and one for the frames of each interface."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.wires: dict[str, socket.socket] = {}

    def wire(self, request: Request) -> socket.socket:
        """Return the socket for the frames of an interface; the kernel lets every opening wait for a grace
        period.
        """
        mac = request["mac"]
        if mac not in self.wires:
            self.wires[mac] = self.stack.enter_context(
                packet_socket(interface_of(mac) or "none", _EVERYTHING)
            )
            self.wires[mac].setblocking(False)
        return self.wires[mac]

    def client(self, request: Request) -> socket.socket:
        """Return a socket that is on its way to a service."""
        kind = socket.SOCK_STREAM if request["kind"] == "tcp" else socket.SOCK_DGRAM
        opened = self.stack.enter_context(socket.socket(socket.AF_INET, kind))
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface_of(request["mac"]).encode())
        opened.bind((request["address"], 0))
        with contextlib.suppress(BlockingIOError):
            opened.connect((request["ip"], int(request["port"])))
        return opened


def knock(request: Request) -> Request:
    """Ask everything in ``probes`` at once, and once more after a second; return the states after ``window``
    seconds.

    Raises:
        ValueError: there are more than `MAX_ASKS`; none is asked.

    """
    if len(request["probes"]) > MAX_ASKS:
        raise ValueError(f"{len(request['probes'])} questions, and {MAX_ASKS} at most")
    with contextlib.ExitStack() as stack:
        outlets = Outlets(stack)
        asks = [Ask(ask, outlets) for ask in request["probes"]]
        end = time.monotonic() + min(float(request.get("window", 4)), 20.0)
        for last in (min(time.monotonic() + _AGAIN, end), end):
            for ask in asks:
                ask.send()
            while any(ask.waiting for ask in asks) and (left := last - time.monotonic()) > 0:
                _turn([ask for ask in asks if ask.waiting], min(left, 0.2))
    return {
        "results": [
            {"id": ask.name, "sent": not ask.state.startswith("error"), "state": ask.state} for ask in asks
        ]
    }


def beat(request: Request) -> Request:
    """Notice how long this machine stands still, until the file ``rest`` appears or for ``duration`` seconds.

    Returns:
        the ``longest`` time, in seconds, by which a short sleep was longer than asked for.

    """
    rest, now, longest = Path(request["rest"]), time.monotonic(), 0.0
    end = now + min(float(request["duration"]), 300.0)
    while not rest.exists() and now < end:
        time.sleep(_BEAT)
        before, now = now, time.monotonic()
        longest = max(longest, now - before - _BEAT)
    return {"longest": round(longest, 3), "rested": rest.exists()}


def _turn(asks: list[Ask], seconds: float) -> None:
    """Wait for answers, and give each to those who wait for it."""
    poll = select.poll()
    found: dict[int, list[Ask]] = {}
    for ask in asks:
        found.setdefault(ask.socket.fileno(), []).append(ask)
    for number, waiting in found.items():
        poll.register(number, select.POLLOUT if waiting[0].kind == "tcp" else select.POLLIN)
    for number, _ in poll.poll(seconds * 1000):
        if found[number][0].kind == "frame":
            _match(found[number])
        else:
            found[number][0].read()


def _match(asks: list[Ask]) -> None:
    for _ in range(_BURST):
        try:
            text = asks[0].socket.recv(SNAP).hex()
        except OSError:
            return
        for ask in asks:
            if ask.expected.search(text):
                ask.state = "open"
