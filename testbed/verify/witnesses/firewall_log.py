"""What machines' own firewalls tell about what they refuse and let pass (NET-08, NET-09)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from testbed.verify.fleet import Fleet, Machine
from testbed.verify.probe.client import broken

_REMEMBERED = 600.0  # seconds for which a firewall remembers what it refused
_ROUNDING = 1.0  # it tells whole seconds
_CROWDED = 0.95  # share of its room from which on a refusal may have found none
_RULES = "nft -j list table inet testbed"


@dataclass(frozen=True, slots=True)
class Passing:
    """A rule that lets packets pass and counts them.

    Args:
        protocol: ``tcp`` or ``udp``, or empty if it asks for neither.
        ports: first and last port of each range of destinations; None if it asks for no port, or in a way
            that is not known.

    """

    protocol: str
    ports: tuple[tuple[int, int], ...] | None
    packets: int

    def takes(self, protocol: str, port: int) -> bool:
        """Tell whether it may have counted packets for a port."""
        asked = self.ports is None or any(first <= port <= last for first, last in self.ports)
        return asked and self.protocol in ("", protocol)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a machine's firewall has done.

    Args:
        refused: seconds since it last refused something, by source, target, protocol and port.
        passing: every rule that lets packets pass and counts them, with its count.
        size: how many refusals it can remember; 0 if any number.

    """

    refused: Mapping[tuple[str, str, str, int], float]
    passing: Sequence[Passing] = ()
    size: int = 0

    def refuses(self, source: str, target: str, protocol: str, port: int, within: float) -> bool:
        """Tell whether something was refused in so many seconds before this was read."""
        age = self.refused.get((source, target, protocol, port))
        return age is not None and age <= within + _ROUNDING

    def passed(self, protocol: str, port: int) -> int:
        """Return how many packets were let pass by all rules that may be about a port."""
        return sum(rule.packets for rule in self.passing if rule.takes(protocol, port))

    @property
    def full(self) -> str:
        """Why a refusal may be missing: there is hardly room for more, and who took it. Empty if there is
        room.

        The kernel refuses packets all the same, and forgets to note them (nft(8), SETS).
        """
        if not self.size or len(self.refused) < self.size * _CROWDED:
            return ""
        (source, times), *_ = Counter(key[0] for key in self.refused).most_common(1)
        return (
            f"its firewall remembers {len(self.refused)} refusals of {self.size} at most, {times} of them "
            f"of {source}"
        )


def read_ledger(machine: Machine) -> Ledger:
    """Return what a machine's firewall tells now.

    Raises:
        InstrumentError: it tells nothing, or nonsense.

    """
    text = machine.read(_RULES)
    try:
        return parse_ledger(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise broken(
            f"the firewall of {machine.name} cannot be read", f"{type(error).__name__}: {error}"
        ) from error


def parse_ledger(rules: Mapping[str, Any]) -> Ledger:
    """Return what a ruleset in nft's JSON format tells (libnftables-json(5)).

    Raises:
        KeyError: it has no set of what was refused, or several.

    """
    sets = [item["set"] for item in rules["nftables"] if item.get("set", {}).get("name") == "refused"]
    if len(sets) != 1:
        raise KeyError(f"{len(sets)} sets of what was refused")
    refused: dict[tuple[str, str, str, int], float] = {}
    for member in sets[0].get("elem", []):
        source, target, protocol, port = member["elem"]["val"]["concat"]
        refused[source, target, protocol, int(port)] = _REMEMBERED - float(member["elem"]["expires"])
    found = [_passing(item["rule"]["expr"]) for item in rules["nftables"] if "rule" in item]
    return Ledger(refused, tuple(rule for rule in found if rule is not None), int(sets[0].get("size", 0)))


def _passing(parts: Sequence[Mapping[str, Any]]) -> Passing | None:
    """Return a rule that counts and accepts; what it asks for besides protocol and port is left out."""
    counts = [int(part["counter"]["packets"]) for part in parts if isinstance(part.get("counter"), dict)]
    if not counts or not any("accept" in part for part in parts):
        return None
    asked = [part["match"] for part in parts if _payload(part).get("field") == "dport"]
    protocol = next(
        (str(_payload(part)["protocol"]) for part in parts if _payload(part).get("field") == "dport"), ""
    )
    exact = len(asked) == 1 and asked[0].get("op") in ("==", "in")
    return Passing(
        protocol if protocol in ("tcp", "udp") else "",
        _ports(asked[0]["right"]) if exact else None,
        max(counts),
    )


def _payload(part: Mapping[str, Any]) -> Mapping[str, Any]:
    left = part.get("match", {}).get("left", {})
    found = left.get("payload", {}) if isinstance(left, dict) else {}
    return found if isinstance(found, dict) else {}


def _ports(right: object) -> tuple[tuple[int, int], ...] | None:
    """Return the ports that a rule asks for, as ranges; None if that is said in another way."""
    match right:
        case int():
            return ((right, right),)
        case {"range": [int(first), int(last)]}:
            return ((first, last),)
        case {"set": [*members]}:
            found = [_ports(member) for member in members]
            return None if None in found else tuple(pair for pairs in found for pair in pairs or ())
    return None


def ledgers(fleet: Fleet) -> dict[str, Ledger]:
    """Return what every machine's firewall tells now.

    Raises:
        InstrumentError: one tells nothing, or nonsense.

    """
    names = list(fleet.machines)
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        return dict(zip(names, pool.map(lambda name: read_ledger(fleet.machines[name]), names), strict=True))
