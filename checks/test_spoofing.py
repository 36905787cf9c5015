"""Who a guest can pretend to be, attacked with raw frames from inside guests and watched at every receiver.

Each wall has several layers: the port's own addresses, the sender's rules, the receiver's rules. So three kinds of
witnesses speak: packets at the receivers, the sender's node's pipeline, and OVN's databases.
"""

from __future__ import annotations

from checks.breaches import (
    command,
    dual,
    dual_flow,
    loosened,
    mirrored,
    needs_flow,
    needs_guest,
    readdressed,
    receiver,
    ruled,
    shortcut,
    switch,
    where,
)
from checks.forgeries import STARVATION, THEFT
from checks.scenes import NOWHERE6
from checks.survey import judge, stolen
from testbed.model.testbed import Guest
from testbed.plan.acls import Acl
from testbed.plan.neighbours import ATTACH, RULES
from testbed.verify.declare import Breach, Effect, check
from testbed.verify.fleet import Fleet
from testbed.verify.stage import Stage

_UNPINNED = loosened("a port's address pinning is gone", lambda _: [])
_BY_MAC_ONLY = loosened("a port is pinned by MAC address only", lambda stage: [stage.flow()[2].mac])


@check(
    id="NET-02",
    objective="A guest sends with its own MAC address only",
    severity="high",
    effect=Effect.PROBES,
    applies=needs_flow,
    breaches=(
        _UNPINNED,
        loosened(
            "a port may use another tenant's MAC address as well",
            lambda stage: [stage.flow()[2].pinned, _stranger_of(stage)],
        ),
    ),
)
def test_source_mac_is_pinned(fleet: Fleet) -> None:
    through = judge(fleet, "NET-02")
    assert not through, f"forged frames: {'; '.join(through[:6])}"


def _stranger_of(stage: Stage) -> str:
    tenant = stage.flow()[0].tenant
    others = [nic.mac for guest in stage.testbed.guests if guest.tenant != tenant for nic in guest.nics]
    return others[0] if others else receiver(stage).mac


@check(
    id="NET-03",
    objective="A guest's ARP speaks for its own address and MAC only, in every encapsulation",
    severity="high",
    effect=Effect.PROBES,
    applies=needs_guest,
    breaches=(_UNPINNED, shortcut("tagged frames go past the pinning", "vlan_vid=0x1000/0x1000")),
)
def test_arp_does_not_lie(fleet: Fleet) -> None:
    through = judge(fleet, "NET-03")
    assert not through, f"forged ARP: {'; '.join(through[:6])}"


def _any_sender(stage: Stage) -> Acl:
    """Return a rule like the receiver's own, which does not ask for the sender's address once more."""
    return Acl("to-lport", 2000, f'outport == "{receiver(stage).port}" && tcp.dst == {stage.flow()[3]}', "allow-related")


def _neighbours(stage: Stage) -> list[Guest]:
    """Return the guests beside the source of the first declared flow to which it has no business to send."""
    source, target, *_ = stage.flow()
    return [guest for guest in stage.testbed.guests_on(source.node) if guest not in (source, target)]


def _any_six(stage: Stage) -> list[str]:
    source, _, nic, _ = stage.flow()
    return [f"{nic.mac} {nic.address} {stage.testbed.tenant(source.tenant).network(nic.network).network6}"]


@check(
    id="NET-04",
    objective="A guest sends with its own addresses only, IPv4 and IPv6, and by no route of its own choice",
    severity="high",
    effect=Effect.PROBES,
    applies=needs_flow,
    breaches=(
        _BY_MAC_ONLY,
        ruled("the receiver's rule takes any sender", lambda stage: (_any_sender(stage),)),
        shortcut("packets of another address go past the pinning", "dl_type=0x0800,nw_src=203.0.113.7"),
        shortcut("IPv6 packets of another address go past the pinning", f"dl_type=0x86dd,ipv6_src={NOWHERE6}"),
        *where(
            lambda stage: bool(_neighbours(stage)),
            mirrored(
                "packets with a source route go to a neighbour",
                lambda stage: stage.flow()[0],
                lambda stage: _neighbours(stage)[0].nics[0].tap,
                "ip hdrlength > 5",
            ),
        ),
        *where(dual_flow, loosened("a port may use every IPv6 address of its network", _any_six)),
    ),
)
def test_source_address_is_pinned(fleet: Fleet) -> None:
    through = judge(fleet, "NET-04")
    assert not through, f"forged packets: {'; '.join(through[:6])}"


