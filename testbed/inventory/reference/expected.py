"""What a lab adds to the golden reading with values that the tool cannot know: ``expected.toml``. Pure.

A line names the domain, a pattern that the whole key must match, and patterns that properties must match. A
word in braces, such as ``{guest}``, stands for names of guests, tenants or interfaces of the machine. So an
expected record may come, but not with another owner, mode or program than expected.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from testbed.inventory.records import Records
from testbed.inventory.reference.processes import ORDINARY
from testbed.model.topology import POOLS, Machine, Plane, Role, Topology, volume_secret
from testbed.plan.libvirt_xml.machine import machine_id

FILE = Path(__file__).with_name("expected.toml")
_FIELDS = {"domain", "key", "roles", "has", "parts", "reason", "blind", "gone"}
_ROLES = ("node", "controller")
_WORDS = (
    "guest",
    "scope",
    "uuid",
    "tenant",
    "secret",
    "volume",
    "uid",
    "machine-id",
    "plane",
    "link",
    "tap",
    "management",
    "ends",
    "mac",
    "name",
    "fabric",
    "central",
)
_BRACES = re.compile(r"\{[a-z][a-z-]*\}")
# Properties that a record of a domain must not have unless its line names them.
_UNNAMED: Mapping[str, Mapping[str, str]] = {"process": dict.fromkeys(ORDINARY, "")}
NOTHING = "(?!)"  # a pattern that matches nothing
VALUE = "value"  # name of the whole value among the patterns of a line


@dataclass(frozen=True, slots=True)
class Expected:
    """One line of the list.

    Args:
        key: pattern that a whole key must match.
        roles: of machines.
        has: pattern that a property must match whole, by its name; of values that are no text, their JSON.
        parts: properties of a record of the golden reading that may differ; if empty, the record is new.
        gone: the record of the golden reading is not there any more.
        reason: why it is no finding.
        blind: controls that do not see what hides there.

    """

    domain: str
    key: re.Pattern[str]
    roles: tuple[str, ...]
    has: Mapping[str, re.Pattern[str]]
    parts: frozenset[str]
    gone: bool
    reason: str
    blind: frozenset[str]

    @property
    def name(self) -> str:
        """The words that distinguish it from other lines."""
        parts = "gone" if self.gone else " ".join(sorted(self.parts))
        return f"{self.domain} {self.key.pattern} {parts}".rstrip()

    def fits(self, key: str, value: Any) -> bool:  # noqa: ANN401 - JSON
        """Return whether a record has the key and the properties that are expected."""
        return self.key.fullmatch(key) is not None and all(
            pattern.fullmatch(_text(value, name)) is not None for name, pattern in self.has.items()
        )


def _text(value: Any, name: str) -> str:  # noqa: ANN401 - JSON
    """Return a property as text; one that is missing is empty."""
    if name != VALUE or (isinstance(value, dict) and VALUE in value):
        value = value.get(name, "") if isinstance(value, dict) else ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def load(words: Mapping[str, str] = MappingProxyType({}), file: Path = FILE) -> tuple[Expected, ...]:
    """Return the list.

    Args:
        words: patterns that stand for names of a machine, see `words_of`.

    Raises:
        ValueError: a line is not well-formed.

    """
    return tuple(_line(line, words) for line in _lines(file.read_text(encoding="utf-8")))


@cache
def _lines(text: str) -> list[dict[str, Any]]:
    """Return the lines of a list's text, which is parsed once for all machines."""
    return tomllib.loads(text).get("expected", [])  # type: ignore[no-any-return]


