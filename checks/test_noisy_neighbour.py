"""A noisy neighbour: how much of a node's shared resources one guest may use (NET-12)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from checks.support.breaches import has_flow, shell_breach, where
from checks.support.flood_scenario import (
    SLACK,
    FloodOutcome,
    Noise,
    exceeded_limits,
    flooded,
    heart,
    large_enough,
    noise_of,
    packets,
    small_enough,
)
from testbed.errors import InstrumentError
from testbed.model.subjects import Attachment, loudest
from testbed.model.topology import Limits
from testbed.plan import policing
from testbed.verify.attackers import flooding
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet
from testbed.verify.observation.arrivals import Observation

# share of its limit of connections that a guest must reach, to show that the limit is in force
_MET = 0.8


def _loud(context: BreachContext) -> Attachment:
    """Return the interface that sends the flood."""
    return loudest(context.topology)[0]


def _packets(context: BreachContext, packets: int) -> None:
    one = _loud(context)
    host = context.lab.host(one.guest.node)
    host.must(f"{policing.limit([one.nic.tap], 0)} && {policing.limit([one.nic.tap], packets)}")


def _kernel_limits(context: BreachContext) -> bool:
    one = _loud(context)
    return (
        context.lab.host(one.guest.node)
        .sudo(f"tc filter show dev {one.nic.tap} parent ffff: | grep -q pkts_rate")
        .status
        == 0
    )


def _lifted(name: str, of: Callable[[BreachContext], Attachment], limit: str) -> Breach:
    """Return a breach that removes one limit of OVN from a guest's interface."""

    def set_limits(context: BreachContext, own: Limits) -> None:
        context.northbound.set_limits(of(context).nic.port, own)

    def live(context: BreachContext) -> bool:
        port = next(
            port for port in context.northbound.ports().values() if port["port"] == of(context).nic.port
        )
        return bool(port[limit] != getattr(of(context).guest.limits, limit))

    return Breach(
        name,
        open=lambda context: set_limits(context, replace(of(context).guest.limits, **{limit: 0})),
        close=lambda context: set_limits(context, of(context).guest.limits),
        in_force=live,
    )


def _zone(context: BreachContext) -> str:
    """Return the word of a shell that is the zone of connection tracking of a guest's first interface."""
    port = context.guest.nics[0].port
    return f"$(ovs-vsctl get bridge br-int external_ids:ct-zone-{port} | tr -d '\"')"


def _first(context: BreachContext) -> Attachment:
    return Attachment(context.guest, context.guest.nics[0])


@check(
    id="NET-12",
    objective=(
        "A guest that floods stays within its limits of packets, bandwidth and connections, and its "
        "neighbours do not feel it"
    ),
    severity="medium",
    effect=Effect.FLOODS,
    breaches=(
        Breach(
            "the limit of packets is gone",
            open=lambda context: _packets(context, 0),
            close=lambda context: _packets(context, _loud(context).guest.limits.packets),
            in_force=lambda context: not _kernel_limits(context),
        ),
        *where(
            has_flow,
            _lifted("the limit of bandwidth is gone", _loud, "bandwidth"),
            _lifted("the limit of connections is gone", _loud, "connections"),
        ),
    ),
)
def test_a_flood_stays_within_its_limits(fleet: Fleet) -> None:
    noise = noise_of(fleet)
    found, observation = flooded(fleet, noise)
    if not exceeded_limits(noise, found) and _unsure(
        noise, found, observation
    ):  # the machine may have been busy
        found, observation = flooded(fleet, noise)
    fleet.evidence.record("fleet", "flood", f"noise of {noise.sender.label}", str(found), time.time())
    past = exceeded_limits(noise, found)
    assert not past, f"{noise.sender.label}: {'; '.join(past)}"
    weak = _weak(noise, found)
    if weak:
        raise InstrumentError(
            "the noise meets no limit", fact=weak[:600], remedy="lower the limits of the guest"
        )
    if noise.victim is None:
        return
    beats = heart(observation, noise.victim, found.asked)
    fleet.evidence.record("fleet", "heartbeat", noise.victim.label, str(beats), time.time())
    if beats.ill:
        what = f"{noise.victim.label} loses its heartbeat without any flood"
        raise InstrumentError(what, fact=str(beats), remedy="repeat the check when the machine is less busy")
    assert not beats.harmed, f"{noise.victim.label} loses its heartbeat, twice: {beats}"


def _unsure(noise: Noise, found: FloodOutcome, observation: Observation) -> bool:
    """Return whether floods within their limits need a second observation."""
    if _weak(noise, found) or noise.victim is None:
        return bool(_weak(noise, found))
    beats = heart(observation, noise.victim, found.asked)
    return beats.ill or beats.harmed


@check(
    id="NET-12",
    objective="Every node limits each interface of its guests as the topology says",
    severity="medium",
    effect=Effect.OBSERVES,
    breaches=(
        shell_breach(
            "a policer is taken off behind the switch's back",
            opens=lambda context: f"tc qdisc del dev {context.guest.nics[0].tap} ingress",
            closes=lambda context: (
                f"{policing.limit([context.guest.nics[0].tap], 0)} && "
                f"{policing.limit([context.guest.nics[0].tap], context.guest.limits.packets)}"
            ),
            shows=lambda context: (
                f"! tc filter show dev {context.guest.nics[0].tap} parent ffff: | grep -q pkts_rate"
            ),
        ),
        _lifted("a port may have any number of connections", _first, "connections"),
        shell_breach(
            "the switch has lost the limit of connections that OVN asked for",
            opens=lambda context: f"ovs-vsctl del-zone-limit system {_zone(context)}",
            closes=lambda context: (
                f"ovs-vsctl set-zone-limit system {_zone(context)} {context.guest.limits.connections}"
            ),
            shows=lambda context: f"! ovs-vsctl list-zone-limits system | grep -q '^Zone: '{_zone(context)},",
        ),
    ),
)
def test_limits_are_in_force(fleet: Fleet) -> None:
    differences = [text for node in fleet.topology.nodes for text in flooding.unlimited(fleet, node.name)]
    assert not differences, f"{len(differences)} limits are not in force: {'; '.join(differences[:6])}"


def _weak(noise: Noise, found: FloodOutcome) -> str:
    """Return why a flood was too weak to meet its limit; the empty string if it was not."""
    own, small, large = noise.guest.limits, found.small, found.large
    met = {"small frames": bool(small.switched) and small.offered > small_enough(own).within(small.seconds)}
    allowed = {
        "large frames": min(large.offered, packets(own).within(large.seconds))
        > large_enough(own).within(large.seconds),
        "connections": bool(found.sent) and min(found.sent[0], found.opening) > own.connections * SLACK,
        "tracked connections": found.tracked > own.connections * _MET,
        "anything at the peer": bool(found.delivered),
    }
    met |= (
        allowed if noise.position.protocol else {}
    )  # without a flow, no allowed frame counts for these limits
    weak = [name for name, enough in met.items() if not enough]
    return f"not enough: {', '.join(weak)}: {found}" if weak else ""
