"""Reads the frames of interfaces and remembers what they say; what is told of them is bounded."""

from __future__ import annotations

import contextlib
import errno
import select
import selectors
import socket
import struct
import time
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from testbed.payload.probe.frame_parser import SNAP, Seen
from testbed.payload.probe.interfaces import packet_socket

MAX_RECORDS = 2000
NOISE = 1000  # octets; no honest ARP frame is as long
OUTGOING = 4  # how the kernel calls a packet that leaves this machine (packet(7), PACKET_OUTGOING)
_BUFFER = 4 << 20  # octets
_ATTACH_FILTER = 26
_PACKET_ADD_MEMBERSHIP, _PACKET_STATISTICS, _SOL_PACKET, _PROMISCUOUS = 1, 6, 263, 1
_ETH_P_ALL = 3
# Instructions of the kernel's packet filter, and where it tells of what kind a packet is (linux/filter.h,
# SKF_AD_PKTTYPE).
LOAD, LOAD_HALF, LOAD_BYTE, LOAD_AT_X, LOAD_LENGTH, HEADER_TO_X, TO_X = (
    0x20,
    0x28,
    0x30,
    0x40,
    0x80,
    0xB1,
    0x07,
)
JUMP, EQUAL, EQUAL_X, GREATER, RETURN = 0x05, 0x15, 0x1D, 0x25, 0x06
PACKET_TYPE = 0xFFFFF004
Step = tuple[int, int, int, int]  # instruction, how many to skip if so, if not, and a number
Request = dict[str, Any]


def attach(opened: socket.socket, steps: Sequence[Step]) -> None:
    """Let the kernel keep frames to itself that a filter refuses.

    Raises:
        OSError: the kernel does not take the filter.

    """
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    text = array(
        "B", program
    )  # of which the address can be told without ctypes, which takes a nested guest a second to import
    opened.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", len(steps), text.buffer_info()[0]))


class Sniffer:
    """Sniffs as long as its owner turns the selector and calls what is ready.

    Args:
        prefix: how the tokens of the run begin.
        most: how many kinds of frames are kept.

    """

    buffer_option = socket.SO_RCVBUF  # no more than the machine gives to everybody (socket(7))
    promiscuous = True  # whether frames for other MAC addresses must come in

    def __init__(self, prefix: str, selector: selectors.BaseSelector, most: int = MAX_RECORDS) -> None:
        self.prefix, self.selector, self.most = prefix, selector, most
        self.sniffers: list[tuple[socket.socket, str]] = []
        self.seen: dict[tuple[Seen, str], list[float]] = {}
        self.down: set[str] = set()
        self.overflowed, self.dropped = False, 0
        self.started = time.monotonic()

    def take(self, frame: bytes, kind: int, label: str) -> None:
        """Read one frame.

        Args:
            kind: which way it goes, as the kernel says (packet(7), sll_pkttype).

        """
        raise NotImplementedError

    def expire(self) -> None:
        """Do what is due from time to time."""

    def sniff(self, name: str, label: str, steps: Sequence[Step]) -> None:
        """Sniff on an interface, through a filter.

        Raises:
            OSError: there is no such interface, or the kernel does not take the filter.

        """
        sniffer = packet_socket(name, _ETH_P_ALL)
        sniffer.setblocking(False)
        try:
            attach(sniffer, steps)
        except OSError:
            sniffer.close()
            raise
        sniffer.setsockopt(socket.SOL_SOCKET, self.buffer_option, _BUFFER)
        if self.promiscuous:
            member = struct.pack("iHH8s", socket.if_nametoindex(name), _PROMISCUOUS, 0, b"")
            sniffer.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, member)
        self.sniffers.append((sniffer, label))
        self.selector.register(sniffer, selectors.EVENT_READ, lambda opened: self.drain(opened, label))

    def drain(self, sniffer: socket.socket, label: str) -> None:
        """Take the frames that the kernel holds."""
        for frame, kind in self._frames(sniffer, label):
            self.take(frame, kind, label)

    def _frames(self, sniffer: socket.socket, label: str) -> Iterator[tuple[bytes, int]]:
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
                yield frame, source[2]

    def remember(self, seen: Seen, label: str) -> None:
        """Remember when something came in first and last, and how often."""
        now, times = time.monotonic(), self.seen.get((seen, label))
        if times is not None:
            times[1:] = now, times[2] + 1
        elif len(self.seen) < self.most:
            self.seen[seen, label] = [now, now, 1]
        else:
            self.overflowed = True

    def tokens(self) -> set[str]:
        """Return the tokens of all that has come in so far."""
        return {seen.token for seen, _ in self.seen}

    def hear(self, awaited: list[list[str]], patience: float) -> None:
        """Go on until one token of each group has come in, for so many seconds at most.

        Args:
            awaited: how those tokens begin; who waits for a token need not know it.

        """
        end = time.monotonic() + min(patience, 10.0)
        groups = [tuple(group) for group in awaited]
        while (
            not all(any(token.startswith(group) for token in self.tokens()) for group in groups)
            and (left := end - time.monotonic()) > 0
        ):
            select.select([sniffer for sniffer, _ in self.sniffers], [], [], left)
            for sniffer, label in self.sniffers:
                self.drain(sniffer, label)

    def state(self) -> Request:
        """Return what came in, with everything that the kernel still holds."""
        for sniffer, label in self.sniffers:
            self.drain(sniffer, label)
            counts = sniffer.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            self.dropped += struct.unpack("II", counts)[1]
        records = [{**seen._asdict(), "label": label, "at": round(first - self.started, 3),
                    "until": round(last - self.started, 3), "times": times}
                   for (seen, label), (first, last, times) in self.seen.items()]  # fmt: skip
        return {
            "alive": True,
            "dropped": self.dropped,
            "overflowed": self.overflowed,
            "down": sorted(self.down),
            "records": records,
        }

    def close(self) -> None:
        """Stop sniffing."""
        self.forget([sniffer for sniffer, _ in self.sniffers])

    def forget(self, sockets: Sequence[socket.socket]) -> None:
        """Close sockets, whether or not something waits for what comes in by them."""
        for opened in sockets:
            with contextlib.suppress(KeyError):
                self.selector.unregister(opened)
            opened.close()
