"""Parts that checks and their breaches are built from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any

from testbed.drivers.ssh import Host
from testbed.model.policy import endpoints
from testbed.model.testbed import Guest, GuestNic
from testbed.plan import neighbours
from testbed.plan.acls import Acl
from testbed.verify.declare import Breach
from testbed.verify.stage import Stage

TABLE = "ovs-ofctl -O OpenFlow15"


def here(stage: Stage) -> Host:
    """Return the machine of the case."""
    return stage.host


def controller(stage: Stage) -> Host:
    """Return the controller."""
    return stage.lab.central.host


def command(
    name: str, *, opens: Callable[[Stage], str], closes: Callable[[Stage], str], shows: Callable[[Stage], str],
    where: Callable[[Stage], Host] = here,
) -> Breach:  # fmt: skip
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
    """Return why a check has nothing to look at on a node without guests."""
    return None if stage.guests else f"{stage.case} has no guest"


def needs_strangers(stage: Stage) -> str | None:
    """Return why a check has nothing to look at on a node where one tenant is alone."""
    tenants = {guest.tenant for guest in stage.guests}
    return None if len(tenants) > 1 else f"fewer than two tenants have guests on {stage.case}"


def profile(guest: Guest) -> str:
    """Return the path of a guest's AppArmor profile on its node."""
    return f"/etc/apparmor.d/libvirt/libvirt-{guest.uuid}"


def rules(guest: Guest) -> str:
    """Return the path of the file of a guest's profile that names what its worker may open."""
    return f"{profile(guest)}.files"


def load(guest: Guest) -> str:
    """Return the command that puts a guest's profile into force as it stands on disk."""
    return f"apparmor_parser -r {profile(guest)}"


def needs_flow(stage: Stage) -> str | None:
    """Return why a check has nothing to hide forged frames behind."""
    found = any(flow.protocol == "tcp" for tenant in stage.testbed.tenants for flow in tenant.flows)
    return None if found else "no TCP flow is declared, so there is nothing to tell a wall from a dead network by"


def shortcut(name: str, match: str, actions: str = "") -> Breach:
    """Return a breach by one OpenFlow rule: some frames of a guest go straight to another tenant's guest on the same node.

    Args:
        match: OpenFlow match of the frames, besides their port; ``{victim}`` is the MAC address of the other guest.
        actions: what is done to them first.

    """
    return command(
        name,
        opens=lambda s: f"{TABLE} add-flow br-int '{passing(s, match, actions)}'",
        closes=lambda s: withdrawn(s, match),
        shows=lambda s: f"{TABLE} dump-flows br-int '{_from(s, match)}' | grep -q priority=200",
    )


def passing(stage: Stage, match: str, actions: str = "") -> str:
    """Return the OpenFlow rule of a `shortcut`."""
    return f"{_from(stage, match)},priority=200,actions={actions}output:{stage.strangers()[1].nics[0].tap}"


def withdrawn(stage: Stage, match: str) -> str:
    """Return the command that takes the OpenFlow rule of a `shortcut` away."""
    return f"{TABLE} --strict del-flows br-int '{_from(stage, match)},priority=200'"


def mirrored(name: str, source: Callable[[Stage], Guest], device: Callable[[Stage], str], match: str = "") -> Breach:
    """Return a breach by which a device of a guest's node sends copies of what the guest's first interface sends.

    By nft, since the switch replaces what stands beside its policer whenever an interface changes.

    Args:
        match: which frames, as nft(8) is told; all if empty.

    """
    table = re.sub(r"\W", "_", name)
    return command(
        name,
        opens=lambda s: f"nft 'add table netdev {table}; add chain netdev {table} copies "
        f'{{ type filter hook ingress device "{source(s).nics[0].tap}" priority -300; }}; '
        f"add rule netdev {table} copies {match} dup to \"{device(s)}\"'",
        closes=lambda _: f"nft destroy table netdev {table}",
        shows=lambda _: f"nft list table netdev {table} | grep -q dup",
        where=lambda s: s.lab.host(source(s).node),
    )


def _from(stage: Stage, match: str) -> str:
    attacker, victim = (guest.nics[0] for guest in stage.strangers())
    return f"table=0,in_port={attacker.tap},{match.format(victim=victim.mac)}"


def where(applies: Callable[[Stage], bool], *breaches: Breach) -> tuple[Breach, ...]:
    """Return breaches that are tried only where a topology has the wall that they open."""
    return tuple(replace(breach, applies=applies) for breach in breaches)


def dual(stage: Stage) -> bool:
    """Tell whether the attacker of a case, the first guest of its node, has IPv6."""
    return stage.guests[0].nics[0].address6 is not None


def dual_flow(stage: Stage) -> bool:
    """Tell whether the source of the first declared flow has IPv6."""
    return stage.flow()[2].address6 is not None


def unjoined(stage: Stage) -> tuple[str, str] | None:
    """Return interface and IPv6 address of two neighbours on a network that no declared flow joins, or None."""
    found = neighbours.allowed(stage.testbed, stage.node.machine)
    for one, other in permutations(endpoints(stage.testbed), 2):
        taps = [nic.tap for guest in stage.guests for nic in guest.nics if nic.mac == one.mac]
        if taps and one.network == other.network and one.address6 and (taps[0], str(other.address6)) not in found:
            return taps[0], str(other.address6)
    return None


def switch(stage: Stage) -> str:
    """Return the logical switch of the first declared flow."""
    source, _, nic, _ = stage.flow()
    return f"{source.tenant}/{nic.network}"


def ruled(name: str, rules: Callable[[Stage], tuple[Acl, ...]]) -> Breach:
    """Return a breach by rules that are added to the switch of the first declared flow."""

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


def loosened(name: str, security: Callable[[Stage], list[str]]) -> Breach:
    """Return a breach by other addresses that the sender of the first declared flow may use."""
    return Breach(
        name,
        open=lambda stage: stage.northbound.set_security(stage.flow()[2].port, security(stage)),
        close=lambda stage: stage.northbound.set_security(stage.flow()[2].port, [stage.flow()[2].pinned]),
        in_force=lambda stage: _port(stage, stage.flow()[2])["security"] != [stage.flow()[2].pinned],
    )


def readdressed(name: str, nic: Callable[[Stage], GuestNic], addresses: Callable[[Stage], list[str]]) -> Breach:
    """Return a breach by other addresses at which a port is reached, and which DHCP hands out."""
    return Breach(
        name,
        open=lambda stage: stage.northbound.set_addresses(nic(stage).port, addresses(stage)),
        close=lambda stage: stage.northbound.set_addresses(nic(stage).port, [nic(stage).pinned]),
        in_force=lambda stage: _port(stage, nic(stage))["addresses"] != nic(stage).pinned,
    )


def _port(stage: Stage, nic: GuestNic) -> Mapping[str, Any]:
    return next(found for found in stage.northbound.ports().values() if found["port"] == nic.port)


def receiver(stage: Stage) -> GuestNic:
    """Return the interface at which the first declared flow arrives."""
    _, target, nic, _ = stage.flow()
    return next(item for item in target.nics if item.network == nic.network)
