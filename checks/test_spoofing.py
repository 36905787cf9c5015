"""Who a guest can pretend to be, attacked with raw frames from inside guests and watched at every receiver.

Each wall has several layers: the port's own addresses, the sender's rules, the receiver's rules. So three
kinds of witnesses speak: packets at the receivers, the sender's node's pipeline, and OVN's databases.
"""

from __future__ import annotations

from checks.support.attacker_positions import NOWHERE6
from checks.support.breaches import (
    command,
    has_flow,
    has_neighbours,
    has_pair,
    has_six,
    loosened,
    mirrored,
    readdressed,
    ruled,
    six_sender,
    switch,
    where,
)
from checks.support.flow_shortcuts import shortcut
from checks.support.network_observation import judge, stolen
from checks.support.spoofed_frames import STARVATION, THEFT
from testbed.model.subjects import flows
from testbed.model.topology import Guest
from testbed.plan.host_config.nd_guard import ATTACH, RULES
from testbed.plan.ovn_acls import Acl
from testbed.verify.breach_context import Host, Stage
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet

_UNPINNED = loosened("a port's address pinning is gone", lambda _: [])
_BY_MAC_ONLY = loosened("a port is pinned by MAC address only", lambda stage: [stage.sender.nic.mac])


@check(
    id="NET-02",
    objective="A guest sends with its own MAC address only",
    severity="high",
    effect=Effect.PROBES,
    breaches=(
        _UNPINNED,
        loosened(
            "a port may use another tenant's MAC address as well",
            lambda stage: [stage.sender.nic.pinned, _stranger_of(stage)],
        ),
    ),
)
def test_source_mac_is_pinned(fleet: Fleet) -> None:
    through = judge(fleet, "NET-02")
    assert not through, f"forged frames: {'; '.join(through[:6])}"


def _stranger_of(stage: Stage) -> str:
    """Return the MAC address of another tenant's guest, else of another guest, else one that no guest has."""
    own = stage.sender.guest
    others = sorted(
        (guest for guest in stage.testbed.guests if guest is not own),
        key=lambda guest: guest.tenant == own.tenant,
    )
    return others[0].nics[0].mac if others else f"0e{own.nics[0].mac[2:]}"


@check(
    id="NET-03",
    objective="A guest's ARP speaks for its own address and MAC only, in every encapsulation",
    severity="high",
    effect=Effect.PROBES,
    breaches=(_UNPINNED, shortcut("tagged frames go past the pinning", "vlan_vid=0x1000/0x1000")),
)
def test_arp_does_not_lie(fleet: Fleet) -> None:
    through = judge(fleet, "NET-03")
    assert not through, f"forged ARP: {'; '.join(through[:6])}"


def _any_sender(stage: Stage) -> Acl:
    """Return a rule like the receiver's own, which does not ask for the sender's address once more."""
    flow = stage.flow()
    return Acl("to-lport", 2000, f'outport == "{flow.target.nic.port}" && {flow.match}', "allow-related")


def _neighbours(stage: Stage) -> tuple[Guest, Guest] | None:
    """Return source and a guest on its node to which it has no business to send, for a flow that has such a
    one.
    """
    for flow in flows(stage.testbed):
        source, ends = flow.source.guest, (flow.source.guest, flow.target.guest)
        others = [guest for guest in stage.testbed.guests_on(source.node) if guest not in ends]
        if others and source.nics[0] == flow.source.nic:
            return source, others[0]
    return None


def _bystander(stage: Stage) -> tuple[Guest, Guest]:
    return _neighbours(stage) or (stage.guest, stage.guest)


def _any_six(stage: Stage) -> list[str]:
    one = six_sender(stage)
    return [
        (
            f"{one.nic.mac} {one.nic.address} "
            f"{stage.testbed.tenant(one.guest.tenant).network(one.nic.network).network6}"
        )
    ]


@check(
    id="NET-04",
    objective="A guest sends with its own addresses only, IPv4 and IPv6, and by no route of its own choice",
    severity="high",
    effect=Effect.PROBES,
    breaches=(
        _BY_MAC_ONLY,
        *where(has_flow, ruled("the receiver's rule takes any sender", lambda stage: (_any_sender(stage),))),
        shortcut("packets of another address go past the pinning", "dl_type=0x0800,nw_src=203.0.113.7"),
        shortcut(
            "IPv6 packets of another address go past the pinning", f"dl_type=0x86dd,ipv6_src={NOWHERE6}"
        ),
        *where(
            lambda stage: _neighbours(stage) is not None,
            mirrored(
                "packets with a source route go to a neighbour",
                lambda stage: _bystander(stage)[0],
                lambda stage: _bystander(stage)[1].nics[0].tap,
                "ip hdrlength > 5",
            ),
        ),
        *where(
            has_six,
            loosened(
                "a port may use every IPv6 address of its network",
                _any_six,
                lambda stage: six_sender(stage).nic,
            ),
        ),
    ),
)
def test_source_address_is_pinned(fleet: Fleet) -> None:
    through = judge(fleet, "NET-04")
    assert not through, f"forged packets: {'; '.join(through[:6])}"


