"""Compares two inventories; a difference that no line allows is a finding. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.inventory.allowed import Allowed
from testbed.inventory.controls import endangered
from testbed.inventory.records import UNREAD, Inventory

_SHOWN = 240  # characters of a value in words
_MISSING = object()
_FILTERS = (
    "nft table",
    "nft chain",
    "nft rules",
    "nft set",
    "nft map",
    "old packet filter",
    "virtual server",
)
_TRANSFORMS = ("xfrm policy", "xfrm state", "xfrm setting")
_ADDRESSING = ("link", "address", "route", "rule", "neighbour")
_BRIDGES = ("bridge port", "bridge entry")
_TRAFFIC = ("queue", "class", "filter")
# Domains of a collector, by the name under which it reports that it could not read; others have its name.
_COLLECTED = {
    "units": ("unit", "unit file", "manager's environment"),
    "guests": (
        "guest",
        "guest kept",
        "pool",
        "libvirt network",
        "libvirt filter",
        "libvirt secret",
        "libvirt hook",
        "host device",
    ),
    "sshd": ("sshd", "sshd file"),
    "openflow": ("flow", "flow group", "flow meter", "switch port"),
    "files": ("file", "image", "image file"),
    "processes": ("process", "kernel thread"),
    "packet_filter": _FILTERS,
    "transforms": _TRANSFORMS,
    "addressing": _ADDRESSING,
    "bridges": _BRIDGES,
    "traffic": _TRAFFIC,
    "link": ("link", "address"),
    "vsock": ("listener",),
}
_DATABASES = {"switch", "northbound", "southbound"}  # the first words of a domain for each of their tables
# Domains of a collector that gave no answer at all, by its name.
_WHOLE = {
    "accounts": (
        "account",
        "group",
        "password",
        "login file",
        "access file",
        "authority",
        "sshd",
        "sshd file",
        "audit",
    ),
    "kernel": (
        "kernel",
        "kernel key",
        "kernel report",
        "setting",
        "module",
        "module parameter",
        "device",
        "block device",
        "control group",
    ),
    "namespaces": ("namespace", "mount"),
    "profiles": ("profile", "profile namespace"),
    "switch": ("flow", "flow group", "flow meter", "switch port", "datapath", "database remote"),
    "network": (
        *_FILTERS,
        *_TRANSFORMS,
        *_ADDRESSING,
        *_BRIDGES,
        *_TRAFFIC,
        "listener",
        "sockets of a family without a list",
        "setting",
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Args:
        machine: where it is.
        property: part of the value that differs; empty for the whole record.
        found: what is there; None if nothing is.
        wanted: what should be there; None for nothing.
        controls: whose wall it endangers.

    """

    machine: str
    domain: str
    key: str
    property: str
    found: str | None
    wanted: str | None
    controls: frozenset[str]

    def __str__(self) -> str:
        part = f", {self.property}" if self.property else ""
        found, wanted = (
            "nothing" if value is None else value[:_SHOWN] for value in (self.found, self.wanted)
        )
        named = " ".join(sorted(self.controls))
        place = f"{self.machine}: {self.domain} {self.key}{part}"
        return f"{place}: {found}, and should be {wanted} (endangers {named})"

    def data(self) -> dict[str, object]:
        """Return it as JSON."""
        return {
            "machine": self.machine,
            "domain": self.domain,
            "key": self.key,
            "property": self.property,
            "found": self.found,
            "wanted": self.wanted,
            "controls": sorted(self.controls),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a comparison.

    Args:
        findings: differences that nothing allows.
        allowed: number of differences that each line of the list allowed, without lines that allowed none.
        unread: places that could be read in one of the two and not in the other, with the reason, and each
            collector that did not end.

    """

    findings: tuple[Finding, ...]
    allowed: Counter[str]
    unread: tuple[str, ...]


def compare(machine: str, found: Inventory, wanted: Inventory, allowed: Sequence[Allowed] = ()) -> Comparison:
    """Return where an inventory differs from what should be there."""
    findings: list[Finding] = []
    counts = Counter[str]()
    by_domain: dict[str, list[Allowed]] = {}
    for line in allowed:
        by_domain.setdefault(line.domain, []).append(line)
    hidden, unknown = _hidden(found, wanted), _hidden(wanted, found)
    for domain, key, name, is_, should in _differences(found, wanted):
        if not name and ((is_ is None and domain in hidden) or (should is None and domain in unknown)):
            continue  # that it could not be read is reported, and makes the comparison inconclusive
        found_line = next((line for line in by_domain.get(domain, ()) if line.covers(key, name)), None)
        if found_line is None:
            findings.append(Finding(machine, domain, key, name, is_, should, endangered(domain, key)))
        else:
            counts[found_line.name] += 1
    blind = [f"{machine}: {place}: {found.unread[place]}" for place in _blind(found, wanted)]
    blind += [
        f"{machine}: {place}: it was not read for the reference: {wanted.unread[place]}"
        for place in _blind(wanted, found)
        if place not in found.unread
    ]
    return Comparison(tuple(findings), counts, tuple(blind))


def _blind(found: Inventory, other: Inventory) -> list[str]:
    """Return the places that could not be read, but for parts that the other could not read either."""
    return [place for place in found.unread if place not in other.unread or place in found.unfinished]


def _hidden(found: Inventory, other: Inventory) -> set[str]:
    """Return the domains that could not be read whole.

    A record that is missing there may exist.
    """
    known = {domain for domain, _ in (*found.records, *other.records)}
    return {domain for place in _blind(found, other) for domain in domains_of(place, known)}


def domains_of(place: str, known: Collection[str]) -> set[str]:
    """Return the domains that a place is about which could not be read.

    Args:
        place: key of a record of the domain `UNREAD`; of a whole collector or domain if it ends with a space.
        known: domains of which there are records.

    """
    first = place.partition(" ")[0]
    hidden = set(_COLLECTED.get(first, (first,)))
    if place.endswith(" "):
        hidden.update(_WHOLE.get(first, ()))
        # The collector of all databases has the name of one.
        lost = _DATABASES if first == "switch" else {first} & _DATABASES
        hidden.update(domain for domain in known if domain.split()[0] in lost)
    return hidden | {domain for domain in known if place.startswith(f"{domain} ")}


def _differences(
    found: Inventory, wanted: Inventory
) -> Iterator[tuple[str, str, str, str | None, str | None]]:
    """Yield domain, key, property, what is found and what is wanted."""
    for domain, key in sorted({*found.records, *wanted.records}):
        if domain == UNREAD:
            continue
        is_, should = found.records.get((domain, key), _MISSING), wanted.records.get((domain, key), _MISSING)
        if is_ is _MISSING or should is _MISSING:
            yield domain, key, "", _text(is_), _text(should)
        elif is_ != should:
            yield from ((domain, key, *part) for part in _parts(is_, should))


def _parts(found: Any, wanted: Any) -> Iterable[tuple[str, str | None, str | None]]:  # noqa: ANN401 - JSON
    """Return the properties in which two values differ; of lists, the differing items."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = sorted(
            name for name in {*found, *wanted} if found.get(name, _MISSING) != wanted.get(name, _MISSING)
        )
        return [(name, *_only(found.get(name, _MISSING), wanted.get(name, _MISSING))) for name in names]
    return [("", *_only(found, wanted))]


def _only(found: Any, wanted: Any) -> tuple[str | None, str | None]:  # noqa: ANN401 - JSON
    if isinstance(found, list) and isinstance(wanted, list):
        ours, theirs = (Counter(map(_told, value)) for value in (found, wanted))
        more, missing = list((ours - theirs).elements()), list((theirs - ours).elements())
        if more or missing:
            return "; ".join(more) or "the rest", "; ".join(missing) or "the rest"
        return "the same in another order", _text(wanted)
    return _text(found), _text(wanted)


def _text(value: object) -> str | None:
    return None if value is _MISSING else _told(value)


def _told(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
