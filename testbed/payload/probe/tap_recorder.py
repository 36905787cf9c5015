"""Recorder on a node: captures frames that the node sends to its guests' interfaces.

It is independent of the recorders in the guests. A frame to a guest leaves its node by a tap, so for the node
it is outgoing. A BPF filter looks for the run's tokens, so that a flood costs the node no copies. Of frames
without a token, only replies of DHCP, ARP and Neighbor Discovery pass the filter, since their senders cannot
put a token into them.
"""

from __future__ import annotations

import errno
import selectors
from collections.abc import Sequence

from testbed.payload.probe.frame_parser import parse
from testbed.payload.probe.sniffer import (
    EQUAL,
    GREATER,
    HEADER_TO_X,
    JUMP,
    LOAD,
    LOAD_AT_X,
    LOAD_BYTE,
    LOAD_HALF,
    LOAD_LENGTH,
    MAX_RECORDS,
    NOISE,
    OUTGOING,
    PACKET_TYPE,
    RETURN,
    Request,
    Sniffer,
    Step,
)

MOST = 4 * MAX_RECORDS
SEARCHED = 640  # octets of a frame in which a token may begin; those of all probes begin within 400
_HEAD = 14  # octets of an Ethernet header
_BLOCK = 100  # offsets between two places that accept a frame; a jump skips 255 instructions at most
_WHOLE = 0x40000  # maximum of octets that are captured of a frame
_ACCEPT, _REFUSE = (RETURN, 0, 0, _WHOLE), (RETURN, 0, 0, 0)


class TapRecorder(Sniffer):
    """Captures on the taps of a node; its owner runs the selector and the callbacks."""

    promiscuous = False  # a packet socket receives all outgoing frames anyway
    buffer_option = 33  # SO_RCVBUFFORCE: not limited by rmem_max (socket(7))

    def __init__(self, prefix: str, taps: list[str], selector: selectors.BaseSelector) -> None:
        super().__init__(prefix, selector, min(MAX_RECORDS * max(1, len(taps)), MOST))
        self.taps, self.ignored = taps, 0

    def prepare(self, _: Request) -> Request:
        """Start to capture on every tap and return the names of the existing ones."""
        found = []
        for name in self.taps:
            try:
                self._sniff(name)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
            else:
                found.append(name)
        return {"ready": True, "taps": found}

    def _sniff(self, name: str) -> None:
        """Capture on a tap; if the kernel has no memory for the whole filter, use a simple one.

        The simple filter passes all outgoing frames, and this program looks for tokens in them.
        """
        try:
            self.sniff(name, name, outgoing(worth(self.prefix)))
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            self.sniff(name, name, outgoing([_ACCEPT]))

    def take(self, frame: bytes, kind: int, label: str) -> None:
        """Record a frame to a guest, or count it in `ignored`."""
        seen = parse(frame, self.prefix) if kind == OUTGOING else None
        if seen:
            self.remember(seen, label)
        else:
            self.ignored += 1

    def state(self) -> Request:
        """Return the recorded state with the number of ignored frames."""
        return {**super().state(), "ignored": self.ignored}


def outgoing(steps: Sequence[Step]) -> list[Step]:
    """Return a filter that refuses frames that are not outgoing, followed by given steps."""
    return [(LOAD, 0, 0, PACKET_TYPE), (EQUAL, 1, 0, OUTGOING), _REFUSE, *steps]


def worth(prefix: str) -> list[Step]:
    """Return a filter for frames with a token, ARP, Neighbor Discovery and replies of DHCP.

    The kernel refuses a frame that is too short for a step. Such a frame is also too short for a token.
    """
    return [*_assembled(_KINDS), *_search(prefix)]


# Each line is an instruction, its targets if true and if false (the next line if empty) and its operand; or a
# label of the next line. Offsets count from the Ethernet header: 12 ethertype; in IPv4 23 protocol, and ports
# behind the header of variable length (loaded into X); in IPv6 20 next header, 54 ICMPv6 type or UDP ports.
# 0x00430044 is ports 67 to 68 (DHCP), 0x02230222 ports 547 to 546 (DHCPv6), 135 and 136 Neighbor Discovery.
_KINDS: tuple[tuple[int, str, str, int] | str, ...] = (
    (LOAD_HALF, "", "", 12),
    (EQUAL, "arp", "", 0x0806),
    (EQUAL, "four", "", 0x0800),
    (EQUAL, "six", "search", 0x86DD),
    "arp",
    (LOAD_LENGTH, "", "", 0),
    (GREATER, "", "accept", NOISE),
    (RETURN, "", "", 0),
    "four",
    (LOAD_BYTE, "", "", 23),
    (EQUAL, "", "search", 17),
    (HEADER_TO_X, "", "", 14),
    (LOAD_AT_X, "", "", 14),
    (EQUAL, "accept", "search", 0x00430044),
    "six",
    (LOAD_BYTE, "", "", 20),
    (EQUAL, "icmp6", "", 58),
    (EQUAL, "udp6", "search", 17),
    "icmp6",
    (LOAD_BYTE, "", "", 54),
    (EQUAL, "accept", "", 135),
    (EQUAL, "accept", "search", 136),
    "udp6",
    (LOAD, "", "", 54),
    (EQUAL, "accept", "search", 0x02230222),
    "accept",
    (RETURN, "", "", _WHOLE),
    "search",
)


def _assembled(lines: Sequence[tuple[int, str, str, int] | str]) -> list[Step]:
    """Return the steps of labelled lines, with relative jumps."""
    steps, names = list[tuple[int, str, str, int]](), dict[str, int]()
    for line in lines:
        if isinstance(line, str):
            names[line] = len(steps)
        else:
            steps.append(line)
    far = [
        (code, names.get(yes, at + 1), names.get(no, at + 1), number)
        for at, (code, yes, no, number) in enumerate(steps)
    ]
    return [(code, yes - at - 1, no - at - 1, number) for at, (code, yes, no, number) in enumerate(far)]


def _search(prefix: str) -> list[Step]:
    """Return a filter for frames that contain the beginning of a token of a run.

    It compares one word at every offset: the four random characters after ``tb-`` identify the run. BPF has
    no loops, so the comparisons are unrolled.
    """
    word = int.from_bytes(prefix.encode()[3:7], "big")
    steps: list[Step] = []
    for start in range(_HEAD + 3, SEARCHED + 3, _BLOCK):
        offsets = range(start, min(start + _BLOCK, SEARCHED + 3))
        for left, at in zip(reversed(range(len(offsets))), offsets, strict=True):
            steps += [(LOAD, 0, 0, at), (EQUAL, 2 * left + 1, 0, word)]
        steps += [(JUMP, 0, 0, 1), _ACCEPT]
    return [*steps, _REFUSE]