def _tap(stage: Stage) -> str:
    return six_sender(stage).nic.tap


def _guarded(stage: Stage) -> Host:
    return stage.lab.host(six_sender(stage).guest.node)


@check(
    id="NET-05",
    objective=(
        "No guest acts as an IPv6 router or as another's IPv6 address, by extension headers and fragments "
        "neither"
    ),
    severity="high",
    effect=Effect.PROBES,
    breaches=(
        _BY_MAC_ONLY,
        *where(
            lambda stage: has_pair(stage) and not has_six(stage),
            shortcut("router advertisements go past the pinning", "icmp6,icmp_type=134"),
        ),
        *where(
            has_six,
            command(
                "the guard lets router advertisements through",
                opens=lambda _: "nft insert rule netdev neighbours judge icmpv6 type nd-router-advert return",
                closes=lambda _: f"nft -f {RULES}",
                shows=lambda _: "nft list chain netdev neighbours judge | grep -q nd-router-advert",
                where=_guarded,
            ),
            command(
                "the guard lets guests tell any MAC address",
                opens=lambda _: (
                    "nft insert rule netdev neighbours judge icmpv6 type nd-neighbor-solicit return"
                ),
                closes=lambda _: f"nft -f {RULES}",
                shows=lambda _: (
                    "nft list chain netdev neighbours judge | grep -q 'nd-neighbor-solicit return'"
                ),
                where=_guarded,
            ),
            command(
                "a guest's interface is not guarded",
                opens=lambda stage: f"nft flush chain netdev neighbours {_tap(stage)}",
                closes=lambda stage: f"{ATTACH} {_tap(stage)}",
                shows=lambda stage: (
                    f"nft list chain netdev neighbours {_tap(stage)} | grep -q hook && "
                    f"! nft list chain netdev neighbours {_tap(stage)} | grep -q jump"
                ),
                where=_guarded,
            ),
        ),
    ),
)
def test_no_guest_routes_or_resolves_for_others(fleet: Fleet) -> None:
    through = judge(fleet, "NET-05")
    assert not through, f"forged Neighbor Discovery: {'; '.join(through[:6])}"


def _answers(port: int) -> tuple[Acl, ...]:
    return tuple(
        Acl(direction, 2000, f"udp.src == {port}", "allow") for direction in ("from-lport", "to-lport")
    )


@check(
    id="NET-06",
    objective=(
        "No guest answers for DHCP, none is handed another's address, and no greed exhausts what there is"
    ),
    severity="high",
    effect=Effect.PROBES,
    breaches=(
        ruled("guests of a network may answer DHCP", lambda _: _answers(67)),
        ruled("guests of a network may answer DHCPv6", lambda _: _answers(547)),
        *where(
            has_neighbours,
            readdressed(
                "DHCP hands a guest another's address",
                lambda stage: stage.sender.nic,
                lambda stage: [f"{stage.sender.nic.mac} {stage.receiver().nic.addresses}"],
            ),
        ),
    ),
)
def test_no_guest_serves_or_steals_leases(fleet: Fleet) -> None:
    leases = stolen(fleet, (THEFT, STARVATION))
    assert not leases, f"{len(leases)} leases of others: {'; '.join(leases[:6])}"
    through = judge(fleet, "NET-06")
    assert not through, f"forged answers: {'; '.join(through[:6])}"


@check(
    id="NET-07",
    objective="No frame in a VLAN tag enters a tenant's network",
    severity="high",
    effect=Effect.PROBES,
    breaches=(
        Breach(
            "a switch passes VLAN tags on",
            open=lambda stage: stage.northbound.set_option(switch(stage), "vlan-passthru", "true"),
            close=lambda stage: stage.northbound.set_option(switch(stage), "vlan-passthru", ""),
            in_force=lambda stage: stage.northbound.switches()[switch(stage)]["options"] != [],
        ),
        shortcut(
            "a node takes the tag off and lets the frame in",
            "vlan_vid=0x1000/0x1000,dl_type=0x0800",
            "pop_vlan,",
        ),
    ),
)
def test_no_tag_is_let_in(fleet: Fleet) -> None:
    through = judge(fleet, "NET-07")
    assert not through, f"tagged frames: {'; '.join(through[:6])}"