def words_of(topology: Topology, machine: Machine) -> dict[str, str]:
    """Return the patterns that stand for names of a machine in the list."""
    guests = [guest for guest in topology.guests if guest.node == machine.name]
    names = {
        "guest": [guest.domain for guest in guests],
        "scope": [guest.domain.replace("-", "\\x2d") for guest in guests],
        "uuid": [guest.uuid for guest in guests],
        "tenant": sorted({guest.tenant for guest in guests}),
        "secret": [
            f"{volume_secret(tenant)} volume {POOLS}/{tenant}"
            for tenant in sorted({guest.tenant for guest in guests if guest.volumes})
        ],
        "volume": [disk.rpartition("/pools/")[2] for guest in guests for disk in guest.disks],
        "uid": sorted({str(guest.uid) for guest in guests}),
        "machine-id": [machine_id(machine.uuid)],
        "link": [
            *(f"{nic.plane}0" for nic in machine.nics),
            *(nic.tap for guest in guests for nic in guest.nics),
        ],
        "tap": [nic.tap for guest in guests for nic in guest.nics],
        "management": [str(machine.address(Plane.MANAGEMENT))],
        "ends": list(topology.tunnel_ends) if machine.role is Role.NODE else [],
        "mac": [nic.mac for nic in machine.nics],
        "plane": [f"{nic.plane}0" for nic in machine.nics],
        "name": [machine.name],
        "fabric": [str(machine.address(Plane.FABRIC))] if machine.role is Role.NODE else [],
        "central": [str(topology.controller.address(Plane.MANAGEMENT))],
    }
    return {word: f"(?:{'|'.join(map(re.escape, found)) or NOTHING})" for word, found in names.items()}


def _line(line: Mapping[str, Any], words: Mapping[str, str]) -> Expected:
    if not {"domain", "key", "reason", "blind"} <= set(line) <= _FIELDS:
        raise ValueError(f"{line} has other fields than {', '.join(sorted(_FIELDS))}")
    try:
        key = _pattern(line["key"], words)
        has = {
            name: _pattern(text, words)
            for name, text in {**_UNNAMED.get(line["domain"], {}), **line.get("has", {})}.items()
        }
    except re.error as error:
        raise ValueError(f"{line['key']} is no pattern: {error}") from error
    return Expected(
        line["domain"],
        key,
        tuple(line.get("roles", _ROLES)),
        has,
        frozenset(line.get("parts", ())),
        line.get("gone", False),
        line["reason"],
        frozenset(line["blind"]),
    )


def _pattern(text: str, words: Mapping[str, str]) -> re.Pattern[str]:
    for word in _WORDS:
        text = text.replace(f"{{{word}}}", words.get(word, NOTHING))
    if unknown := _BRACES.search(text):
        raise re.error(f"{unknown[0]} stands for nothing")
    return re.compile(text)


def grant(
    found: Records, wanted: Records, lines: Sequence[Expected], role: str
) -> tuple[dict[tuple[str, str], Any], Counter[str]]:
    """Return what should be there, with the expected differences; and how many each line expected.

    Args:
        found: what is on the machine.
        wanted: what should be there, as far as its values are known.

    """
    granted, counts = dict(wanted), Counter[str]()
    by_domain: dict[str, list[Expected]] = {}
    for line in lines:
        if role in line.roles:
            by_domain.setdefault(line.domain, []).append(line)
    for (domain, key), value in found.items():
        if wanted.get((domain, key)) == value:
            continue
        for line in by_domain.get(domain, ()):
            if not line.gone and line.fits(key, value) and _take(granted, (domain, key), value, line):
                counts[line.name] += 1
    for domain, key in wanted.keys() - found.keys():
        line_of = next(
            (item for item in by_domain.get(domain, ()) if item.gone and item.fits(key, None)), None
        )
        if line_of is not None:
            del granted[domain, key]
            counts[line_of.name] += 1
    return granted, counts


def _take(granted: dict[tuple[str, str], Any], at: tuple[str, str], value: Any, line: Expected) -> bool:  # noqa: ANN401 - JSON
    """Take over what a line expects of a record; return whether it expects anything of it."""
    if at not in granted:
        if not line.parts:
            granted[at] = value
        return not line.parts
    if not line.parts:
        return False
    should = granted[at]
    if not isinstance(value, dict) or not isinstance(should, dict):
        granted[at] = value if VALUE in line.parts else should
        return VALUE in line.parts
    kept = {name: item for name, item in should.items() if name not in line.parts}
    granted[at] = kept | {name: value[name] for name in line.parts if name in value}
    return True
