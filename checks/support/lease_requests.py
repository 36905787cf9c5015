"""Requests to DHCP for others' addresses, and for more addresses than exist (NET-06)."""

from __future__ import annotations

import secrets

from checks.support.attacker_positions import Position, six_of
from testbed.model.reachability import Endpoint
from testbed.verify.probe import frames
from testbed.verify.probe.client import Probe

_STARVING = 40  # requests of one sender for addresses of its own
THEFT, STARVATION = 3, 4  # first octet of a DHCP or DHCPv6 transaction; controls use 1 and 2


def thefts(position: Position) -> list[Probe]:
    """Return DHCP requests for others' addresses, and for more addresses than exist (NET-06)."""
    victims = {item.mac: item for item in (position.peer, position.stranger)}.values()
    claims = [(victim, mac) for victim in victims for mac in (victim.mac, position.sender.mac)]
    found = []
    for number, (victim, mac) in enumerate(claims):
        transaction = THEFT << 24 | position.number << 8 | number
        client = bytes.fromhex(mac.replace(":", ""))
        question = frames.dhcp_discover(
            position.sender.mac, transaction, wanted=str(victim.address), client=client
        )
        found.append(Probe(f"theft{position.number}n{number}", position.sender, {"repeat": 2}, question))
    for number in range(_STARVING):
        transaction = STARVATION << 24 | position.number << 8 | number
        question = frames.dhcp_discover(
            position.sender.mac, transaction, client=b"\x0e" + secrets.token_bytes(5)
        )
        found.append(Probe(f"starve{position.number}n{number}", position.sender, {}, question))
    return found + (_thefts6(position, list(victims)) if position.sender.address6 else [])


def _thefts6(position: Position, victims: list[Endpoint]) -> list[Probe]:
    """Return the same requests to DHCPv6, whose transactions have 24 bits: kind, sender, number."""
    wanted = [
        (THEFT, bytes.fromhex(mac.replace(":", "")), six_of(victim))
        for victim in victims
        for mac in (victim.mac, position.sender.mac)
    ]
    wanted += [(STARVATION, b"\x0e" + secrets.token_bytes(5), "") for _ in range(_STARVING)]
    found = []
    for number, (kind, client, address) in enumerate(wanted):
        question = frames.dhcp6_solicit(
            position.sender, kind << 16 | position.number % 256 << 8 | number, client, address
        )
        found.append(
            Probe(
                f"six{kind}s{position.number}n{number}",
                position.sender,
                {"repeat": 2 if kind == THEFT else 1},
                question,
            )
        )
    return found
