"""Sends frames as given octets, and uses services as an ordinary client."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from testbed.payload.probe.interfaces import interface_of, outlet
from testbed.payload.probe.recorder import MAX_TEXT
from testbed.payload.probe.service_client import KINDS, Talk

MAX_PROBES = 5000
_AT_ONCE = 64  # frames
_SOL_PACKET, _VNET_HDR, _QDISC_BYPASS = 263, 15, 20
_GET_MAC, _SET_MAC = 0x8927, 0x8924  # SIOCGIFHWADDR, SIOCSIFHWADDR, netdevice(7)
_ETHTOOL, _GET_TSO, _SET_TSO = 0x8946, 0x1E, 0x1F  # SIOCETHTOOL; commands of linux/ethtool.h
# struct virtio_net_hdr (virtio 1.2, 5.1.6): the TCP checksum is to be completed, and segments are to be cut
_NEEDS_CHECKSUM, _TCP4 = 1, 1
_IP4, _CHECKSUM = 14, 16  # octets before an untagged frame's IPv4 header, and before a TCP header's checksum
Request = dict[str, Any]


def ask(probe: Request) -> str:
    """Use a service as an ordinary client, from the probe's interface, and return its answer.

    Raises:
        OSError: the service refuses, is unreachable or does not answer in time.

    """
    with Talk(probe, min(float(probe.get("timeout", 5)), 60)) as talk:
        return talk.say(str(probe["token"]).encode())


def send(request: Request) -> Request:
    """Send every probe and return a result for each.

    A probe is sent after its ``delay`` in seconds, and only within the first ``budget`` seconds.
    """
    deadline = time.monotonic() + min(float(request.get("budget", 120)), 1800)
    results = []
    with contextlib.ExitStack() as opened:
        outlets = FrameOutlets(opened)
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
    """Keep one connection open and use it every ``spacing`` seconds.

    This ends when the file ``release`` appears, or after ``duration`` seconds. Once the file ``turn`` exists,
    the last of the two ``tokens`` is sent instead of the first.

    Returns:
        number of ``answers`` before and after the turn; ``error`` that ended the connection, or "".

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
    """Send the frames of all probes in rounds.

    This ends when the file ``halt`` appears, after ``duration`` seconds, or after ``rounds`` rounds.

    A probe with ``segment`` is one TCP segment over IPv4 that the kernel cuts into many, each with that many
    octets of its payload: several times as many frames leave as by single calls.

    Args:
        request: ``spacing`` is the number of seconds between two frames; 0 means as fast as possible, without
            the interface's queue and unseen by this guest's recorder, except for probes with ``segment``.
            ``pause`` is the number of seconds between two rounds.

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
    with contextlib.ExitStack() as opened:
        outlets = FrameOutlets(opened, unheard=not spacing)
        turns = [_turn(probe, outlets) for probe in request["probes"]]
        if not (spacing or pause):
            turns *= max(1, _AT_ONCE // max(1, len(turns)))  # reading the clock costs as much as a frame
        while turns and rounds > 0 and time.monotonic() < end and not halt.exists():
            rounds -= 1
            for send, frame, count in turns:
                try:
                    send(frame)
                    sent += count
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


class FrameOutlets:
    """Packet sockets, one for each interface.

    They are kept, since each opening and closing waits for a grace period of the kernel (RCU).

    Args:
        stack: closes the sockets.
        unheard: whether frames go directly to the driver, so that recorders in this guest do not receive them
            (PACKET_QDISC_BYPASS, packet(7)).

    """

    def __init__(self, stack: contextlib.ExitStack, *, unheard: bool = False) -> None:
        self.stack, self.unheard = stack, unheard
        self.open: dict[str, socket.socket] = {}
        self.cutting: dict[str, socket.socket] = {}

    def at(self, mac: str) -> socket.socket:
        """Return the socket of the interface with a MAC address."""
        if mac not in self.open:
            self.open[mac] = self.stack.enter_context(outlet(mac))
            self.open[mac].setsockopt(_SOL_PACKET, _QDISC_BYPASS, int(self.unheard))
        return self.open[mac]

    def cutting_at(self, mac: str) -> socket.socket:
        """Return a socket of the interface that takes frames with a virtio header, to be cut into segments.

        Until the end of the stack, the kernel cuts them and not the device (ethtool(8), tso).
        """
        if mac not in self.cutting:
            self.stack.enter_context(_cut_by_kernel(interface_of(mac)))
            self.cutting[mac] = self.stack.enter_context(outlet(mac))
            self.cutting[mac].setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        return self.cutting[mac]


def _turn(probe: Request, outlets: FrameOutlets) -> tuple[Callable[[bytes], int], bytes, int]:
    """Return how to send a probe's frame, the octets, and the number of frames that leave then."""
    frame, octets = bytes.fromhex(probe["frame"]), int(probe.get("segment", 0))
    if not octets:
        return outlets.at(probe["mac"]).send, frame, 1
    tcp = _IP4 + (frame[_IP4] & 15) * 4
    head = tcp + (frame[tcp + 12] >> 4) * 4
    plan = struct.pack("=BBHHHH", _NEEDS_CHECKSUM, _TCP4, head, octets, tcp, _CHECKSUM)
    return outlets.cutting_at(probe["mac"]).send, plan + frame, -(-(len(frame) - head) // octets)


@contextlib.contextmanager
def _cut_by_kernel(name: str) -> Iterator[None]:
    """Take the cutting of TCP segments away from an interface's device during the block.

    Raises:
        OSError: the driver refuses.

    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        def ethtool(command: int, value: int = 0) -> int:
            # struct ethtool_value; an array knows its address (see `testbed.payload.probe.sniffer`)
            asked = array("I", (command, value))
            fcntl.ioctl(control, _ETHTOOL, struct.pack("16sP16x", name.encode()[:15], asked.buffer_info()[0]))
            return asked[1]

        own = ethtool(_GET_TSO)
        ethtool(_SET_TSO, 0)
        try:
            yield
        finally:
            ethtool(_SET_TSO, own)


@contextlib.contextmanager
def with_mac(name: str, mac: str) -> Iterator[None]:
    """Give an interface another MAC address during the block.

    The driver passes the address to the device.

    Args:
        name: name of the interface.
        mac: the address; if empty, the interface keeps its own.

    Raises:
        OSError: the driver refuses.

    """
    # struct ifreq (netdevice(7)): 16 octets of name, 2 of address family, 6 of MAC address
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


def _attempt(probe: Request, outlets: FrameOutlets) -> Request:
    try:
        if probe["kind"] in KINDS:
            return {"answer": ask(probe), "sent": True, "error": ""}
        frame = bytes.fromhex(probe["frame"])
        mac = str(probe.get("wears", ""))
        with with_mac(interface_of(probe["mac"]) if mac else "", mac):
            for number in range(min(int(probe.get("copies", 1)), MAX_PROBES)):
                outlets.at(probe["mac"]).send(_as_stranger(frame) if number else frame)
    except (OSError, ValueError, KeyError) as error:
        return {"error": (str(error) or repr(error))[:MAX_TEXT]}
    return {"sent": True, "error": ""}
