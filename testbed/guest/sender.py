"""Sends what it is given: frames as octets, and uses of services as anyone uses them."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from testbed.guest.recorder import MAX_TEXT, interface_of, outlet

MAX_PROBES = 5000
Request = dict[str, Any]


def ask(probe: Request) -> str:
    """Use a service as anyone does, from the probe's own interface; return its answer.

    Raises:
        OSError: refused, unreachable, or no answer in time.

    """
    token, kind = str(probe["token"]).encode(), probe["kind"]
    family = socket.AF_INET6 if ":" in probe["ip"] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp-connect" else socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface_of(probe["mac"]).encode())
        opened.bind((probe["address"], 0))
        opened.settimeout(min(float(probe.get("timeout", 5)), 60))
        opened.connect((probe["ip"], int(probe["port"])))
        opened.sendall(token)
        return opened.recv(MAX_TEXT).decode(errors="replace")


def send(request: Request) -> Request:
    """Send every probe, within ``budget`` seconds; return what became of each."""
    deadline = time.monotonic() + min(float(request.get("budget", 120)), 1800)
    results = []
    with contextlib.ExitStack() as opened:
        outlets = Outlets(opened)
        for probe in request["probes"][:MAX_PROBES]:
            result = {"id": probe["id"], "sent": False, "error": "no time left", "answer": ""}
            for attempt in range(min(int(probe.get("repeat", 1)), 20)):
                if time.monotonic() > deadline or (attempt and result["answer"]):
                    break
                time.sleep(min(float(probe.get("spacing", 0.02)), 2) if attempt else 0)
                result.update(_attempt(probe, outlets))
            results.append(result)
    return {"results": results}


def stream(request: Request) -> Request:
    """Send the frames of every probe in turns, one each ``spacing`` seconds, until the file ``halt`` appears or ``duration`` seconds."""
    started, spacing = time.monotonic(), float(request.get("spacing", 0.005))
    halt = Path(request["halt"])
    end, rounds = started + min(float(request["duration"]), 300.0), 0
    frames = [(probe["mac"], bytes.fromhex(probe["frame"])) for probe in request["probes"][:MAX_PROBES]]
    with contextlib.ExitStack() as opened:
        outlets = Outlets(opened)
        while frames and time.monotonic() < end and not halt.exists():
            for mac, frame in frames:
                outlets.send(mac, frame)
                time.sleep(spacing)
            rounds += 1
        while not halt.exists() and time.monotonic() < end:
            time.sleep(0.2)
    return {"rounds": rounds, "halted": halt.exists(), "lasted": round(time.monotonic() - started, 3)}


class Outlets:
    """One packet socket for each interface: the kernel lets every opening and closing wait for a grace period."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.open: dict[str, socket.socket] = {}

    def send(self, mac: str, frame: bytes) -> None:
        """Send a frame from the interface with a MAC address."""
        if mac not in self.open:
            self.open[mac] = self.stack.enter_context(outlet(mac))
        self.open[mac].send(frame)


def _as_stranger(frame: bytes) -> bytes:
    """Return a frame with another, random source MAC address."""
    return frame[:6] + b"\x0e" + secrets.token_bytes(5) + frame[12:]


def _attempt(probe: Request, outlets: Outlets) -> Request:
    try:
        if probe["kind"] in ("tcp-connect", "udp-ask"):
            return {"answer": ask(probe), "sent": True, "error": ""}
        frame = bytes.fromhex(probe["frame"])
        for number in range(min(int(probe.get("copies", 1)), MAX_PROBES)):
            outlets.send(probe["mac"], _as_stranger(frame) if number else frame)
    except (OSError, ValueError, KeyError) as error:
        return {"error": (str(error) or repr(error))[:MAX_TEXT]}
    return {"sent": True, "error": ""}
