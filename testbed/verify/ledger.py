"""What machines' own firewalls tell about what they refuse and let pass (NET-08, NET-09)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from testbed.verify.fleet import Fleet, Machine
from testbed.verify.probing import broken

_REMEMBERED = 600.0  # seconds for which a firewall remembers what it refused
_ROUNDING = 1.0  # it tells whole seconds
_RULES = "nft -j list table inet testbed"


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a machine's firewall has done.

    Args:
        refused: seconds since it last refused something, by source, target, protocol and port.
        passed: packets that a rule for a port has let pass, by port.

    """

    refused: Mapping[tuple[str, str, str, int], float]
    passed: Mapping[int, int]

    def refuses(self, source: str, target: str, protocol: str, port: int, within: float) -> bool:
        """Tell whether something was refused in so many seconds before this was read."""
        return self.refused.get((source, target, protocol, port), _REMEMBERED) <= within + _ROUNDING


def read_ledger(machine: Machine) -> Ledger:
    """Return what a machine's firewall tells now.

    Raises:
        InstrumentError: it tells nothing, or nonsense.

    """
    text = machine.read(_RULES)
    try:
        return parse_ledger(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise broken(f"the firewall of {machine.name} cannot be read", f"{type(error).__name__}: {error}") from error


def parse_ledger(rules: Mapping[str, Any]) -> Ledger:
    """Return what a ruleset in nft's JSON format tells (libnftables-json(5)).

    Raises:
        KeyError: it has no set of what was refused.

    """
    refused, passed, known = {}, {}, False
    for item in rules["nftables"]:
        if item.get("set", {}).get("name") == "refused":
            known = True
            for member in item["set"].get("elem", []):
                source, target, protocol, port = member["elem"]["val"]["concat"]
                refused[source, target, protocol, int(port)] = _REMEMBERED - float(member["elem"]["expires"])
        parts = item.get("rule", {}).get("expr", [])
        counts = [part["counter"]["packets"] for part in parts if isinstance(part.get("counter"), dict)]
        ports = [part["match"]["right"] for part in parts if _is_port(part)]
        if counts and ports:
            passed[int(ports[0])] = int(counts[0])
    if not known:
        raise KeyError("refused")
    return Ledger(refused, passed)


def _is_port(part: Mapping[str, Any]) -> bool:
    left = part.get("match", {}).get("left", {})
    return bool(left.get("payload", {}).get("field") == "dport" and isinstance(part["match"]["right"], int))


def ledgers(fleet: Fleet) -> dict[str, Ledger]:
    """Return what every machine's firewall tells now.

    Raises:
        InstrumentError: one tells nothing, or nonsense.

    """
    names = list(fleet.machines)
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        return dict(zip(names, pool.map(lambda name: read_ledger(fleet.machines[name]), names), strict=True))
