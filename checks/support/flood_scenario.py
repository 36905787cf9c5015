"""Floods by a guest, and the heartbeat of a victim on the same node (NET-12)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

from scapy.layers.inet import ICMP, IP, TCP, UDP, in4_pseudoheader
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from checks.support.attacker_positions import Position, positions
from testbed import timeouts
from testbed.errors import InstrumentError
from testbed.model.reachability import Endpoint, endpoints
from testbed.model.subjects import loudest
from testbed.model.topology import Guest, GuestNic, Limits
from testbed.plan import policing
from testbed.untrusted.bounded_json import real
from testbed.verify.attackers import flooding
from testbed.verify.attackers.flooding import NOTHING, Bound, Flood
from testbed.verify.fleet import Fleet
from testbed.verify.observation.arrivals import Observation
from testbed.verify.observation.observe import Attack, observe
from testbed.verify.probe.client import in_guest
from testbed.verify.probe.frames import BROADCAST, arp_reply, dhcp_discover
from testbed.verify.probe.requests import Line, Signal, Stream
from testbed.verify.probe.tokens import Tokens

_CALM, _BEAT = 5.0, 0.25  # seconds of calm; seconds between two requests of the victim's heartbeat
_DRAIN = 2.0  # seconds after the last flood until a node has processed its queues
_FLOOD, _OPENING = 30.0, 60.0  # limits in seconds of each flood, and of opening connections
_SAVED = 1.0  # seconds of rate that the kernel's meter accumulates besides its burst
_EXCESS = 1.05  # factor above a limit that a flood must reach, to show that the limit is in force
_PORTS = 64512  # source ports that are not well-known (RFC 6335); also taken as ids of ICMP
_SPACED = 0.002  # seconds between two new connections
_LONGEST = timeouts.FLOODS
_SMALL, LARGE = 60, 1400  # octets
# One call of a guest in a guest costs as much as hundreds of frames, and its limit is a thousand in a second:
# so one call sends a burst of segments.
_SEGMENT, _BURST = 8, 256  # octets of payload, and segments
# tolerance of the kernel's meters above a limit; without a limit, several times as much passes
SLACK = 1.15
CALM_BEATS, FLOOD_BEATS, LATER_BEATS = 5, 6, 7  # first octet of a DHCP transaction; controls use 1 and 2
# share of answers that a victim must have in calm: with less, the machine is too busy to show a flood's
# effect
HEALTHY = 0.9
LOST = 0.3  # further share of answers that a victim may lose during floods


@dataclass(frozen=True, slots=True)
class Noise:
    """The guest that floods, its target, and the victim.

    Args:
        position: the sender, and the receiver of its frames: the target of a declared flow. Without a flow
            only the limit of packets can be met, since no frame that counts for the other limits is
            allowed.
        victim: a guest on the same node, of another tenant if there is one.
    """

    guest: Guest
    nic: GuestNic
    position: Position
    victim: Endpoint | None

    @property
    def sender(self) -> Endpoint:
        """The interface that sends the flood."""
        return self.position.sender

    @property
    def peer(self) -> Endpoint:
        """The receiver of the flood."""
        return self.position.peer


@dataclass
class FloodOutcome:
    """Counters of the floods, and the requests of the victim's heartbeat.

    Args:
        opening: number of first packets of allowed connections that the node received.
        tracked: number of them that the node tracks.
        large: large frames that a rule allows.
        delivered: octets of those that the node of the peer has delivered.
        small: many small frames that no rule allows.
        sent: number of frames that the guest reports as sent, for each flood.
        asked: number of requests of the victim in calm and during the floods, by the first octet of their
            transactions.
    """

    opening: int = 0
    tracked: int = 0
    large: Flood = NOTHING
    delivered: int = 0
    small: Flood = NOTHING
    asked: dict[int, int] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)


def noise_of(fleet: Fleet) -> Noise:
    """Return the flooding guest and its victim, chosen by `testbed.model.subjects.loudest`."""
    one, _, suffering = loudest(fleet.topology)
    position = next(position for position in positions(fleet) if position.sender.mac == one.nic.mac)
    victim = next(
        (item for item in endpoints(fleet.topology) if suffering and item.guest == suffering.label), None
    )
    return Noise(one.guest, one.nic, position, victim)


def _interface(fleet: Fleet, endpoint: Endpoint) -> tuple[Guest, GuestNic]:
    return next(
        (guest, nic) for guest in fleet.topology.guests for nic in guest.nics if nic.mac == endpoint.mac
    )


def exceeded_limits(noise: Noise, found: FloodOutcome) -> list[str]:
    """Return the limits that the flood exceeded."""
    own = noise.guest.limits
    return [
        f"{value} {name} where {bound:.0f} may"
        for name, value, bound in (
            (
                f"small frames passed in {found.small.seconds} s",
                found.small.switched,
                packets(own).within(found.small.seconds),
            ),
            (
                f"octets of large frames passed in {found.large.seconds} s",
                found.delivered,
                byte_budget(own).within(found.large.seconds) * SLACK,
            ),
            ("connections are tracked", found.tracked, own.connections * SLACK),
        )
        if value > bound
    ]


def flooded(fleet: Fleet, noise: Noise) -> tuple[FloodOutcome, Observation]:
    """Record the victim's heartbeat before, during and after floods by a guest.

    The guest sends one kind of flood after another, until one exceeds its limit.

    Raises:
        InstrumentError: the observation was not complete.
    """
    found = FloodOutcome()

    def beat(victim: Endpoint, beats: int, seconds: float) -> None:
        questions = [
            dhcp_discover(victim.mac, beats << 24 | number)(b"") for number in range(int(seconds / _BEAT))
        ]
        found.asked[beats] = min(_send(fleet, victim, questions, seconds, _BEAT), len(questions))

    def meanwhile(_: Tokens) -> None:
        if noise.victim is None:
            _make_noise(fleet, noise, found)
            return
        beat(noise.victim, CALM_BEATS, _CALM)
        with ThreadPoolExecutor(max_workers=1) as pool:
            heart = pool.submit(beat, noise.victim, FLOOD_BEATS, _LONGEST)
            try:
                _make_noise(fleet, noise, found)
            finally:
                in_guest(fleet, _interface(fleet, noise.victim)[0]).ask(Signal(phase="halt"))
            heart.result()
        time.sleep(_DRAIN)
        beat(noise.victim, LATER_BEATS, _CALM)

    observation = observe(fleet, (), Attack((), 280, meanwhile))
    return found, observation


def packets(own: Limits) -> Bound:
    """Return the limit of packets of a guest."""
    return Bound(own.packets * policing.BURST, own.packets)


def byte_budget(own: Limits) -> Bound:
    """Return the limit of octets of a guest."""
    return Bound((own.bandwidth * _SAVED + own.burst) / 8, own.bandwidth / 8)


def small_enough(own: Limits) -> Bound:
    """Return the number of small frames that exceeds the limit of packets."""
    return packets(own).times(_EXCESS)


def large_enough(own: Limits) -> Bound:
    """Return the number of large frames that exceeds the limit of bandwidth."""
    return byte_budget(own).times(SLACK * _EXCESS / LARGE)


def _make_noise(fleet: Fleet, noise: Noise, found: FloodOutcome) -> None:
    node = fleet.machines[noise.guest.node]

    def flood(frames: Sequence[bytes], beyond: Bound, burst: bytes = b"") -> Flood:
        return flooding.flood(
            node, noise.nic,
            lambda: found.sent.append(_send(fleet, noise.sender, frames, 2 * _FLOOD, 0, burst)),
            lambda: in_guest(fleet, noise.guest).ask(Signal(phase="halt")),
            beyond, _FLOOD,
        )  # fmt: skip

    if noise.position.protocol:
        _open_connections(fleet, noise, found)
        if exceeded_limits(noise, found):
            return
        peer, nic = _interface(fleet, noise.peer)
        before = flooding.received(fleet.machines[peer.node], nic)
        found.large = flood([_allowed(noise)], large_enough(noise.guest.limits))
        found.delivered = flooding.received(fleet.machines[peer.node], nic) - before
    if not exceeded_limits(noise, found):
        found.small = flood(_denied(noise), small_enough(noise.guest.limits), burst_of(noise))


def _open_connections(fleet: Fleet, noise: Noise, found: FloodOutcome) -> None:
    node, (opening, closing) = fleet.machines[noise.guest.node], _connections(noise)
    before = flooding.offered(node, noise.nic)
    found.sent.append(_send(fleet, noise.sender, opening, _OPENING, _SPACED))
    found.opening = flooding.offered(node, noise.nic) - before
    found.tracked = flooding.tracked(node, noise.nic)
    if closing:
        _send(fleet, noise.sender, closing, _OPENING, _SPACED)


def _send(
    fleet: Fleet,
    sender: Endpoint,
    frames: Sequence[bytes],
    seconds: float,
    spacing: float,
    burst: bytes = b"",
) -> int:
    guest, _ = _interface(fleet, sender)
    lines: list[Line] = [{"mac": sender.mac, "frame": frame.hex()} for frame in frames]
    if burst:
        lines.append({"mac": sender.mac, "frame": burst.hex(), "segment": _SEGMENT})
    request = Stream(phase="stream", probes=lines, duration=seconds, spacing=spacing)
    if spacing:
        request["rounds"] = 1
    answer = in_guest(fleet, guest).ask(request)
    sent = answer.get("sent")
    if not isinstance(sent, int) or not sent:
        raise InstrumentError(
            f"{sender.guest} cannot send",
            fact=str(answer)[:200],
            remedy="run `testbed status`, then repeat the check",
        )
    return sent


def _connections(noise: Noise) -> tuple[list[bytes], list[bytes]]:
    """Return first and last packets of twice as many connections as the sender may have.

    Segments are signed with a key that their receiver does not have, so that it does not answer (RFC 2385,
    4.1): a refused connection is closed, and counts for no limit of the kernel. Tracked entries of UDP and
    ICMP expire by themselves, half a minute after the last packet.
    """
    count = min(2 * noise.guest.limits.connections, _PORTS)
    start = 2**16 - _PORTS + secrets.randbelow(_PORTS - count + 1)
    head, port = _link(noise) / _ip(noise), noise.position.port
    signed, own = [("MD5", bytes(16))], range(start, start + count)
    if noise.position.protocol == "icmp":
        return [bytes(head / ICMP(id=number, seq=1)) for number in own], []
    if noise.position.protocol == "udp":
        return [bytes(head / UDP(sport=number, dport=port)) for number in own], []
    first = [
        bytes(head / TCP(sport=number, dport=port, flags="S", seq=1000, options=signed)) for number in own
    ]
    return first, [bytes(head / TCP(sport=number, dport=port, flags="R", seq=1001)) for number in own]


def _allowed(noise: Noise) -> bytes:
    """Return a large frame that the rules allow: an ARP reply, neither answered nor tracked."""
    reply = arp_reply(noise.sender.mac, str(noise.sender.address), noise.peer)
    return bytes(_link(noise) / reply).ljust(LARGE, b"\0")


def _denied(noise: Noise) -> list[bytes]:
    """Return small frames that no rule allows: datagrams, segments, fragments, and broadcasts."""
    shout = Ether(src=noise.sender.mac, dst=BROADCAST)
    closed = noise.position.port ^ 1
    others = [
        port for port in (1024 + secrets.randbelow(60000) for _ in range(9)) if port != noise.position.port
    ]
    kinds: list[Packet] = [
        *(_link(noise) / _ip(noise) / UDP(sport=9, dport=port) for port in others),
        *(
            _link(noise) / _ip(noise) / TCP(sport=1024 + secrets.randbelow(60000), dport=closed, flags="S")
            for _ in range(8)
        ),
        *(_link(noise) / _ip(noise, flags="MF") / Raw(bytes(16)) for _ in range(8)),
        *(
            shout / IP(src=str(noise.sender.address), dst="255.255.255.255") / UDP(sport=9, dport=9)
            for _ in range(8)
        ),
    ]
    return [bytes(kind).ljust(_SMALL, b"\0") for kind in kinds]


def burst_of(noise: Noise) -> bytes:
    """Return a segment to a closed port that the guest's kernel cuts into `_BURST` small ones.

    Its checksum covers the pseudo header alone; the kernel completes those of the small ones.
    """
    head = _ip(noise)
    segment = TCP(sport=1024 + secrets.randbelow(60000), dport=noise.position.port ^ 1, flags="A")
    body = bytes(_SEGMENT * _BURST)
    pseudo = checksum(in4_pseudoheader(6, head, len(segment) + len(body)))
    segment.chksum = ~pseudo & 0xFFFF
    return bytes(_link(noise) / head / segment / Raw(body))


def _link(noise: Noise) -> Ether:
    return Ether(src=noise.sender.mac, dst=noise.peer.mac)


def _ip(noise: Noise, flags: str = "") -> IP:
    return IP(
        src=str(noise.sender.address), dst=str(noise.peer.address), id=secrets.randbits(16), flags=flags
    )


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Answers to a victim's requests, from its own recorder.

    Args:
        arrived: share of answered requests.
        silence: longest time between two answers, in seconds.
    """

    arrived: float
    silence: float

    def __str__(self) -> str:
        return f"{self.arrived:.0%} answered, silent for {self.silence:.1f} s at most"


