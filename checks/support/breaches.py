"""Building blocks of checks and their breaches."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

from testbed.model import subjects
from testbed.model.reachability import endpoints
from testbed.model.topology import Guest, GuestNic
from testbed.plan.host_config import nd_guard
from testbed.plan.ovn_acls import Acl
from testbed.topology_file.validation import WORKERS_PER_NODE
from testbed.verify.breach_context import BreachContext, Host
from testbed.verify.check import Breach

_UNIT = "breach-program"
TABLE = "ovs-ofctl -O OpenFlow15"


def here(context: BreachContext) -> Host:
    """Return the machine of the case."""
    return context.host


def controller(context: BreachContext) -> Host:
    """Return the controller."""
    return context.lab.central.host


def shell_breach(
    name: str,
    *,
    opens: Callable[[BreachContext], str],
    closes: Callable[[BreachContext], str],
    shows: Callable[[BreachContext], str],
    where: Callable[[BreachContext], Host] = here,
) -> Breach:
    """Return a breach made of shell commands that run as root on a machine.

    Args:
        shows: commands that succeed exactly while the wall is open.
        where: the machine.

    """

    def do(context: BreachContext, commands: str) -> None:
        where(context).must(commands)

    return Breach(
        name,
        open=lambda context: do(context, opens(context)),
        close=lambda context: do(context, closes(context)),
        in_force=lambda context: where(context).sudo(shows(context)).status == 0,
    )


def mode_breach(
    name: str,
    path: Callable[[BreachContext], str],
    *,
    opened: str,
    shut: str,
    where: Callable[[BreachContext], Host] = here,
) -> Breach:
    """Return a breach by the permissions of a file, folder, device or socket.

    Args:
        path: its place, as the word of a shell.
        opened: permissions while the wall is open (octal).
        shut: those that it must have.
        where: the machine.
    """
    return shell_breach(
        name,
        opens=lambda context: f"chmod {opened} {path(context)}",
        closes=lambda context: f"chmod {shut} {path(context)}",
        shows=lambda context: f"[ $(stat -c %a {path(context)}) = {opened} ]",
        where=where,
    )


def unit_breach(
    name: str,
    program: Sequence[str],
    undone: str,
    where: Callable[[BreachContext], Host] = here,
) -> Breach:
    """Return a breach by a program of a machine, which runs until the breach is closed.

    Args:
        program: its argument list.
        undone: shell commands that take away what it has made, after it was stopped.
        where: the machine.
    """
    return shell_breach(
        name,
        opens=lambda _: f"systemd-run -q --collect --unit={_UNIT} {shlex.join(program)}",
        closes=lambda _: f"systemctl stop {_UNIT} 2>/dev/null; {undone}; ! systemctl is-active -q {_UNIT}",
        shows=lambda _: f"systemctl is-active -q {_UNIT}",
        where=where,
    )


def worker_pid(context: BreachContext) -> str:
    """Return the word of a shell that is the process id of the first guest's worker."""
    return f"$(cat /run/libvirt/qemu/{context.guest.domain}.pid)"


def needs_guest(context: BreachContext) -> str | None:
    """Return why a check of one node has nothing to observe there, or None."""
    return (
        None
        if context.guests
        else f"no guest runs on {context.node.name}, so no worker, volume or frame of a guest is there"
    )


def needs_room(context: BreachContext) -> str | None:
    """Return why no further guest can come to the node of a case, or None."""
    if not context.topology.guests:
        return "the topology has no guest"
    if len(context.guests) >= WORKERS_PER_NODE:
        return f"every account for workers is in use on {context.node.name}"
    return None


def needs_other_tenants(context: BreachContext) -> str | None:
    """Return why no file on a node could belong to two tenants, or None."""
    if len(context.topology.tenants) < 2:
        return "the topology has one tenant, so no file could belong to a second one"
    return needs_guest(context)


def needs_company(context: BreachContext) -> str | None:
    """Return why no guest's frame could reach another guest, or None."""
    return (
        None
        if len(context.topology.guests) > 1
        else "the topology has one guest, so there is no other one that its frames could come to"
    )


def needs_flow(context: BreachContext) -> str | None:
    """Return why there is no connection whose rule could be removed, or None."""
    return (
        None
        if has_flow(context)
        else "no declared flow joins two guests, so there is no rule that a connection could outlive"
    )


def profile(guest: Guest) -> str:
    """Return the path of a guest's AppArmor profile on its node."""
    return f"/etc/apparmor.d/libvirt/libvirt-{guest.uuid}"


def rules(guest: Guest) -> str:
    """Return the path of the file that lists the paths which a guest's profile allows."""
    return f"{profile(guest)}.files"


def load(guest: Guest) -> str:
    """Return the command that loads a guest's profile from disk into the kernel."""
    return f"apparmor_parser -r {profile(guest)}"


