"""Sends what it is given: frames as octets, and uses of services as anyone uses them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testbed.payload.probe.interfaces import interface_of, outlet
from testbed.payload.probe.recorder import MAX_TEXT
from testbed.payload.probe.service_client import KINDS, Talk

MAX_PROBES = 5000
_AT_ONCE = 64  # frames
_SOL_PACKET, _QDISC_BYPASS = 263, 20
_GET_MAC, _SET_MAC = 0x8927, 0x8924  # SIOCGIFHWADDR, SIOCSIFHWADDR, netdevice(7)
Request = dict[str, Any]


def ask(probe: Request) -> str:
    """Use a service as anyone does, from the probe's own interface; return its answer.

    Raises:
        OSError: refused, unreachable, or no answer in time.

    """
    with Talk(probe, min(float(probe.get("timeout", 5)), 60)) as talk:
        return talk.say(str(probe["token"]).encode())


def send(request: Request) -> Request:
    """Send every probe, within ``budget`` seconds, each after a ``delay``; return what became of each."""
    deadline = time.monotonic() + min(float(request.get("budget", 120)), 1800)
    results = []
    with contextlib.ExitStack() as opened:
        outlets = Outlets(opened)
        for probe in request["probes"][:MAX_PROBES]:
            time.sleep(min(float(probe.get("delay", 0)), 2))
            result = {"id": probe["id"], "sent": False, "error": "no time left", "answer": ""}
            for attempt in range(min(int(probe.get("repeat", 1)), 20)):
                if time.monotonic() > deadline or (attempt and result["answer"]):
                    break
                time.sleep(min(float(probe.get("spacing", 0.02)), 2) if attempt else 0)
                result.update(_attempt(probe, outlets))
            results.append(result)
    return {"results": results}


def hold(request: Request) -> Request:
    """Keep one conversation open and use it each ``spacing`` seconds, until the file ``release`` appears or
    for ``duration`` seconds.

    Once the file ``turn`` exists, the last of the two ``tokens`` is sent instead of the first.

    Returns:
        how many ``answers`` came before and after the turn; ``error`` is how it ended, if it did.

    """
    release, turn, end = (
        Path(request["release"]),
        Path(request["turn"]),
        time.monotonic() + min(float(request["duration"]), 300.0),
    )
    counts, error = [0, 0], ""
    with Talk(request, 10) as talk:
        talk.end_at_once()
        talk.wait_for(float(request.get("spacing", 0.2)))
        while not release.exists() and time.monotonic() < end and not error:
            turned = turn.exists()
            try:
                counts[turned] += bool(talk.say(str(request["tokens"][turned]).encode()))
                time.sleep(float(request.get("spacing", 0.2)))
            except TimeoutError:
                continue
            except OSError as failure:
                error = str(failure)[:MAX_TEXT]
    return {"answers": counts, "error": error, "turned": turn.exists()}


def stream(request: Request) -> Request:
    """Send the frames of every probe in turns until the file ``halt`` appears, or for ``duration`` seconds,
    or so many ``rounds``.

    Args:
        request: ``spacing`` is the number of seconds between two frames; 0 stands for as fast as it goes,
            past the queues and past the recorder of this guest. ``pause`` is the number of seconds between
            two rounds.

    Raises:
        ValueError: there are more than `MAX_PROBES`; none is sent.

    Returns:
        ``sent`` frames, and how many were ``refused`` because the interface's queue was full.

    """
    if len(request["probes"]) > MAX_PROBES:
        raise ValueError(f"{len(request['probes'])} frames, and {MAX_PROBES} at most")
    started, spacing, rounds = (
        time.monotonic(),
        float(request.get("spacing", 0.005)),
        int(request.get("rounds", 2**31)),
    )
    halt, pause = Path(request["halt"]), float(request.get("pause", 0))
    end, sent, refused = started + min(float(request["duration"]), 300.0), 0, 0
    frames = [(probe["mac"], bytes.fromhex(probe["frame"])) for probe in request["probes"]]
    with contextlib.ExitStack() as opened:
        outlets = Outlets(opened, unheard=not spacing)
        turns = [(outlets.at(mac).send, frame) for mac, frame in frames]
        if not (spacing or pause):
            turns *= max(1, _AT_ONCE // max(1, len(turns)))  # a look at the clock costs as much as a frame
        while turns and rounds > 0 and time.monotonic() < end and not halt.exists():
            rounds -= 1
            for send, frame in turns:
                try:
                    send(frame)
                    sent += 1
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    refused += 1
                if spacing:
                    time.sleep(spacing)
                    if time.monotonic() > end or halt.exists():
                        break
            if pause:
                time.sleep(pause)
        while rounds > 0 and not halt.exists() and time.monotonic() < end:
            time.sleep(0.2)
    lasted = round(time.monotonic() - started, 3)
    return {"sent": sent, "refused": refused, "halted": halt.exists(), "lasted": lasted}


class Outlets:
    """One packet socket for each interface: the kernel lets every opening and closing wait for a grace
    period.

    Args:
        unheard: frames go to the driver at once, so that nobody who sniffs in this guest has to read them
            (packet(7)).

    """

    def __init__(self, stack: contextlib.ExitStack, *, unheard: bool = False) -> None:
        self.stack, self.unheard = stack, unheard
        self.open: dict[str, socket.socket] = {}

    def at(self, mac: str) -> socket.socket:
        """Return the socket of the interface with a MAC address."""
        if mac not in self.open:
            self.open[mac] = self.stack.enter_context(outlet(mac))
            self.open[mac].setsockopt(_SOL_PACKET, _QDISC_BYPASS, int(self.unheard))
        return self.open[mac]


@contextlib.contextmanager
def wearing(name: str, mac: str) -> Iterator[None]:
    """Let an interface have another MAC address for a while, so that its driver tells the device; none if it
    is empty.

    Raises:
        OSError: the driver refuses.

    """
    if not mac:
        yield
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        own = fcntl.ioctl(control, _GET_MAC, struct.pack("16s16x", name.encode()[:15]))
        fcntl.ioctl(control, _SET_MAC, own[:18] + bytes.fromhex(mac.replace(":", "")) + own[24:])
        try:
            yield
        finally:
            fcntl.ioctl(control, _SET_MAC, own)


def _as_stranger(frame: bytes) -> bytes:
    """Return a frame with another, random source MAC address."""
    return frame[:6] + b"\x0e" + os.urandom(5) + frame[12:]


def _attempt(probe: Request, outlets: Outlets) -> Request:
    try:
        if probe["kind"] in KINDS:
            return {"answer": ask(probe), "sent": True, "error": ""}
        frame = bytes.fromhex(probe["frame"])
        mac = str(probe.get("wears", ""))
        with wearing(interface_of(probe["mac"]) if mac else "", mac):
            for number in range(min(int(probe.get("copies", 1)), MAX_PROBES)):
                outlets.at(probe["mac"]).send(_as_stranger(frame) if number else frame)
    except (OSError, ValueError, KeyError) as error:
        return {"error": (str(error) or repr(error))[:MAX_TEXT]}
    return {"sent": True, "error": ""}
