"""Parts that checks and their breaches are built from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any

from testbed.model import subjects
from testbed.model.reachability import endpoints
from testbed.model.topology import Guest, GuestNic
from testbed.plan.host_config import nd_guard
from testbed.plan.ovn_acls import Acl
from testbed.verify.breach_context import Host, Stage
from testbed.verify.check import Breach

TABLE = "ovs-ofctl -O OpenFlow15"


def here(stage: Stage) -> Host:
    """Return the machine of the case."""
    return stage.host


def controller(stage: Stage) -> Host:
    """Return the controller."""
    return stage.lab.central.host


def command(
    name: str,
    *,
    opens: Callable[[Stage], str],
    closes: Callable[[Stage], str],
    shows: Callable[[Stage], str],
    where: Callable[[Stage], Host] = here,
) -> Breach:
    """Return a breach made of shell commands that run as root on a machine.

    Args:
        shows: commands that succeed exactly while the wall is open.
        where: the machine.

    """

    def do(stage: Stage, commands: str) -> None:
        where(stage).must(commands)

    return Breach(
        name,
        open=lambda stage: do(stage, opens(stage)),
        close=lambda stage: do(stage, closes(stage)),
        in_force=lambda stage: where(stage).sudo(shows(stage)).status == 0,
    )


def needs_guest(stage: Stage) -> str | None:
    """Return why a check of one node has nothing to look at there."""
    return (
        None
        if stage.guests
        else f"no guest runs on {stage.node.name}, so no worker, volume or frame of a guest is there"
    )


def needs_other_tenants(stage: Stage) -> str | None:
    """Return why no file on a node could belong to two tenants."""
    if len(stage.testbed.tenants) < 2:
        return "the topology has one tenant, so no file could belong to a second one"
    return needs_guest(stage)


def needs_company(stage: Stage) -> str | None:
    """Return why no guest's frame could come to another guest."""
    return (
        None
        if len(stage.testbed.guests) > 1
        else "the topology has one guest, so there is no other one that its frames could come to"
    )


def needs_flow(stage: Stage) -> str | None:
    """Return why there is no connection whose rule could be taken away."""
    return (
        None
        if has_flow(stage)
        else "no declared flow joins two guests, so there is no rule that a connection could outlive"
    )


def profile(guest: Guest) -> str:
    """Return the path of a guest's AppArmor profile on its node."""
    return f"/etc/apparmor.d/libvirt/libvirt-{guest.uuid}"


def rules(guest: Guest) -> str:
    """Return the path of the file of a guest's profile that names what its worker may open."""
    return f"{profile(guest)}.files"


def load(guest: Guest) -> str:
    """Return the command that puts a guest's profile into force as it stands on disk."""
    return f"apparmor_parser -r {profile(guest)}"


def mirrored(
    name: str, source: Callable[[Stage], Guest], device: Callable[[Stage], str], match: str = ""
) -> Breach:
    """Return a breach by which a device of a guest's node sends copies of what the guest's first interface
    sends.

    By nft, since the switch replaces what stands beside its policer whenever an interface changes.

    Args:
        match: which frames, as nft(8) is told; all if empty.

    """
    table = re.sub(r"\W", "_", name)
    return command(
        name,
        opens=lambda s: (
            f"nft 'add table netdev {table}; add chain netdev {table} copies "
            f'{{ type filter hook ingress device "{source(s).nics[0].tap}" priority -300; }}; '
            f'add rule netdev {table} copies {match} dup to "{device(s)}"\''
        ),
        closes=lambda _: f"nft destroy table netdev {table}",
        shows=lambda _: f"nft list table netdev {table} | grep -q dup",
        where=lambda s: s.lab.host(source(s).node),
    )


def where(applies: Callable[[Stage], bool], *breaches: Breach) -> tuple[Breach, ...]:
    """Return breaches that are tried only where a topology has the wall that they open."""
    return tuple(replace(breach, applies=applies) for breach in breaches)


def has_flow(stage: Stage) -> bool:
    """Tell whether a declared flow joins two guests."""
    return bool(subjects.flows(stage.testbed))