@dataclass(frozen=True, slots=True)
class Heart:
    """A victim's heartbeat before, during and after floods.

    The comparison separates the effect of a flood from that of a busy machine.
    """

    calm: Heartbeat
    loud: Heartbeat
    later: Heartbeat

    @property
    def ill(self) -> bool:
        """Whether it lost beats without any flood, so that losses during a flood prove nothing."""
        return min(self.calm.arrived, self.later.arrived) < HEALTHY

    @property
    def harmed(self) -> bool:
        """Whether it lost more during floods than in calm."""
        return self.loud.arrived <= min(self.calm.arrived, self.later.arrived) - LOST

    def __str__(self) -> str:
        return f"calm: {self.calm}; during floods: {self.loud}; calm again: {self.later}"


def heart(observation: Observation, victim: Endpoint, asked: Mapping[int, int]) -> Heart:
    """Return a victim's heartbeat from its own records; see `FloodOutcome.asked`.

    Records of its node do not count: the node may have delivered frames that the victim had no time for.
    """
    return Heart(
        *(
            _heartbeat(observation, victim, beats, asked.get(beats, 0))
            for beats in (CALM_BEATS, FLOOD_BEATS, LATER_BEATS)
        )
    )


def _heartbeat(observation: Observation, victim: Endpoint, first: int, asked: int) -> Heartbeat:
    start = f"{first:02x}"
    times = {
        str(record.get("token")): real(record.get("at", 0))
        for record in observation.told[victim.guest]
        if record.get("kind") == "dhcp" and str(record.get("token")).startswith(start)
    }
    if not asked or len(times) > asked:
        fact = f"{len(times)} answers to {asked} questions"
        raise InstrumentError(
            f"the heart of {victim.guest} cannot be read", fact=fact, remedy="repeat the check"
        )
    at = sorted(times.values())
    return Heartbeat(len(at) / asked, max((two - one for one, two in pairwise(at)), default=0.0))
