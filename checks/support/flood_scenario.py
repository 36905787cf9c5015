"""Noise that a guest makes, and the heartbeat of a victim beside it (NET-12)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from checks.support.attacker_positions import Scene, scenes
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
from testbed.verify.probe.tokens import Tokens

_CALM, _BEAT = 5.0, 0.25  # seconds of calm; seconds between two beats of the victim's heart
_DRAIN = 2.0  # seconds after the last flood until a node has worked off what it was given
_FLOOD, _OPENING = 30.0, 60.0  # seconds that each flood may take; seconds that opening connections may take
_SAVED = 1.0  # seconds' worth that the kernel's meter saves up besides its burst
_EXCESS = (
    1.05  # how far beyond what a limit may let through a flood must go, to show that the limit holds it back
)
_SPACED = 0.002  # seconds between two new connections
_LONGEST = 200.0  # seconds that the floods may take together
_SMALL, LARGE = 60, 1400  # octets
# how far the kernel's meters may be above a limit; without a limit, what passes is several times as much
SLACK = 1.15
CALM_BEATS, FLOOD_BEATS, LATER_BEATS = 5, 6, 7  # first octet of a DHCP transaction; other checks use 1 to 4
# share of its heartbeat that a victim must have in calm: with less, the machine is too busy to tell a flood
# by it
HEALTHY = 0.9
LOST = 0.3  # share of it that a victim may lose more during floods than in calm


@dataclass(frozen=True, slots=True)
class Noise:
    """Who makes noise, at whom, and who suffers.

    Args:
        scene: the sender, and who receives its noise: the target of a declared flow. Without a flow only the
            limit of packets can be met, since nothing that counts for the others is let through.
        victim: a guest on the same node, of another tenant if there is one.

    """

    guest: Guest
    nic: GuestNic
    scene: Scene
    victim: Endpoint | None

    @property
    def sender(self) -> Endpoint:
        """The interface that the noise comes from."""
        return self.scene.sender

    @property
    def peer(self) -> Endpoint:
        """Whom it is for."""
        return self.scene.peer


@dataclass
class Outcome:
    """What became of the noise, and of the victim's heartbeat.

    Args:
        opening: how many first packets of connections, which a rule allows, came to the node.
        tracked: how many of them the node tracks.
        large: large frames that a rule allows.
        delivered: octets of those that the node of the peer has handed over.
        small: many small frames that no rule allows.
        sent: how many frames the guest says that it has sent, for each kind of noise.
        asked: how many questions the victim has asked in calm and during the floods, by the first octet of
            their numbers.

    """

    opening: int = 0
    tracked: int = 0
    large: Flood = NOTHING
    delivered: int = 0
    small: Flood = NOTHING
    asked: dict[int, int] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)


def noise_of(fleet: Fleet) -> Noise:
    """Return who makes noise, as `testbed.model.subjects.loudest` chooses it."""
    one, _, suffering = loudest(fleet.testbed)
    scene = next(scene for scene in scenes(fleet) if scene.sender.mac == one.nic.mac)
    victim = next(
        (item for item in endpoints(fleet.testbed) if suffering and item.guest == suffering.label), None
    )
    return Noise(one.guest, one.nic, scene, victim)


def _interface(fleet: Fleet, endpoint: Endpoint) -> tuple[Guest, GuestNic]:
    return next(
        (guest, nic) for guest in fleet.testbed.guests for nic in guest.nics if nic.mac == endpoint.mac
    )


def over(noise: Noise, found: Outcome) -> list[str]:
    """Return which limits the noise has got past."""
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
                octets(own).within(found.large.seconds) * SLACK,
            ),
            ("connections are tracked", found.tracked, own.connections * SLACK),
        )
        if value > bound
    ]


def flooded(fleet: Fleet, noise: Noise) -> tuple[Outcome, Observation]:
    """Watch the victim's heart in calm, while a guest makes one kind of noise after another until one is past
    its limit, and in calm.

    Raises:
        InstrumentError: something was not observed.

    """
    found = Outcome()

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
                in_guest(fleet, _interface(fleet, noise.victim)[0]).ask({"phase": "halt"})
            heart.result()
        time.sleep(_DRAIN)
        beat(noise.victim, LATER_BEATS, _CALM)

    observation = observe(fleet, (), Attack((), 280, meanwhile))
    return found, observation


def packets(own: Limits) -> Bound:
    """Return how many packets a guest may send."""
    return Bound(own.packets * policing.BURST, own.packets)


def octets(own: Limits) -> Bound:
    """Return how many octets a guest may send."""
    return Bound((own.bandwidth * _SAVED + own.burst) / 8, own.bandwidth / 8)


def small_enough(own: Limits) -> Bound:
    """Return how many small frames go beyond the limit of packets."""
    return packets(own).times(_EXCESS)


def large_enough(own: Limits) -> Bound:
    """Return how many large frames go beyond the limit of bandwidth."""
    return octets(own).times(SLACK * _EXCESS / LARGE)


def _make_noise(fleet: Fleet, noise: Noise, found: Outcome) -> None:
    node = fleet.machines[noise.guest.node]

    def flood(frames: Sequence[bytes], beyond: Bound) -> Flood:
        return flooding.flood(
            node, noise.nic,
            lambda: found.sent.append(_send(fleet, noise.sender, frames, 2 * _FLOOD, 0)),
            lambda: in_guest(fleet, noise.guest).ask({"phase": "halt"}),
            beyond, _FLOOD,
        )  # fmt: skip

    if noise.scene.protocol:
        _open_connections(fleet, noise, found)
        if over(noise, found):
            return
        peer, nic = _interface(fleet, noise.peer)
        before = flooding.received(fleet.machines[peer.node], nic)
        found.large = flood([_allowed(noise)], large_enough(noise.guest.limits))
        found.delivered = flooding.received(fleet.machines[peer.node], nic) - before
    if not over(noise, found):
        found.small = flood(_denied(noise), small_enough(noise.guest.limits))


def _open_connections(fleet: Fleet, noise: Noise, found: Outcome) -> None:
    node, (opening, closing) = fleet.machines[noise.guest.node], _connections(noise)
    before = flooding.offered(node, noise.nic)
    found.sent.append(_send(fleet, noise.sender, opening, _OPENING, _SPACED))
    found.opening = flooding.offered(node, noise.nic) - before
    found.tracked = flooding.tracked(node, noise.nic)
    if closing:
        _send(fleet, noise.sender, closing, _OPENING, _SPACED)


def _send(fleet: Fleet, sender: Endpoint, frames: Sequence[bytes], seconds: float, spacing: float) -> int:
    guest, _ = _interface(fleet, sender)
    once = {"rounds": 1} if spacing else {}
    lines = [{"mac": sender.mac, "frame": frame.hex()} for frame in frames]
    answer = in_guest(fleet, guest).ask(
        {"phase": "stream", "probes": lines, "duration": seconds, "spacing": spacing, **once}
    )
    sent = answer.get("sent")
    if not isinstance(sent, int) or not sent:
        raise InstrumentError(
            f"{sender.guest} cannot send",
            fact=str(answer)[:200],
            remedy="run `testbed status`, then repeat the check",
        )
    return sent


def _connections(noise: Noise) -> tuple[list[bytes], list[bytes]]:
    """Return the first and the last packets of twice as many connections as the sender may have.

    Segments are signed with a key that their receiver does not have, so that it says nothing (RFC 2385, 4.1):
    a connection that is refused is closed, and counts for no limit of the kernel's. What is tracked of UDP
    and ICMP ends by itself, half a minute after its last packet.
    """
    start, head, port = 20000 + secrets.randbelow(20000), _link(noise) / _ip(noise), noise.scene.port
    signed, own = [("MD5", bytes(16))], range(start, start + 2 * noise.guest.limits.connections)
    if noise.scene.protocol == "icmp":
        return [bytes(head / ICMP(id=number, seq=1)) for number in own], []
    if noise.scene.protocol == "udp":
        return [bytes(head / UDP(sport=number, dport=port)) for number in own], []
    first = [
        bytes(head / TCP(sport=number, dport=port, flags="S", seq=1000, options=signed)) for number in own
    ]
    return first, [bytes(head / TCP(sport=number, dport=port, flags="R", seq=1001)) for number in own]


def _allowed(noise: Noise) -> bytes:
    """Return a large frame that the rules allow, and that nobody answers or tracks."""
    reply = arp_reply(noise.sender.mac, str(noise.sender.address), noise.peer)
    return bytes(_link(noise) / reply).ljust(LARGE, b"\0")


def _denied(noise: Noise) -> list[bytes]:
    """Return small datagrams, segments to ports that no rule allows, fragments, and frames for everybody."""
    shout = Ether(src=noise.sender.mac, dst=BROADCAST)
    closed = noise.scene.port ^ 1
    others = [
        port for port in (1024 + secrets.randbelow(60000) for _ in range(9)) if port != noise.scene.port
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


def _link(noise: Noise) -> Ether:
    return Ether(src=noise.sender.mac, dst=noise.peer.mac)


def _ip(noise: Noise, flags: str = "") -> Packet:
    return IP(
        src=str(noise.sender.address), dst=str(noise.peer.address), id=secrets.randbits(16), flags=flags
    )


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a victim heard of the answers to its questions.

    Args:
        arrived: share of them.
        silence: longest time between two of them, in seconds.

    """

    arrived: float
    silence: float

    def __str__(self) -> str:
        return f"{self.arrived:.0%} answered, silent for {self.silence:.1f} s at most"


@dataclass(frozen=True, slots=True)
class Heart:
    """A victim's heartbeat in calm, during floods, and in calm again, which tells a flood from a machine that
    is busy anyway.
    """

    calm: Heartbeat
    loud: Heartbeat
    later: Heartbeat

    @property
    def ill(self) -> bool:
        """Whether it lost beats without any flood, so that nothing can be told by those that it lost during
        one.
        """
        return min(self.calm.arrived, self.later.arrived) < HEALTHY

    @property
    def harmed(self) -> bool:
        """Whether it lost more during floods than in calm."""
        return self.loud.arrived <= min(self.calm.arrived, self.later.arrived) - LOST

    def __str__(self) -> str:
        return f"calm: {self.calm}; during floods: {self.loud}; calm again: {self.later}"


def heart(observation: Observation, victim: Endpoint, asked: Mapping[int, int]) -> Heart:
    """Return what a victim heard of the answers to its questions, by its own word; see `Outcome.asked`.

    Its node may have handed it what it had no time for.
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
