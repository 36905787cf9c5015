"""Counters of machines' own firewalls: refused and accepted packets (NET-08, NET-09)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from testbed.untrusted import bounded_json
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.probe.client import inconclusive

_REMEMBERED = 600.0  # seconds for which a refusal stays in the set (timeout of the set's elements)
_ROUNDING = 1.0  # seconds; nft prints whole seconds
_CROWDED = 0.95  # share of the set's capacity from which on a refusal may be missing
_RULES = "nft -j list table inet testbed"


@dataclass(frozen=True, slots=True)
class Passing:
    """A rule that accepts packets and counts them.

    Args:
        protocol: ``tcp`` or ``udp``; empty if the rule has no condition on them.
        ports: first and last port of each range of destinations; None if the rule has no condition on
            ports, or one in an unknown form.
    """

    protocol: str
    ports: tuple[tuple[int, int], ...] | None
    packets: int

    def takes(self, protocol: str, port: int) -> bool:
        """Return whether the rule may have counted packets to a port."""
        asked = self.ports is None or any(first <= port <= last for first, last in self.ports)
        return asked and self.protocol in ("", protocol)


@dataclass(frozen=True, slots=True)
class FirewallCounters:
    """State of a machine's firewall.

    Args:
        refused: seconds since the last refusal, by source, target, protocol and port.
        passing: every rule that accepts packets and counts them, with its count.
        size: capacity of the set of refusals; 0 if unlimited.
    """

    refused: Mapping[tuple[str, str, str, int], float]
    passing: Sequence[Passing] = ()
    size: int = 0

    def refuses(self, source: str, target: str, protocol: str, port: int, within: float) -> bool:
        """Return whether a refusal was recorded in the last `within` seconds before this was read."""
        age = self.refused.get((source, target, protocol, port))
        return age is not None and age <= within + _ROUNDING

    def passed(self, protocol: str, port: int) -> int:
        """Return the number of packets accepted by all rules that may match a port."""
        return sum(rule.packets for rule in self.passing if rule.takes(protocol, port))

    @property
    def full(self) -> str:
        """Reason why a refusal may be missing; empty if the set of refusals has room.

        The reason names the source with most refusals. The kernel refuses packets all the same, but does
        not add them to a full set (nft(8), SETS).
        """
        if not self.size or len(self.refused) < self.size * _CROWDED:
            return ""
        (source, times), *_ = Counter(key[0] for key in self.refused).most_common(1)
        return (
            f"its firewall remembers {len(self.refused)} refusals of {self.size} at most, {times} of them "
            f"of {source}"
        )


def read_ledger(machine: MachineView) -> FirewallCounters:
    """Return the present counters of a machine's firewall.

    Raises:
        InstrumentError: the ruleset cannot be read or parsed.
    """
    text = machine.read(_RULES)
    try:
        return parse_ledger(bounded_json.read(text))
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # it has another form
        raise inconclusive(
            f"the firewall of {machine.name} cannot be read", f"{type(error).__name__}: {error}"
        ) from error


def parse_ledger(rules: Mapping[str, Any]) -> FirewallCounters:
    """Parse a ruleset in nft's JSON format (libnftables-json(5)).

    Raises:
        KeyError: it has no set of refusals, or several.
    """
    sets = [item["set"] for item in rules["nftables"] if item.get("set", {}).get("name") == "refused"]
    if len(sets) != 1:
        raise KeyError(f"{len(sets)} sets of what was refused")
    refused: dict[tuple[str, str, str, int], float] = {}
    for member in sets[0].get("elem", []):
        source, target, protocol, port = member["elem"]["val"]["concat"]
        refused[source, target, protocol, int(port)] = _REMEMBERED - float(member["elem"]["expires"])
    found = [_passing(item["rule"]["expr"]) for item in rules["nftables"] if "rule" in item]
    return FirewallCounters(
        refused, tuple(rule for rule in found if rule is not None), int(sets[0].get("size", 0))
    )


def _passing(parts: Sequence[Mapping[str, Any]]) -> Passing | None:
    """Return a rule that counts and accepts, else None.

    Other matches than those on protocol and port are ignored.
    """
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
    """Return the ports that a rule matches, as ranges; None if it has another form."""
    match right:
        case int():
            return ((right, right),)
        case {"range": [int(first), int(last)]}:
            return ((first, last),)
        case {"set": [*members]}:
            found = [_ports(member) for member in members]
            return None if None in found else tuple(pair for pairs in found for pair in pairs or ())
    return None


def ledgers(fleet: Fleet) -> dict[str, FirewallCounters]:
    """Return the present counters of every machine's firewall.

    Raises:
        InstrumentError: a ruleset cannot be read or parsed.
    """
    names = list(fleet.machines)
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        return dict(zip(names, pool.map(lambda name: read_ledger(fleet.machines[name]), names), strict=True))
