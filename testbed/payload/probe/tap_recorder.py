"""Recorder on a node beside those in its guests: remembers what the node hands to its guests' interfaces.

What goes to a guest leaves its node by a tap, so for the node it is outgoing. The kernel looks for the run's
tokens itself, so that a flood costs the node no copies: of what carries none, only answers of DHCP, ARP and
Neighbor Discovery come to this program, since their senders cannot put a token into them.
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
_WHOLE = 0x40000  # octets that are kept of a frame
_ACCEPT, _REFUSE = (RETURN, 0, 0, _WHOLE), (RETURN, 0, 0, 0)


class TapRecorder(Sniffer):
    """Sniffs on the taps of a node as long as its owner turns the selector and calls what is ready."""

    promiscuous = False  # nothing that goes out is left out
    buffer_option = 33  # SO_RCVBUFFORCE: more than the machine gives to everybody (socket(7))

    def __init__(self, prefix: str, taps: list[str], selector: selectors.BaseSelector) -> None:
        super().__init__(prefix, selector, min(MAX_RECORDS * max(1, len(taps)), MOST))
        self.taps, self.ignored = taps, 0

    def prepare(self, _: Request) -> Request:
        """Sniff on every tap; return those that are there."""
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
        """Sniff on a tap; where the kernel has no room for the whole filter, this program looks for tokens
        itself.
        """
        try:
            self.sniff(name, name, outgoing(worth(self.prefix)))
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            self.sniff(name, name, outgoing([_ACCEPT]))

    def take(self, frame: bytes, kind: int, label: str) -> None:
        """Remember what a frame says that goes to a guest."""
        seen = parse(frame, self.prefix) if kind == OUTGOING else None
        if seen:
            self.remember(seen, label)
        else:
            self.ignored += 1

    def state(self) -> Request:
        """Return what went to guests, and how many frames came to this program that say nothing."""
        return {**super().state(), "ignored": self.ignored}


def outgoing(steps: Sequence[Step]) -> list[Step]:
    """Return a filter for what a node hands to a guest, and another one lets through."""
    return [(LOAD, 0, 0, PACKET_TYPE), (EQUAL, 1, 0, OUTGOING), _REFUSE, *steps]


def worth(prefix: str) -> list[Step]:
    """Return a filter for frames with a token of a run, ARP, Neighbor Discovery, and answers of DHCP.

    What is too short for a step is refused by the kernel, and too short for a token as well.
    """
    return [*_assembled(_KINDS), *_search(prefix)]


# Instruction, where to go on if so and if not (at the next line if that is empty), and a number; or the name
# of the next line.
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
    """Return steps whose jumps are by number."""
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
    """Return a filter for frames in which a token of a run begins, by four of the characters that no other
    run shares.
    """
    word = int.from_bytes(prefix.encode()[3:7], "big")
    steps: list[Step] = []
    for start in range(_HEAD + 3, SEARCHED + 3, _BLOCK):
        offsets = range(start, min(start + _BLOCK, SEARCHED + 3))
        for left, at in zip(reversed(range(len(offsets))), offsets, strict=True):
            steps += [(LOAD, 0, 0, at), (EQUAL, 2 * left + 1, 0, word)]
        steps += [(JUMP, 0, 0, 1), _ACCEPT]
    return [*steps, _REFUSE]
