"""What tenants' networks carry: what the topology allows, to whom it is for, and nothing else."""

from __future__ import annotations

import time

from checks.breaches import ALLOW_ALL, command, mirrored, needs_flow, needs_guest, readdressed, receiver, ruled, shortcut, unjoined, where
from checks.liars import concealed
from checks.survey import judge, overheard, survey
from testbed.plan.acls import Acl
from testbed.verify import paths
from testbed.verify.declare import check
from testbed.verify.fleet import Fleet
from testbed.verify.observation import Observation, reach
from testbed.verify.stage import Stage

_UNTRIED = 61616  # a port that no topology here declares and no probe tries
_ALLOW_ONE = tuple(Acl(way, 2000, f"tcp.dst == {_UNTRIED}", "allow-related") for way in ("from-lport", "to-lport"))


def _pair(stage: Stage) -> str:
    device, address = unjoined(stage) or ("", "")
    return f"'{{ {device} . {address} }}'"


@check(
    id="NET-01",
    objective="Every guest reaches exactly what the topology allows: ARP, ND, ICMP, TCP, UDP, raw, broadcast, multicast",
    severity="critical",
    applies=needs_flow,
    breaches=(
        shortcut("an OpenFlow rule leads from one tenant's port to another's", "dl_dst={victim}"),
        ALLOW_ALL,
        concealed(
            "a path to another guest is open, and that guest conceals what comes by it",
            shortcut("the path", "dl_dst={victim}"),
            lambda stage: stage.strangers()[1],
        ),
        *where(
            lambda stage: unjoined(stage) is not None,
            command(
                "a guest may ask for the IPv6 address of a neighbour that no flow joins it with",
                opens=lambda s: f"nft add element netdev neighbours allowed {_pair(s)}",
                closes=lambda s: f"nft delete element netdev neighbours allowed {_pair(s)}",
                shows=lambda s: f"nft get element netdev neighbours allowed {_pair(s)}",
            ),
        ),
    ),
)
def test_reach_is_what_the_topology_allows(fleet: Fleet) -> None:
    seen = survey(fleet)
    found = reach(fleet.matrix.cells, seen.observation)
    rows = [f"{cell.source.label} -> {cell.target.label} {cell.service}: {arrived}" for cell, arrived in found]
    fleet.evidence.record("fleet", "matrix", f"{len(found)} cells", "\n".join(rows), time.time())
    for cell, arrived in found:
        fleet.saw(cell, arrived=arrived)
    leaks = [str(cell) for cell, arrived in found if arrived and not cell.allowed]
    assert not leaks, f"{len(leaks)} of {len(found)} cells leak: {'; '.join(leaks[:6])}{_concealed(seen.observation)}"
    dead = [str(cell) for cell, arrived in found if cell.allowed and not arrived]
    assert not dead, f"{len(dead)} allowed cells do not work: {'; '.join(dead[:6])}"
    past = [f"{len(marks)} at {guest}" for guest, marks in seen.observation.past().items()]
    assert not past, f"frames came to guests by a path that their nodes do not see: {'; '.join(past[:6])}"
    seen.require_agreement("NET-01")


def _concealed(observation: Observation) -> str:
    """Return which guests do not tell of what came in, in words behind others."""
    return "".join(f"; {guest} conceals {len(marks)} frames" for guest, marks in observation.concealed().items())


@check(
    id="NET-01",
    objective="No packet at all finds a way that the topology does not declare, through the tables of all switches",
    severity="critical",
    applies=needs_flow,
    breaches=(
        shortcut("one port that no probe tries leads to another tenant's guest", f"tcp,dl_dst={{victim}},tp_dst={_UNTRIED}"),
        ruled("a rule allows one port that no probe tries", lambda _: _ALLOW_ONE),
    ),
)
def test_no_path_is_left_open(fleet: Fleet) -> None:
    survey(fleet)  # what the tables promise counts only while packets keep it: the declared flows must work
    started, found = time.time(), paths.arrivals(fleet, paths.bridges(fleet))
    fleet.evidence.record("fleet", "paths", f"{len(found)} classes of packets", "\n".join(map(str, found))[:20_000], started)
    leaks = paths.unexpected(fleet, found)
    assert not leaks, f"{len(leaks)} ways are open: {'; '.join(leaks[:3])}"


@check(
    id="NET-11",
    objective="A guest sees no frame that is not for it: no flooding, no mirror, no message between bridges, however full a table is",
    severity="medium",
    applies=needs_guest,
    breaches=(
        readdressed(
            "a port takes frames for unknown MAC addresses", receiver, lambda stage: [receiver(stage).pinned, "unknown"]
        ),
        mirrored(
            "one guest's frames are mirrored to another tenant's guest",
            lambda stage: stage.strangers()[0],
            lambda stage: stage.strangers()[1].nics[0].tap,
        ),
    ),
)
def test_no_guest_overhears_another(fleet: Fleet) -> None:
    heard = overheard(fleet)
    assert not heard, f"{len(heard)} kinds of frames were overheard: {'; '.join(heard[:6])}"
    through = judge(fleet, "NET-11")
    assert not through, f"frames that are for no guest: {'; '.join(through[:6])}"