def has_pair(stage: Stage) -> bool:
    """Tell whether the fleet has two guests that no flow joins."""
    return subjects.pair(stage.testbed) is not None


def has_neighbours(stage: Stage) -> bool:
    """Tell whether two guests share a network."""
    return subjects.neighbour(stage.testbed, stage.sender) is not None


def has_sharers(stage: Stage) -> bool:
    """Tell whether two guests are on the node of a case."""
    return subjects.sharers(stage.testbed, stage.node.name) is not None


def has_strangers(stage: Stage) -> bool:
    """Tell whether guests of two tenants are on the node of a case."""
    return subjects.strangers(stage.testbed, stage.node.name) is not None


def has_six(stage: Stage) -> bool:
    """Tell whether any guest has IPv6."""
    return any(nic.address6 for guest in stage.testbed.guests for nic in guest.nics)


def six_sender(stage: Stage) -> subjects.Attachment:
    """Return the first interface with IPv6, or the first one of all where none has it."""
    everyone = subjects.attachments(stage.testbed)
    return next((item for item in everyone if item.nic.address6), everyone[0])


def unjoined(stage: Stage) -> tuple[str, str, str] | None:
    """Return node, interface and IPv6 address of two neighbours on a network that no declared flow joins, or
    None.
    """
    lab = stage.testbed
    found = {node.name: nd_guard.allowed(lab, node) for node in lab.nodes}
    own = {item.nic.mac: item for item in subjects.attachments(lab)}
    for one, other in permutations(endpoints(lab), 2):
        node, tap = own[one.mac].guest.node, own[one.mac].nic.tap
        if one.network == other.network and one.address6 and (tap, str(other.address6)) not in found[node]:
            return node, tap, str(other.address6)
    return None


def switch(stage: Stage) -> str:
    """Return the logical switch of the first declared flow, or else of a network with a guest, if possible
    with two.
    """
    return stage.sender.network


def ruled(name: str, rules: Callable[[Stage], tuple[Acl, ...]]) -> Breach:
    """Return a breach by rules that are added to the `switch`."""

    def in_force(stage: Stage) -> bool:
        present = stage.northbound.switches()[switch(stage)]["acls"]
        return any(str(rule) in present for rule in rules(stage))

    return Breach(
        name,
        open=lambda stage: stage.northbound.change_rules(switch(stage), (), rules(stage)),
        close=lambda stage: stage.northbound.change_rules(switch(stage), rules(stage), ()),
        in_force=in_force,
    )


_ALL = tuple(Acl(way, 2000, "ip", "allow") for way in ("from-lport", "to-lport"))
ALLOW_ALL = ruled("a rule allows all IP inside a tenant's network", lambda _: _ALL)


def attacker(stage: Stage) -> GuestNic:
    """Return the interface of who attacks a network."""
    return stage.sender.nic


def loosened(
    name: str, security: Callable[[Stage], list[str]], nic: Callable[[Stage], GuestNic] = attacker
) -> Breach:
    """Return a breach by other addresses that an interface may use."""
    return Breach(
        name,
        open=lambda stage: stage.northbound.set_security(nic(stage).port, security(stage)),
        close=lambda stage: stage.northbound.set_security(nic(stage).port, [nic(stage).pinned]),
        in_force=lambda stage: _port(stage, nic(stage))["security"] != [nic(stage).pinned],
    )


def readdressed(
    name: str, nic: Callable[[Stage], GuestNic], addresses: Callable[[Stage], list[str]]
) -> Breach:
    """Return a breach by other addresses at which a port is reached, and which DHCP hands out."""
    return Breach(
        name,
        open=lambda stage: stage.northbound.set_addresses(nic(stage).port, addresses(stage)),
        close=lambda stage: stage.northbound.set_addresses(nic(stage).port, [nic(stage).pinned]),
        in_force=lambda stage: _port(stage, nic(stage))["addresses"] != nic(stage).pinned,
    )


def _port(stage: Stage, nic: GuestNic) -> Mapping[str, Any]:
    return next(found for found in stage.northbound.ports().values() if found["port"] == nic.port)
