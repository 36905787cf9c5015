"""Reachability between guests, compared with the topology: allowed flows and no others."""

from __future__ import annotations

import time

from checks.support.breaches import (
    ALLOW_ALL,
    TABLE,
    acl_breach,
    address_breach,
    has_flow,
    has_neighbours,
    has_pair,
    has_sharers,
    mirrored,
    needs_company,
    neighbours_without_flow,
    shell_breach,
    where,
)
from checks.support.flow_shortcuts import shortcut
from checks.support.lying_guest import concealed
from checks.support.network_observation import judge, overheard, survey
from testbed.model.cell import by_pair
from testbed.plan.ovn_acls import Acl
from testbed.verify.breach_context import BreachContext, Host
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet
from testbed.verify.observation.arrivals import Observation, reach
from testbed.verify.openflow import fleet_paths

_UNTRIED = 61616  # a port that no topology here declares and no probe tries
_ALLOW_ONE = tuple(
    Acl(way, 2000, f"tcp.dst == {_UNTRIED}", "allow-related") for way in ("from-lport", "to-lport")
)


def _to_root(context: BreachContext) -> str:
    return f"table=0,priority=200,in_port={context.sender.nic.tap},tcp,tp_dst={_UNTRIED}"


def _sender_host(context: BreachContext) -> Host:
    return context.lab.host(context.sender.guest.node)


def _pair(context: BreachContext) -> str:
    _, device, address = neighbours_without_flow(context) or ("", "", "")
    return f"'{{ {device} . {address} }}'"


@check(
    id="NET-01",
    objective=(
        "Every guest reaches exactly what the topology allows: ARP, ND, ICMP, TCP, UDP, raw, broadcast, "
        "multicast"
    ),
    severity="critical",
    effect=Effect.PROBES,
    applies=needs_company,
    breaches=(
        shortcut("an OpenFlow rule leads from one guest's port to another's", "dl_dst={victim}"),
        *where(has_neighbours, ALLOW_ALL),
        concealed(
            "a path to another guest is open, and that guest conceals what comes by it",
            shortcut("the path", "dl_dst={victim}"),
            lambda context: context.pair().victim.guest,
        ),
        *where(
            lambda context: neighbours_without_flow(context) is not None,
            shell_breach(
                "a guest may ask for the IPv6 address of a neighbour that no flow joins it with",
                opens=lambda context: f"nft add element netdev neighbours allowed {_pair(context)}",
                closes=lambda context: f"nft destroy element netdev neighbours allowed {_pair(context)}",
                shows=lambda context: f"nft get element netdev neighbours allowed {_pair(context)}",
                where=lambda context: context.lab.host(
                    (neighbours_without_flow(context) or (context.node.name,))[0]
                ),
            ),
        ),
    ),
)
def test_reach_is_what_the_topology_allows(fleet: Fleet) -> None:
    seen = survey(fleet)
    found = reach(fleet.matrix.cells, seen.observation)
    rows = [
        f"{cell.source.label} -> {cell.target.label} {cell.service}: {arrived}" for cell, arrived in found
    ]
    fleet.evidence.record("fleet", "matrix", f"{len(found)} cells", "\n".join(rows), time.time())
    for cell, arrived in found:
        fleet.record_state(cell, arrived=arrived)
    leaks = [cell for cell, arrived in found if arrived and not cell.allowed]
    assert not leaks, (
        f"{len(leaks)} of {len(found)} cells leak: {by_pair(leaks)}{_concealed(seen.observation)}"
    )
    dead = [cell for cell, arrived in found if cell.allowed and not arrived]
    assert not dead, f"{len(dead)} allowed cells do not work: {by_pair(dead)}"
    past = [f"{len(marks)} at {guest}" for guest, marks in seen.observation.past().items()]
    assert not past, f"frames came to guests by a path that their nodes do not see: {'; '.join(past[:6])}"
    seen.require_agreement("NET-01")


def _concealed(observation: Observation) -> str:
    """Return, as the end of a message, the guests that conceal received frames."""
    return "".join(
        f"; {guest} conceals {len(marks)} frames" for guest, marks in observation.concealed().items()
    )


@check(
    id="NET-01",
    objective=(
        "No packet at all finds a way that the topology does not declare, through the tables of all switches"
    ),
    severity="critical",
    effect=Effect.PROBES,
    breaches=(
        shortcut(
            "one port that no probe tries leads to another guest", f"tcp,dl_dst={{victim}},tp_dst={_UNTRIED}"
        ),
        *where(
            has_neighbours, acl_breach("a rule allows one port that no probe tries", lambda _: _ALLOW_ONE)
        ),
        *where(
            lambda context: not (has_pair(context) or has_neighbours(context)),
            shell_breach(
                "one port that no probe tries leads to the root partition",
                opens=lambda context: f"{TABLE} add-flow br-int '{_to_root(context)},actions=LOCAL'",
                closes=lambda context: f"{TABLE} --strict del-flows br-int '{_to_root(context)}'",
                shows=lambda _: f"{TABLE} dump-flows br-int table=0 | grep -q actions=LOCAL",
                where=_sender_host,
            ),
        ),
    ),
)
def test_no_path_is_left_open(fleet: Fleet) -> None:
    survey(
        fleet
    )  # the result for the tables counts only if packets confirm it: declared flows and DHCP must work
    started, found = time.time(), fleet_paths.arrivals(fleet, fleet_paths.bridges(fleet))
    fleet.evidence.record(
        "fleet", "paths", f"{len(found)} classes of packets", "\n".join(map(str, found))[:20_000], started
    )
    leaks = fleet_paths.unexpected(fleet, found)
    assert not leaks, f"{len(leaks)} ways are open: {'; '.join(leaks[:3])}"


@check(
    id="NET-11",
    objective=(
        "A guest sees no frame that is not for it: no flooding, no mirror, no message between bridges, "
        "however full a table is"
    ),
    severity="medium",
    effect=Effect.PROBES,
    applies=needs_company,
    breaches=(
        *where(
            has_flow,
            address_breach(
                "a port takes frames for unknown MAC addresses",
                lambda context: context.receiver().nic,
                lambda context: [context.receiver().nic.port_security, "unknown"],
            ),
        ),
        *where(
            has_sharers,
            mirrored(
                "one guest's frames are mirrored to another guest",
                lambda context: context.sharers()[0],
                lambda context: context.sharers()[1].nics[0].tap,
            ),
        ),
        shortcut("messages between bridges go to another guest", "dl_type=0x88cc"),
    ),
)
def test_no_guest_overhears_another(fleet: Fleet) -> None:
    heard = overheard(fleet)
    assert not heard, f"{len(heard)} kinds of frames were overheard: {'; '.join(heard[:6])}"
    through = judge(fleet, "NET-11")
    assert not through, f"frames that are for no guest: {'; '.join(through[:6])}"
