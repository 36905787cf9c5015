"""Describe differences between observed and desired state in words. Pure.

The words are for people who have not read the code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from testbed.plan.resources import Key, Kind, Resource, Value
from testbed.topology_file.quantities import format_size

_SHOWN = 5  # items of a list
_LONGEST = 160  # characters of one item
_SIZES = frozenset({"memory", "size"})  # bytes
_RULE = re.compile(r"(from|to)-lport (\d+) (\S+): (.*)", re.DOTALL)
_PORT = re.compile(r'(?:in|out)port == "([^"]*)"(?: && )?')
_MAY = {"allow": "may", "allow-related": "may", "allow-stateless": "may", "drop": "may not"}
_PACKETS = {"": "anything", "1": "anything", "ip": "any IP packet"}
_NOUNS = {
    "acls": "rules",
    "security": "source addresses",
    "dhcp": "what DHCP tells",
    "dhcp6": "what DHCPv6 tells",
    "names": "names told",
    "cpu": "percentage of a CPU",
    "cpu_weight": "weight on the CPU",
    "disk_operations": "operations on disks per second",
    "disk_bandwidth": "bytes from and to disks per second",
}
_KINDS = {
    Kind.NETWORK: "network",
    Kind.TAP: "plug",
    Kind.SWITCH: "network",
    Kind.PORT: "interface",
    Kind.LIMIT: "limit of interface",
    Kind.COMPUTE: "limits of",
    Kind.VOLUME_KEY: "key of volumes of",
}


def resource(key: Key) -> str:
    """Return the kind, name and place of a resource in words."""
    return f"{_KINDS.get(key.kind, str(key.kind))} {_plain(key.name)} on {key.place}"


def volume(name: str) -> str:
    """Return the purpose of a file in a tenant's pool, in words.

    Args:
        name: tenant and file, with a slash between them.

    """
    tenant, _, file = name.partition("/")
    guest, _, rest = file.partition(".")
    label, dot, kind = rest.partition(".")
    if guest and rest == "qcow2":
        return f"root disk of {_plain(tenant)}/{_plain(guest)}"
    if guest and label and dot and kind in ("raw", "luks"):
        return f"volume {_plain(label)} of {_plain(tenant)}/{_plain(guest)}"
    return f"file {_plain(name)}"


def _plain(text: object) -> str:
    """Return text from a machine, bounded and on one line, without control characters."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in str(text)[:_LONGEST])


def owners(desired: Mapping[Key, Resource]) -> dict[str, str]:
    """Return the guest that each logical port belongs to, by the port's name."""
    ports = {str(item.properties["port"]): key.name for key, item in desired.items() if key.kind is Kind.PORT}
    return {port: name.rpartition("/")[0] for port, name in ports.items()}


def change(name: str, found: Value | None, wanted: Value | None, guests: Mapping[str, str]) -> str:
    """Return how a property differs from what it must be.

    Args:
        guests: the guest that each logical port belongs to, by the port's name.

    """
    what = "" if name == "value" else f"{_NOUNS.get(name, name)}: "  # of a setting, which has nothing else
    if isinstance(wanted, list) and isinstance(found, list):
        return f"{what}{_items(found, wanted, guests)}"
    if "\n" in f"{found}{wanted}":
        found, wanted = _other_lines(found, wanted)
    return f"{what}found {_show(name, found)}, wanted {_show(name, wanted)}"


def _items(found: Sequence[str], wanted: Sequence[str], guests: Mapping[str, str]) -> str:
    many, missing = _beyond(found, wanted), _beyond(wanted, found)
    parts = [
        (word, [rule(item, guests) for item in items])
        for items, word in ((many, "too many"), (missing, "missing"))
        if items
    ]
    return "; ".join(f"{word}: {listed(items)}" for word, items in parts) or "another order"


def _beyond(items: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the items that are not among others, or more often than there."""
    rest, left = list(others), []
    for item in items:
        if item in rest:
            rest.remove(item)
        else:
            left.append(item)
    return left


def listed(items: Sequence[str]) -> str:
    """Return some items, and how many more there are."""
    more = [f"and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return ", ".join([*map(_plain, items[:_SHOWN]), *more])


def rule(text: str, guests: Mapping[str, str]) -> str:
    """Return the traffic that a rule of OVN allows or denies; any other text as it is."""
    parts = _RULE.fullmatch(text)
    if parts is None:
        return f"'{text}'"
    direction, priority, action, match = parts.groups()
    port = _PORT.search(match)
    who = guests.get(port[1], port[1]) if port else "every guest"
    packets = match.replace(port[0], "", 1).strip() if port else match
    may = _MAY.get(action, f"is answered with {action} when it would")
    verb = "send" if direction == "from" else "be sent"
    return (
        f"{who} {may} {verb} {_PACKETS.get(packets, packets)} ({direction}-lport, priority {priority}, "
        f"{action})"
    )


def _other_lines(found: Value | None, wanted: Value | None) -> tuple[str, str]:
    """Return the lines of two texts that the other one does not have."""
    one, other = str(found or "").splitlines(), str(wanted or "").splitlines()
    left = tuple(" / ".join(lines[:_SHOWN]) for lines in (_beyond(one, other), _beyond(other, one)))
    return (left[0], left[1]) if any(left) else ("the same in another order", "")


def _show(name: str, value: Value | None) -> str:
    if name in _SIZES and isinstance(value, int):
        return format_size(value)
    if isinstance(value, list):
        return listed([f"'{item}'" for item in value]) or "nothing"
    return "nothing" if value in (None, "") else f"'{_plain(value)}'"
