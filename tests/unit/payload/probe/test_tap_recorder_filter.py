"""What a node's kernel hands to the recorder beside guests: the kernel's own packet filter judges frames on a
local socket.
"""

from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DHCP6_Advertise
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from testbed.payload.probe.sniffer import NOISE, attach
from testbed.payload.probe.tap_recorder import SEARCHED, TapRecorder, outgoing, worth
from testbed.verify.probe import frames
from testbed.verify.probe.tokens import Tokens

TOKENS = Tokens("tb-0123abcd-", b"key")
LINK = Ether(src="0a:00:00:00:00:01", dst="0a:00:00:00:00:02")
FOUR, SIX = IP(src="10.0.0.2", dst="10.0.0.3"), IPv6(src="fd00::2", dst="fd00::3")
TOKEN = Raw(TOKENS.of("cell1").encode())
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a local socket; what the filter refuses does not come to the second."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        other.setblocking(False)
        yield one, other


def _passes(pair: Pair, frame: bytes) -> bool:
    pair[0].send(frame)
    try:
        return pair[1].recv(4096) == frame
    except BlockingIOError:
        return False


WORTH: dict[str, Packet] = {
    "raw": Ether(type=frames.TEST) / TOKEN,
    "tcp": LINK / FOUR / TCP() / TOKEN,
    "udp": LINK / FOUR / UDP() / TOKEN,
    "udp over IPv6": LINK / SIX / UDP() / TOKEN,
    "behind options": LINK / SIX / IPv6ExtHdrHopByHop() / ICMPv6EchoRequest() / TOKEN,
    "IPv4 options": LINK
    / IP(src="10.0.0.2", dst="10.0.0.3", options=[frames.source_route("loose", "10.0.0.9")])
    / UDP()
    / TOKEN,
    "tagged": LINK / Dot1Q(vlan=1) / FOUR / TCP() / TOKEN,
    "a fragment": LINK / IP(src="10.0.0.2", dst="10.0.0.3", flags="MF") / TOKEN,
    "ARP": Ether(type=0x0806) / Raw(bytes(46)),
    "DHCP": LINK
    / FOUR
    / UDP(sport=67, dport=68)
    / BOOTP(op=2)
    / DHCP(options=[("message-type", "offer"), "end"]),
    "DHCPv6": LINK / SIX / UDP(sport=547, dport=546) / DHCP6_Advertise(),
    "ND question": LINK / SIX / frames.neighbor_question("fd00::3", "0a:00:00:00:00:01"),
    "ND answer": LINK / SIX / frames.neighbor_advertisement("fd00::3", "0a:00:00:00:00:01"),
}


@pytest.mark.parametrize("name", WORTH)
def test_what_is_evidence_comes_through(pair: Pair, name: str) -> None:
    attach(pair[1], worth(TOKENS.prefix))
    assert _passes(pair, bytes(WORTH[name]).ljust(60, b"\0"))


NOISES: dict[str, bytes] = {
    "a datagram": bytes(LINK / FOUR / UDP() / Raw(bytes(200))),
    "a segment over IPv6": bytes(LINK / SIX / TCP() / Raw(bytes(200))),
    "a large segment": bytes(LINK / FOUR / TCP() / Raw(b"x" * 1400)),
    "long ARP": (b"\xff" * 12 + b"\x08\x06").ljust(NOISE + 1, b"\0"),
    "another run's token": bytes(
        LINK / FOUR / UDP() / Raw(Tokens("tb-ffffffff-", b"key").of("cell1").encode())
    ),
    "a question to DHCP": frames.dhcp_discover("0a:00:00:00:00:01", 1)(b""),
    "an echo over IPv6": bytes(LINK / SIX / ICMPv6EchoRequest()),
    "a short frame": b"\xff" * 12 + b"\x08\0",
    "no frame": b"x",
}


@pytest.mark.parametrize("name", NOISES)
def test_what_is_none_stays_in_the_kernel(pair: Pair, name: str) -> None:
    attach(pair[1], worth(TOKENS.prefix))
    assert not _passes(pair, NOISES[name])


@pytest.mark.parametrize("at", [14, 15, 16, 17, 113, 114, 115, 213, 214, 400, SEARCHED - 2, SEARCHED - 1])
def test_a_token_is_found_wherever_it_begins(pair: Pair, at: int) -> None:
    """On both sides of every seam of the search, and at its ends."""
    attach(pair[1], worth(TOKENS.prefix))
    head = bytes(12) + frames.TEST.to_bytes(2)
    frame = head.ljust(at, b"t") + TOKENS.of("cell1").encode() + b"b-0" * 30
    assert _passes(pair, frame)
    assert not _passes(pair, frame.replace(b"0123abcd", b"0124abcd"))


def test_a_token_beyond_the_search_is_not_looked_for(pair: Pair) -> None:
    attach(pair[1], worth(TOKENS.prefix))
    assert not _passes(pair, bytes(12).ljust(SEARCHED, b"t") + TOKENS.of("cell1").encode() + bytes(60))


def test_what_does_not_go_out_is_refused_at_once(pair: Pair) -> None:
    """On a local socket nothing is outgoing."""
    attach(pair[1], outgoing(worth(TOKENS.prefix)))
    assert not _passes(pair, bytes(WORTH["raw"]).ljust(60, b"\0"))


def test_the_kernel_takes_the_filter() -> None:
    """It takes 4,096 steps at most (linux/bpf_common.h, BPF_MAXINSNS)."""
    steps = outgoing(worth(TOKENS.prefix))
    assert len(steps) < 4096
    assert max(max(step[1:3]) for step in steps) < 256


def test_a_kernel_without_room_for_the_filter_hands_everything_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the program itself looks for tokens; another failure is one."""
    asked: list[int] = []

    def sniff(_: object, name: str, label: str, steps: list[object]) -> None:
        asked.append(len(steps))
        if len(steps) > 10 or name == "other":
            raise OSError(errno.ENOMEM if name == "tap0" else errno.EPERM, "-")

    monkeypatch.setattr(TapRecorder, "sniff", sniff)
    recorder = TapRecorder(TOKENS.prefix, ["tap0"], selectors.DefaultSelector())
    assert recorder.prepare({}) == {"ready": True, "taps": ["tap0"]}
    assert (len(asked), asked[1]) == (2, 4)
    with pytest.raises(OSError, match="-"):
        TapRecorder(TOKENS.prefix, ["other"], selectors.DefaultSelector()).prepare({})