def mirrored(
    name: str,
    source: Callable[[BreachContext], Guest],
    device: Callable[[BreachContext], str],
    match: str = "",
) -> Breach:
    """Return a breach by which a device sends copies of frames from the guest's first interface.

    It uses nft, since the switch replaces other tc filters beside its policer whenever an interface
    changes.

    Args:
        match: expression of nft(8) that selects frames; all if empty.
    """
    table = re.sub(r"\W", "_", name)
    return shell_breach(
        name,
        opens=lambda context: (
            f"nft 'add table netdev {table}; add chain netdev {table} copies "
            f'{{ type filter hook ingress device "{source(context).nics[0].tap}" priority -300; }}; '
            f'add rule netdev {table} copies {match} dup to "{device(context)}"\''
        ),
        closes=lambda _: f"nft destroy table netdev {table}",
        shows=lambda _: f"nft list table netdev {table} | grep -q dup",
        where=lambda context: context.lab.host(source(context).node),
    )


def where(applies: Callable[[BreachContext], bool], *breaches: Breach) -> tuple[Breach, ...]:
    """Return breaches that apply only to topologies with the wall that they open."""
    return tuple(replace(breach, applies=applies) for breach in breaches)


def has_flow(context: BreachContext) -> bool:
    """Return whether a declared flow joins two guests."""
    return bool(subjects.flows(context.topology))


def has_pair(context: BreachContext) -> bool:
    """Return whether the fleet has two guests that no flow joins."""
    return subjects.pair(context.topology) is not None


def has_neighbours(context: BreachContext) -> bool:
    """Return whether two guests share a network."""
    return subjects.neighbour(context.topology, context.sender) is not None


def has_sharers(context: BreachContext) -> bool:
    """Return whether two guests are on the node of a case."""
    return subjects.sharers(context.topology, context.node.name) is not None


def has_strangers(context: BreachContext) -> bool:
    """Return whether guests of two tenants are on the node of a case."""
    return subjects.strangers(context.topology, context.node.name) is not None


def has_six(context: BreachContext) -> bool:
    """Return whether any guest has IPv6."""
    return any(nic.address6 for guest in context.topology.guests for nic in guest.nics)


def six_sender(context: BreachContext) -> subjects.Attachment:
    """Return the first interface with IPv6, else the first one."""
    everyone = subjects.attachments(context.topology)
    return next((item for item in everyone if item.nic.address6), everyone[0])


def neighbours_without_flow(context: BreachContext) -> tuple[str, str, str] | None:
    """Return node, interface and IPv6 address of two neighbours without a flow, or None."""
    topology = context.topology
    found = {node.name: nd_guard.allowed(topology, node) for node in topology.nodes}
    own = {item.nic.mac: item for item in subjects.attachments(topology)}
    for one, other in permutations(endpoints(topology), 2):
        node, tap = own[one.mac].guest.node, own[one.mac].nic.tap
        if one.network == other.network and one.address6 and (tap, str(other.address6)) not in found[node]:
            return node, tap, str(other.address6)
    return None


def switch(context: BreachContext) -> str:
    """Return the logical switch of the network that `testbed.model.subjects.sender` attacks.

    It is that of the first declared flow, else of a network with a guest, if possible with two.
    """
    return context.sender.network


def acl_breach(name: str, rules: Callable[[BreachContext], tuple[Acl, ...]]) -> Breach:
    """Return a breach by ACLs that are added to the `switch`."""

    def in_force(context: BreachContext) -> bool:
        present = context.northbound.switches()[switch(context)]["acls"]
        return any(str(rule) in present for rule in rules(context))

    return Breach(
        name,
        open=lambda context: context.northbound.change_rules(switch(context), (), rules(context)),
        close=lambda context: context.northbound.change_rules(switch(context), rules(context), ()),
        in_force=in_force,
    )


_ALL = tuple(Acl(way, 2000, "ip", "allow") for way in ("from-lport", "to-lport"))
ALLOW_ALL = acl_breach("a rule allows all IP inside a tenant's network", lambda _: _ALL)


def attacker(context: BreachContext) -> GuestNic:
    """Return the interface that attacks a network."""
    return context.sender.nic


def port_security_breach(
    name: str,
    security: Callable[[BreachContext], list[str]],
    nic: Callable[[BreachContext], GuestNic] = attacker,
) -> Breach:
    """Return a breach by a port security that differs from the allowed addresses."""
    return Breach(
        name,
        open=lambda context: context.northbound.set_security(nic(context).port, security(context)),
        close=lambda context: context.northbound.set_security(
            nic(context).port, [nic(context).port_security]
        ),
        in_force=lambda context: _port(context, nic(context))["security"] != [nic(context).port_security],
    )


def address_breach(
    name: str, nic: Callable[[BreachContext], GuestNic], addresses: Callable[[BreachContext], list[str]]
) -> Breach:
    """Return a breach by other addresses at which a port is reached, and which DHCP offers."""
    return Breach(
        name,
        open=lambda context: context.northbound.set_addresses(nic(context).port, addresses(context)),
        close=lambda context: context.northbound.set_addresses(
            nic(context).port, [nic(context).port_security]
        ),
        in_force=lambda context: _port(context, nic(context))["addresses"] != nic(context).port_security,
    )


def _port(context: BreachContext, nic: GuestNic) -> Mapping[str, Any]:
    return next(found for found in context.northbound.ports().values() if found["port"] == nic.port)
