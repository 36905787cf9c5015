"""Limits of a guest's interface that a node's kernel enforces: packets and connections (NET-12).

Packets are limited by Open vSwitch's policers in front of a node's switch. A policer acts before the switch
looks at a frame, so that excess frames cost it no look-up (ovs-vswitchd.conf.db(5),
ingress_policing_kpkts_rate; docs/decisions/0012). Connections are limited by zone of connection tracking: OVN
gives each port a zone and asks the switch for its limit (ovn-nb(5), ct-zone-limit). The switch may lose that
limit while OVN believes it is there, so it is observed, and set on the node where it is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from testbed.model.topology import Guest
from testbed.plan.resources import Key, Kind, Properties

_POLICER = re.compile(
    r"\bpolice (0x[0-9a-f]+) .*\bpkts_rate (\d+)"
)  # its index in the kernel, and packets per second
_KPACKETS = 1000
BURST = 1.0  # burst size, as seconds of the limit
_ZONE = "ct-zone-"  # key of a port's zone among the bridge's external_ids (ovn-controller(8))
# The zone of each port, and the limit of each zone that has one, in the kernel.
TRACKING = "ovs-vsctl get bridge br-int external_ids; ovs-appctl dpctl/ct-get-limits"
_LOOKS = 10  # at a limit that OVN has yet to ask for, half a second apart


def zones(tracking: str) -> Mapping[str, int]:
    """Return each port's zone of connection tracking.

    Args:
        tracking: output of `TRACKING`.
    """
    return {port: int(zone) for port, zone in re.findall(rf'{_ZONE}([^"=]+)"?="(\d+)"', tracking)}


def _connections(tracking: str) -> Mapping[str, int]:
    """Return the kernel's limit of the connections of each port that has one."""
    limits = {int(zone): int(most) for zone, most in re.findall(r"^zone=(\d+),limit=(\d+)", tracking, re.M)}
    return {port: limits[zone] for port, zone in zones(tracking).items() if zone in limits}


def observed(node: str, guests: Iterable[Guest], filters: str, tracking: str) -> dict[Key, Properties]:
    """Return the kernel's limits of the existing interfaces of guests: packets per second and connections.

    No limit is 0. Several policers add up. One policer is printed twice, with the filters of both directions;
    its index identifies it.

    Args:
        node: name of the node.
        guests: those on the node.
        tracking: output of `TRACKING`.
        filters: output of `testbed.plan.host_config.settings.FILTERS`: filters of an interface behind a line
            that names it.
    """
    nics = [(f"{guest.label}/{nic.network}", nic) for guest in guests for nic in guest.nics]
    names = {nic.tap: name for name, nic in nics}
    ports = {name: nic.port for name, nic in nics}
    connections = _connections(tracking)
    found: dict[Key, set[tuple[str, int]]] = {}
    device = ""
    for line in filters.splitlines():
        if line.startswith("interface "):
            device = line.removeprefix("interface ")
            if device in names:
                found.setdefault(Key(node, Kind.LIMIT, names[device]), set())
        elif device in names and (policer := _POLICER.search(line)):
            found[Key(node, Kind.LIMIT, names[device])].add((policer[1], int(policer[2])))
    return {
        key: {
            "packets": sum(rate for _, rate in policers),
            "connections": connections.get(ports[key.name], 0),
        }
        for key, policers in found.items()
    }


def limit(taps: Iterable[str], packets: int) -> str:
    """Return the command that limits the packets per second of some interfaces; 0 is no limit."""
    rate = packets // _KPACKETS
    columns = f"ingress_policing_kpkts_rate={rate} ingress_policing_kpkts_burst={int(rate * BURST)}"
    return "ovs-vsctl " + " -- ".join(f"set interface {tap} {columns}" for tap in taps)


def settle(port: str, connections: int) -> str:
    """Return the command that waits until the kernel limits a port's connections.

    OVN asks for the limit when it binds the port. If it does not within seconds, the command sets it. The old
    limit is deleted first: the switch ignores a value that its database has already.

    Args:
        port: name of the logical port.
        connections: the limit.
    """
    zone = f"zone=$(ovs-vsctl --if-exists get bridge br-int external_ids:{_ZONE}{port} | tr -d '\"')"
    limited = f'ovs-appctl dpctl/ct-get-limits zone=$zone | grep -q "^zone=$zone,limit={connections},"'
    return (
        f'(for look in $(seq {_LOOKS}); do {zone}; [ "$zone" ] && {limited} && exit 0; sleep 0.5; done; '
        f'[ "$zone" ] || {{ echo "the port {port} has no zone of connection tracking" >&2; exit 1; }}; '
        "ovs-vsctl --if-exists del-zone-limit system $zone; "
        f"ovs-vsctl set-zone-limit system $zone {connections})"
    )
