"""The controls whose wall each resource holds, property by property (VMM-04). Pure.

A difference in a property endangers them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from testbed.model.topology import Topology
from testbed.plan import ovn_northbound
from testbed.plan.diff import Difference
from testbed.plan.host_config.settings import settings
from testbed.plan.resources import Key, Kind

ITSELF = "VMM-04"  # the live configuration equals the desired state
NOTHING = ""  # a state that opens no wall, such as that of a guest which does not run
STATE = "state"
# Severities of the controls that resources hold, as in the catalogue of controls.
SEVERITY = {
    "NET-01": "critical",
    "NET-02": "high",
    "NET-03": "high",
    "NET-04": "high",
    "NET-05": "high",
    "NET-06": "high",
    "NET-07": "high",
    "NET-08": "critical",
    "NET-09": "critical",
    "NET-10": "high",
    "NET-11": "medium",
    "NET-12": "medium",
    "NET-13": "high",
    "ACC-02": "critical",
    "ACC-05": "critical",
    "ACC-10": "medium",
    "AUD-01": "high",
    "BND-02": "high",
    "CMP-02": "high",
    "CMP-04": "medium",
    "DEV-02": "critical",
    "DEV-03": "high",
    "DOS-02": "high",
    "DOS-03": "high",
    "DOS-04": "high",
    "DOS-05": "medium",
    "PRC-01": "critical",
    "PRC-02": "critical",
    "PRC-05": "high",
    "PRC-06": "medium",
    "RES-02": "medium",
    "STO-01": "critical",
    "STO-02": "critical",
    "STO-03": "high",
    "STO-05": "high",
    "STO-06": "high",
    "STO-07": "high",
    ITSELF: "high",
    "VMM-05": "high",
}
BY_PROPERTY: Mapping[Kind, Mapping[str, str]] = {
    Kind.NETWORK: {"bridge": "NET-09", "address": "NET-09"},
    Kind.TAP: {"interface": "NET-09", "bridge": "NET-09"},
    Kind.MACHINE: {
        "accelerator": ITSELF,
        "memory": "DOS-03",
        "vcpus": "DOS-02",
        "images": "VMM-05",
        "interfaces": "NET-09",
        "controller": "NET-08",
        "peers": "NET-08",
        STATE: NOTHING,
    },
    Kind.SWITCH: {
        "network": "NET-06",
        "tunnel_key": "NET-08",
        "dhcp": "NET-10",
        "dhcp6": "NET-10",
        "names": "NET-10",
        "acls": "NET-01",
        "options": "NET-01",
    },
    Kind.PORT: {
        "port": "NET-13",
        "switch": "NET-01 NET-13",
        "addresses": "NET-06",
        "security": "NET-02 NET-03 NET-04 NET-05",
        "dhcp": "NET-06 NET-10",
        "dhcp6": "NET-06 NET-10",
        "bandwidth": "NET-12",
        "connections": "NET-12",
    },
    Kind.DATABASE: ovn_northbound.CONTROLS,
    Kind.POOL: {"owner": "STO-01", "access": "STO-01"},
    Kind.VOLUME: {"owner": "STO-01", "mode": "STO-01", "links": "STO-01", "size": "DOS-04"},
    Kind.VOLUME_KEY: {"key": "STO-06", "ephemeral": "STO-06", "private": "STO-06"},
    Kind.GUEST: {
        "memory": "DOS-03",
        "vcpus": "DOS-02",
        "image": "VMM-05",
        "interfaces": "NET-13",
        "addresses": "NET-10",
        "volumes": "STO-01 STO-06 DEV-02",
        "worker": "PRC-01",
        "confinement": "PRC-02",
        STATE: NOTHING,
    },
    Kind.LIMIT: {"packets": "NET-12", "connections": "NET-12"},
    Kind.COMPUTE: {
        "cpu": "DOS-02",
        "cpu_weight": "DOS-02",
        "memory": "DOS-03",
        "swap": "DOS-03",
        "threads": "DOS-05",
        "disk_operations": "DOS-04",
        "disk_bandwidth": "DOS-04",
    },
}
_SERVICES = {
    "ovs-vswitchd": "NET-01 NET-13",
    "ovn-controller": "NET-01 NET-13",
    "br-int": "NET-01",
    "nftables": "NET-08 NET-09",
    "auditd": "AUD-01",
    "libvirtd": ITSELF,
    "virtlogd": ITSELF,
}
# Further controls that a rule of OVN concerns: servers of DHCP and DHCPv6, the ends of tunnels.
_ABOUT = (
    (re.compile(r"udp\.src == \{?[^&|}]*\b(?:67|547)\b"), "NET-06"),
    (re.compile(r"udp\.dst == \{?[^&|}]*\b(?:4789|6081)\b"), "NET-08"),
)
_SENDER = re.compile(r"ip[46]\.src == \S+ && ")
_OPTIONS = {"vlan-passthru": "NET-07", "mcast": "NET-11"}  # of a switch, by their beginnings


@dataclass(frozen=True, slots=True)
class Walls:
    """The controls of all resources of a lab.

    Args:
        settings: controls of each setting, with spaces between them.

    """

    settings: Mapping[Key, str]

    @classmethod
    def of_lab(cls, topology: Topology) -> Walls:
        """Return the controls of all resources of a lab."""
        machines = (
            (machine.name, item) for machine in topology.machines for item in settings(topology, machine)
        )
        return cls({Key(place, Kind.SETTING, item.name): item.controls for place, item in machines})

    def held_by(self, key: Key) -> frozenset[str]:
        """Return every control whose wall a resource holds."""
        told = (
            [self.settings.get(key, ITSELF)] if key.kind is Kind.SETTING else BY_PROPERTY[key.kind].values()
        )
        return frozenset(" ".join(told).split())

    def endangered(self, difference: Difference) -> frozenset[str]:
        """Return the controls whose wall a difference may have opened; none if it is one of state."""
        key, name = difference.key, difference.name
        if not name and difference.found is None and key.kind in (Kind.MACHINE, Kind.GUEST):
            return frozenset()
        closer = _CLOSER.get((key.kind, name if key.kind is not Kind.SETTING else key.name))
        if name and closer:
            return closer(*(_items(value) for value in (difference.found, difference.wanted)))
        if not name or key.kind is Kind.SETTING:
            return self.held_by(key)
        return frozenset(BY_PROPERTY[key.kind].get(name, ITSELF).split())


def _items(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else tuple(str(value or "").splitlines())


def _services(found: Iterable[str], wanted: Iterable[str]) -> frozenset[str]:
    names = {line.partition(" ")[0] for line in wanted if line not in set(found)}
    return frozenset(" ".join(_SERVICES.get(name, ITSELF) for name in names).split()) or frozenset({ITSELF})


def rules(found: Iterable[str], wanted: Iterable[str]) -> frozenset[str]:
    """Return the controls in doubt where the rules of a switch differ from the declared ones.

    NET-01 is always among them; others follow from the packets that an extra rule matches. An extra rule that
    accepts from any sender what a declared rule accepts from one sender undoes the receiver's part of NET-04.
    """
    found, wanted = set(found), set(wanted)
    about = {control for text in found - wanted for pattern, control in _ABOUT if pattern.search(text)}
    loose = {_SENDER.sub("", _match(text)) for text in wanted if _SENDER.search(text)}
    if any(_match(text) in loose for text in found - wanted):
        about.add("NET-04")
    return frozenset({"NET-01", *about})


def _match(text: str) -> str:
    return text.partition(": ")[2]


def _addresses(found: Iterable[str], _: Iterable[str]) -> frozenset[str]:
    """Return the controls in doubt where a port has other addresses than its own.

    With "unknown" it receives the frames of others (NET-11); else DHCP hands out addresses of others
    (NET-06).
    """
    return frozenset({"NET-11" if "unknown" in " ".join(found).split() else "NET-06"})


def _options(found: Iterable[str], _: Iterable[str]) -> frozenset[str]:
    known = {control for option in found for start, control in _OPTIONS.items() if option.startswith(start)}
    return frozenset(known or {"NET-01"})


def pinning(found: Iterable[str], wanted: Iterable[str]) -> frozenset[str]:
    """Return the controls in doubt where a port may use other source addresses than its own.

    The format is that of `port_security` in ovn-nb(5).
    """
    ours = {word for item in wanted for word in item.split()}
    entries = [item.split() for item in found]
    if not any(entries):
        return frozenset({"NET-02", "NET-03", "NET-04", "NET-05"})
    doubts: set[str] = set()
    for mac, *addresses in filter(None, entries):
        if mac not in ours:
            doubts |= {"NET-02", "NET-03"}
        if not addresses:
            doubts |= {"NET-03", "NET-04", "NET-05"}
        for address in set(addresses) - ours:
            doubts |= {"NET-04", "NET-05"} if ":" in address else {"NET-03", "NET-04"}
    return frozenset(doubts or {"NET-02", "NET-04"})


# Differences whose content narrows the controls down: by kind, and property or name of the setting.
_CLOSER: Mapping[tuple[Kind, str], Callable[[Iterable[str], Iterable[str]], frozenset[str]]] = {
    (Kind.SETTING, "services"): _services, (Kind.SWITCH, "acls"): rules, (Kind.SWITCH, "options"): _options,
    (Kind.PORT, "security"): pinning, (Kind.PORT, "addresses"): _addresses,
}  # fmt: skip