def _tap(stage: Stage) -> str:
    return stage.guests[0].nics[0].tap


@check(
    id="NET-05",
    objective="No guest acts as an IPv6 router or as another's IPv6 address, by extension headers and fragments neither",
    severity="high",
    effect=Effect.PROBES,
    applies=needs_guest,
    breaches=(
        _BY_MAC_ONLY,
        *where(lambda stage: not dual(stage), shortcut("router advertisements go past the pinning", "icmp6,icmp_type=134")),
        *where(
            dual,
            command(
                "the guard lets router advertisements through",
                opens=lambda _: "nft insert rule netdev neighbours judge icmpv6 type nd-router-advert return",
                closes=lambda _: f"nft -f {RULES}",
                shows=lambda _: "nft list chain netdev neighbours judge | grep -q nd-router-advert",
            ),
            command(
                "the guard lets guests tell any MAC address",
                opens=lambda _: "nft insert rule netdev neighbours judge icmpv6 type nd-neighbor-solicit return",
                closes=lambda _: f"nft -f {RULES}",
                shows=lambda _: "nft list chain netdev neighbours judge | grep -q 'nd-neighbor-solicit return'",
            ),
            command(
                "a guest's interface is not guarded",
                opens=lambda stage: f"nft flush chain netdev neighbours {_tap(stage)}",
                closes=lambda stage: f"{ATTACH} {_tap(stage)}",
                shows=lambda stage: f"nft list chain netdev neighbours {_tap(stage)} | grep -q hook && "
                f"! nft list chain netdev neighbours {_tap(stage)} | grep -q jump",
            ),
        ),
    ),
)
def test_no_guest_routes_or_resolves_for_others(fleet: Fleet) -> None:
    through = judge(fleet, "NET-05")
    assert not through, f"forged Neighbor Discovery: {'; '.join(through[:6])}"


def _answers(port: int) -> tuple[Acl, ...]:
    return tuple(Acl(direction, 2000, f"udp.src == {port}", "allow") for direction in ("from-lport", "to-lport"))


@check(
    id="NET-06",
    objective="No guest answers for DHCP, none is handed another's address, and no greed exhausts what there is",
    severity="high",
    effect=Effect.PROBES,
    applies=needs_guest,
    breaches=(
        ruled("guests of a network may answer DHCP", lambda _: _answers(67)),
        ruled("guests of a network may answer DHCPv6", lambda _: _answers(547)),
        readdressed(
            "DHCP hands a guest another's address",
            lambda stage: stage.flow()[2],
            lambda stage: [f"{stage.flow()[2].mac} {receiver(stage).addresses}"],
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
    applies=needs_flow,
    breaches=(
        Breach(
            "a switch passes VLAN tags on",
            open=lambda stage: stage.northbound.set_option(switch(stage), "vlan-passthru", "true"),
            close=lambda stage: stage.northbound.set_option(switch(stage), "vlan-passthru", ""),
            in_force=lambda stage: stage.northbound.switches()[switch(stage)]["options"] != [],
        ),
        shortcut("a node takes the tag off and lets the frame in", "vlan_vid=0x1000/0x1000,dl_type=0x0800", "pop_vlan,"),
    ),
)
def test_no_tag_is_let_in(fleet: Fleet) -> None:
    through = judge(fleet, "NET-07")
    assert not through, f"tagged frames: {'; '.join(through[:6])}"
