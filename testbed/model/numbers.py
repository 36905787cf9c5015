"""Numbers that a lab has given to its names, and that the names keep. Pure.

A scope is a set of names that must have different numbers: hosts of a network, workers of a node, tunnel keys
of a lab. The scope of addresses has the network in its name, so a network that changes has no memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network

from testbed.model.topology import FIRST_WORKER_UID, Plane, TenantNetwork, Topology

KEYS = "tunnel keys"
_FORMAT = 1


def hosts(plane: Plane, network: IPv4Network) -> str:
    """Return the scope of the machines' addresses on an infrastructure network."""
    return f"machines on {plane} {network}"


def workers(node: str) -> str:
    """Return the scope of the worker accounts of a node."""
    return f"workers on {node}"


def guests(network: TenantNetwork) -> str:
    """Return the scope of the guests' addresses on a tenant network."""
    return f"guests on {network.label} {network.ranges}"


@dataclass(frozen=True, slots=True)
class Numbers:
    """The number of each name, by scope."""

    scopes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, topology: Topology) -> Numbers:
        """Return the numbers of a resolved topology."""
        found: dict[str, dict[str, int]] = {
            KEYS: {network.label: network.key for network in topology.switches()}
        }
        for machine in topology.nodes:
            for nic in machine.nics:
                network = topology.lab_network(nic.plane).network
                found.setdefault(hosts(nic.plane, network), {})[machine.name] = _host(nic.address, network)
        for guest in topology.guests:
            found.setdefault(workers(guest.node), {})[guest.label] = guest.uid - FIRST_WORKER_UID
            for interface in guest.nics:
                joined = topology.tenant(guest.tenant).network(interface.network)
                found.setdefault(guests(joined), {})[guest.name] = _host(interface.address, joined.network)
        return cls({scope: numbers for scope, numbers in found.items() if numbers})

    def beside(self, others: Numbers) -> Numbers:
        """Return these numbers, and those of the names that only the others have."""
        scopes = (*self.scopes, *(scope for scope in others.scopes if scope not in self.scopes))
        return Numbers(
            {scope: {**others.scopes.get(scope, {}), **self.scopes.get(scope, {})} for scope in scopes}
        )

    def spread(self, scope: str, names: Iterable[str], slots: range, salt: str) -> dict[str, int]:
        """Give each name a number that no other name of its scope has.

        A name keeps the number that it was given before. A new name gets the hashed number or, if that is
        taken, the next free one. New names choose in the order of their hashes, so that the order in the file
        decides nothing. The numbers of names that are remembered and not among these stay taken, unless there
        are too few others.

        Args:
            slots: the possible numbers; at least one for each name.
            salt: goes into the hash.

        """
        wanted = sorted(names, key=lambda name: (hashed(salt, name), name))
        remembered = self.scopes.get(scope, {})
        result: dict[str, int] = {}
        kept: set[int] = set()
        for name in wanted:
            number = remembered.get(name)
            if number is not None and number in slots and number not in kept:
                result[name] = number
                kept.add(number)
        taken = kept | {number for number in remembered.values() if number in slots}
        for name in (name for name in wanted if name not in result):
            if len(taken) == len(slots):
                taken = set(result.values())
            index = hashed(salt, name) % len(slots)
            while slots[index] in taken:
                index = (index + 1) % len(slots)
            result[name] = slots[index]
            taken.add(slots[index])
        return result

    def text(self) -> str:
        """Return them as JSON, for `read`."""
        return json.dumps({"format": _FORMAT, "scopes": self.scopes}, indent=1, sort_keys=True)


def read(text: str) -> Numbers:
    """Return the numbers that `Numbers.text` wrote.

    Raises:
        ValueError: the text is something else.

    """
    data = json.loads(text)
    scopes = data.get("scopes") if isinstance(data, dict) and data.get("format") == _FORMAT else None
    if not isinstance(scopes, dict):
        raise ValueError("it has no numbers of the present format")
    for scope, numbers in scopes.items():
        if not isinstance(numbers, dict) or not all(type(number) is int for number in numbers.values()):
            raise ValueError(f"{scope} has something that is no number")
    return Numbers(scopes)


def hashed(*parts: str) -> int:
    """Return 64 bits that follow from some texts."""
    return int.from_bytes(sha256("\0".join(parts).encode()).digest()[:8])


def _host(address: IPv4Address, network: IPv4Network) -> int:
    return int(address) - int(network.network_address)
