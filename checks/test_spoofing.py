"""Spoofing: raw frames with false claims from guests, recorded at every receiver.

Each wall has several layers: the port's own addresses, the sender's rules, the receiver's rules. So there
are three kinds of witnesses: packets at the receivers, the sender's node's pipeline, and OVN's databases.
"""

from __future__ import annotations

from checks.support.attacker_positions import NOWHERE6
from checks.support.breaches import (
    acl_breach,
    address_breach,
    has_flow,
    has_neighbours,
    has_pair,
    has_six,
    mirrored,
    port_security_breach,
    shell_breach,
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
from testbed.verify.breach_context import BreachContext, Host
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet

_UNPINNED = port_security_breach("a port's address pinning is gone", lambda _: [])
_BY_MAC_ONLY = port_security_breach(
    "a port is pinned by MAC address only", lambda context: [context.sender.nic.mac]
)


@check(
    id="NET-02",
    objective="A guest sends with its own MAC address only",
    severity="high",
    effect=Effect.PROBES,
    breaches=(
        _UNPINNED,
        port_security_breach(
            "a port may use another tenant's MAC address as well",
            lambda context: [context.sender.nic.port_security, _stranger_of(context)],
        ),
    ),
)
def test_source_mac_is_pinned(fleet: Fleet) -> None:
    through = judge(fleet, "NET-02")
    assert not through, f"forged frames: {'; '.join(through[:6])}"


def _stranger_of(context: BreachContext) -> str:
    """Return the MAC address of another tenant's guest if possible.

    Else it is that of another guest, else an unused one.
    """
    own = context.sender.guest
    others = sorted(
        (guest for guest in context.topology.guests if guest is not own),
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


def _any_sender(context: BreachContext) -> Acl:
    """Return a rule like the receiver's own, but without its match on the sender's address."""
    flow = context.flow()
    return Acl("to-lport", 2000, f'outport == "{flow.target.nic.port}" && {flow.match}', "allow-related")


def _neighbours(context: BreachContext) -> tuple[Guest, Guest] | None:
    """Return a flow's source and a guest on its node that is no end of the flow, or None."""
    for flow in flows(context.topology):
        source, ends = flow.source.guest, (flow.source.guest, flow.target.guest)
        others = [guest for guest in context.topology.guests_on(source.node) if guest not in ends]
        if others and source.nics[0] == flow.source.nic:
            return source, others[0]
    return None


def _bystander(context: BreachContext) -> tuple[Guest, Guest]:
    return _neighbours(context) or (context.guest, context.guest)


def _any_six(context: BreachContext) -> list[str]:
    one = six_sender(context)
    return [
        (
            f"{one.nic.mac} {one.nic.address} "
            f"{context.topology.tenant(one.guest.tenant).network(one.nic.network).network6}"
        )
    ]


@check(
    id="NET-04",
    objective="A guest sends with its own addresses only, IPv4 and IPv6, and by no route of its own choice",
    severity="high",
    effect=Effect.PROBES,
    breaches=(
        _BY_MAC_ONLY,
        *where(
            has_flow,
            acl_breach("the receiver's rule takes any sender", lambda context: (_any_sender(context),)),
        ),
        shortcut("packets of another address go past the pinning", "dl_type=0x0800,nw_src=203.0.113.7"),
        shortcut(
            "IPv6 packets of another address go past the pinning", f"dl_type=0x86dd,ipv6_src={NOWHERE6}"
        ),
        *where(
            lambda context: _neighbours(context) is not None,
            mirrored(
                "packets with a source route go to a neighbour",
                lambda context: _bystander(context)[0],
                lambda context: _bystander(context)[1].nics[0].tap,
                "ip hdrlength > 5",
            ),
        ),
        *where(
            has_six,
            port_security_breach(
                "a port may use every IPv6 address of its network",
                _any_six,
                lambda context: six_sender(context).nic,
            ),
        ),
    ),
)
def test_source_address_is_pinned(fleet: Fleet) -> None:
    through = judge(fleet, "NET-04")
    assert not through, f"forged packets: {'; '.join(through[:6])}"


def _tap(context: BreachContext) -> str:
    return six_sender(context).nic.tap


def _guarded(context: BreachContext) -> Host:
    return context.lab.host(six_sender(context).guest.node)


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
            lambda context: has_pair(context) and not has_six(context),
            shortcut("router advertisements go past the pinning", "icmp6,icmp_type=134"),
        ),
        *where(
            has_six,
            shell_breach(
                "the guard lets router advertisements through",
                opens=lambda _: "nft insert rule netdev neighbours judge icmpv6 type nd-router-advert return",
                closes=lambda _: f"nft -f {RULES}",
                shows=lambda _: "nft list chain netdev neighbours judge | grep -q nd-router-advert",
                where=_guarded,
            ),
            shell_breach(
                "the guard lets guests announce any MAC address",
                opens=lambda _: (
                    "nft insert rule netdev neighbours judge icmpv6 type nd-neighbor-solicit return"
                ),
                closes=lambda _: f"nft -f {RULES}",
                shows=lambda _: (
                    "nft list chain netdev neighbours judge | grep -q 'nd-neighbor-solicit return'"
                ),
                where=_guarded,
            ),
            shell_breach(
                "a guest's interface is not guarded",
                opens=lambda context: f"nft flush chain netdev neighbours {_tap(context)}",
                closes=lambda context: f"{ATTACH} {_tap(context)}",
                shows=lambda context: (
                    f"nft list chain netdev neighbours {_tap(context)} | grep -q hook && "
                    f"! nft list chain netdev neighbours {_tap(context)} | grep -q jump"
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
        "No guest answers requests to DHCP, none gets another guest's address, and no number of requests "
        "exhausts the addresses"
    ),
    severity="high",
    effect=Effect.PROBES,
    breaches=(
        acl_breach("guests of a network may answer DHCP", lambda _: _answers(67)),
        acl_breach("guests of a network may answer DHCPv6", lambda _: _answers(547)),
        *where(
            has_neighbours,
            address_breach(
                "DHCP hands a guest another's address",
                lambda context: context.sender.nic,
                lambda context: [f"{context.sender.nic.mac} {context.receiver().nic.addresses}"],
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
            open=lambda context: context.northbound.set_option(switch(context), "vlan-passthru", "true"),
            close=lambda context: context.northbound.set_option(switch(context), "vlan-passthru", ""),
            in_force=lambda context: context.northbound.switches()[switch(context)]["options"] != [],
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
