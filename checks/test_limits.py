"""A noisy neighbour: what one guest may use up of what all guests of a node share (NET-12)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from checks.breaches import command, needs_flow, needs_guest
from checks.noise import (
    CALM_BEATS,
    FLOOD_BEATS,
    SLACK,
    Noise,
    Outcome,
    flooded,
    heartbeat,
    large_enough,
    noise_of,
    over,
    packets,
    small_enough,
)
from testbed.drivers import limits
from testbed.errors import InstrumentError
from testbed.model.testbed import Guest, Limits
from testbed.verify import flooding
from testbed.verify.declare import Breach, Effect, check
from testbed.verify.fleet import Fleet
from testbed.verify.stage import Stage

_MET = 0.8  # share of its connections that a guest must come to have, to show that the limit is what holds it back
_LOST = 0.3  # share of its heartbeat that a victim may lose more than when it is calm


def needs_neighbours(stage: Stage) -> str | None:
    """Return why there is nobody whom a flood could harm."""
    reason = needs_flow(stage)
    if reason is not None:
        return reason
    source = stage.flow()[0]
    strangers = [guest for guest in stage.testbed.guests_on(source.node) if guest.tenant != source.tenant]
    return None if strangers else f"no guest of another tenant is on {source.node}, where the first declared flow starts"


def _packets(stage: Stage, packets: int) -> None:
    guest, _, nic, _ = stage.flow()
    host = stage.lab.host(guest.node)
    host.must(f"{limits.limit([nic.tap], 0)} && {limits.limit([nic.tap], packets)}")


def _kernel_limits(stage: Stage) -> bool:
    guest, _, nic, _ = stage.flow()
    return stage.lab.host(guest.node).sudo(f"tc filter show dev {nic.tap} parent ffff: | grep -q pkts_rate").status == 0


def _lifted(name: str, guest: Callable[[Stage], Guest], limit: str) -> Breach:
    """Return a breach that takes one limit of OVN off a guest's first interface."""

    def set_limits(stage: Stage, own: Limits) -> None:
        stage.northbound.set_limits(guest(stage).nics[0].port, own)

    def live(stage: Stage) -> bool:
        port = next(port for port in stage.northbound.ports().values() if port["port"] == guest(stage).nics[0].port)
        return bool(port[limit] != getattr(guest(stage).limits, limit))

    return Breach(
        name,
        open=lambda stage: set_limits(stage, replace(guest(stage).limits, **{limit: 0})),
        close=lambda stage: set_limits(stage, guest(stage).limits),
        in_force=live,
    )


def _first(stage: Stage) -> Guest:
    return stage.guests[0]


@check(
    id="NET-12",
    objective="A guest that floods stays within its limits of packets, bandwidth and connections, and its neighbours do not feel it",
    severity="medium",
    effect=Effect.FLOODS,
    applies=needs_neighbours,
    breaches=(
        Breach(
            "the limit of packets is gone",
            open=lambda stage: _packets(stage, 0),
            close=lambda stage: _packets(stage, stage.flow()[0].limits.packets),
            in_force=lambda stage: not _kernel_limits(stage),
        ),
        _lifted("the limit of bandwidth is gone", lambda stage: stage.flow()[0], "bandwidth"),
        _lifted("the limit of connections is gone", lambda stage: stage.flow()[0], "connections"),
    ),
)
def test_a_flood_stays_within_its_limits(fleet: Fleet) -> None:
    noise = noise_of(fleet)
    found, observation = flooded(fleet, noise)
    if not over(noise, found) and _weak(noise, found):  # the machine may have been busy with something else for a moment
        found, observation = flooded(fleet, noise)
    fleet.evidence.record("fleet", "flood", f"noise of {noise.sender.label}", str(found), time.time())
    past = over(noise, found)
    assert not past, f"{noise.sender.label}: {'; '.join(past)}"
    weak = _weak(noise, found)
    if weak:
        raise InstrumentError("the noise meets no limit", fact=weak[:600], remedy="lower the limits of the guest")
    calm, loud = (heartbeat(observation, noise.victim, beats, found.asked[beats]) for beats in (CALM_BEATS, FLOOD_BEATS))
    fleet.evidence.record("fleet", "heartbeat", noise.victim.label, f"calm: {calm}, during floods: {loud}", time.time())
    assert loud.arrived > calm.arrived - _LOST, f"{noise.victim.label} loses its heartbeat: calm {calm}, during floods {loud}"


@check(
    id="NET-12",
    objective="Every node limits each interface of its guests as the topology says",
    severity="medium",
    effect=Effect.OBSERVES,
    applies=needs_guest,
    breaches=(
        command(
            "a policer is taken off behind the switch's back",
            opens=lambda s: f"tc qdisc del dev {s.guests[0].nics[0].tap} ingress",
            closes=lambda s: (
                f"{limits.limit([s.guests[0].nics[0].tap], 0)} && {limits.limit([s.guests[0].nics[0].tap], s.guests[0].limits.packets)}"
            ),
            shows=lambda s: f"! tc filter show dev {s.guests[0].nics[0].tap} parent ffff: | grep -q pkts_rate",
        ),
        _lifted("a port may have any number of connections", _first, "connections"),
    ),
)
def test_limits_are_in_force(fleet: Fleet) -> None:
    differences = [text for node in fleet.testbed.nodes for text in flooding.unlimited(fleet, node.name)]
    assert not differences, f"{len(differences)} limits are not in force: {'; '.join(differences[:6])}"


def _weak(noise: Noise, found: Outcome) -> str:
    """Return why a flood was too weak to meet its limit; the empty string if it was not."""
    own, small, large = noise.guest.limits, found.small, found.large
    met = {
        "small frames": small.offered > small_enough(own).within(small.seconds),
        "large frames": min(large.offered, packets(own).within(large.seconds)) > large_enough(own).within(large.seconds),
        "connections": min(found.sent[0], found.opening) > own.connections * SLACK,
        "tracked connections": found.tracked > own.connections * _MET,
        "anything at the peer": bool(found.delivered and found.small.switched),
    }
    weak = [name for name, enough in met.items() if not enough]
    return f"not enough: {', '.join(weak)}: {found}" if weak else ""
