"""Addresses, routes and settings of interfaces that a machine's identity and guests ask for. Pure."""

from __future__ import annotations

import re
from typing import Any

from testbed.inventory.records import Records
from testbed.model.topology import Machine, Role, Topology
from testbed.plan.host_config.identity import tunnel_peers

FIRST = "first"
_STRONGSWAN = 220  # its routing table, and the priority of the rule for it (strongswan.conf(5))
# These services have a network of their own, without interfaces.
_ALONE = tuple(f"net of system.slice/{name}.service" for name in ("virtlogd", "systemd-hostnamed"))
_INTERFACE = re.compile(r"net/(ipv[46])/(conf|neigh)/([^/]+)/([^/]+)")
_SWITCH = ("br-int", "ovs-system", "genev_sys_6081")
# What networkd and the kernel set on an interface, where it differs from what new interfaces get.
_PLANE = {
    "ipv4/conf/promote_secondaries": "1",
    "ipv6/conf/accept_ra": "0",
    "ipv6/conf/addr_gen_mode": "1",
    "ipv6/conf/mtu": "1500",
}
_MTU = {"ipv6/conf/mtu": "1500"}
_TUNNEL = {"ipv6/conf/mtu": "65000"}
# Values of a new network namespace that differ from those of the first, which the image sets (sysctl.d).
_NEW_NAMESPACE = {
    "net/ipv4/conf/lo/rp_filter": "1",
    "net/ipv4/ip_nonlocal_bind": "0",
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/lo/disable_ipv6": "0",
    "net/unix/max_dgram_qlen": "10",
}

# A namespace that shares the tables of the first one shows their sizes, which depend on memory, as negative
# numbers (ip-sysctl).
_SHARED_TABLES = ("net/ipv4/tcp_ehash_entries", "net/ipv4/udp_hash_entries")

Wanted = dict[tuple[str, str], Any]


def network(topology: Topology, machine: Machine) -> Wanted:
    """Return addresses, routes and rules of a machine."""
    found: Wanted = {}
    for nic in machine.nics:
        name, own = f"{nic.plane}0", str(nic.address)
        net = topology.lab_network(nic.plane).network
        last = str(net.broadcast_address)
        found["address", f"{FIRST} {name} {own}/{net.prefixlen}"] = {
            "broadcast": last,
            "family": "inet",
            "label": name,
            "local": own,
            "prefixlen": net.prefixlen,
            "scope": "global",
        }
        for kind, to, table, scope in (
            ("broadcast", last, "local", "link"),
            ("local", own, "local", "host"),
            ("unicast", str(net), "main", "link"),
        ):
            found["route", f"{FIRST} {kind} {to} {table} {name}"] = _route(kind, to, table, name, own, scope)
    if tunnel_peers(topology, machine):
        for family in ("-4", "-6"):
            found["rule", f"{FIRST} {family} {_STRONGSWAN} all"] = {
                "priority": _STRONGSWAN,
                "src": "all",
                "table": str(_STRONGSWAN),
            }
    return found


def _route(kind: str, to: str, table: str, device: str, own: str, scope: str) -> dict[str, object]:
    return {
        "dev": device,
        "dst": to,
        "flags": [],
        "prefsrc": own,
        "protocol": "kernel",
        "scope": scope,
        "table": table,
        "type": kind,
    }


def settings(topology: Topology, machine: Machine, golden: Records, found: Records) -> Wanted:
    """Return the settings of interfaces and namespaces that came after the golden reading.

    A new interface has the values that the golden reading has for new ones. The kernel decides which settings
    there are, so only those that were found are asked for.
    """
    wanted: Wanted = {("setting", f"{FIRST} kernel/hostname"): machine.name}
    changes = _changes(topology, machine)
    for domain, key in found.keys() - golden.keys():
        place, _, path = key.rpartition(" ")
        if domain != "setting" or (domain, key) in wanted:
            continue
        value = (
            _of_interface(path, golden, changes)
            if place == FIRST
            else _of_namespace(path, golden)
            if place in _ALONE
            else None
        )
        if value is not None:
            wanted[domain, key] = value
    return wanted


def _changes(topology: Topology, machine: Machine) -> dict[str, dict[str, str]]:
    """Return the settings that differ from those of new interfaces, by name of the interface."""
    changes = {f"{nic.plane}0": _PLANE for nic in machine.nics}
    if machine.role is Role.NODE:
        changes |= dict.fromkeys(_SWITCH[:2], _MTU) | {_SWITCH[2]: _TUNNEL}
        guests = [guest for guest in topology.guests if guest.node == machine.name]
        changes |= {nic.tap: _MTU for guest in guests for nic in guest.nics}
    return changes


def _of_interface(path: str, golden: Records, changes: dict[str, dict[str, str]]) -> Any:  # noqa: ANN401 - JSON
    """Return the value of a setting of an interface that the lab asks for."""
    parts = _INTERFACE.fullmatch(path)
    if parts is None or parts[3] not in changes:
        return None
    family, kind, name, setting = parts.groups()
    usual = golden.get(("setting", f"{FIRST} net/{family}/{kind}/default/{setting}"))
    return changes[name].get(f"{family}/{kind}/{setting}", usual)


def _of_namespace(path: str, golden: Records) -> Any:  # noqa: ANN401 - JSON
    """Return the value of a setting in a new network namespace."""
    usual = golden.get(("setting", f"{FIRST} {path}"))
    return f"-{usual}" if path in _SHARED_TABLES else _NEW_NAMESPACE.get(path, usual)
