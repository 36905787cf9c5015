"""Address ranges of a topology file: one for each of a lab's own networks, up to two for a tenant's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from testbed.topology_file.yaml_source import shown

_SPECIAL = tuple(
    map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))
)  # RFC 6890; multicast
_UNICAST = tuple(map(IPv6Network, ("fd00::/8", "2000::/3")))  # RFC 4193, RFC 4291
_SPECIAL6 = tuple(
    map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
)  # RFC 6890, RFC 9637
_PREFIX6 = 64  # RFC 4291, 2.5.4; the one length that hosts and OVN's address management agree on


def _private_network(network: IPv4Network) -> IPv4Network:
    if network.prefixlen > 29:
        msg = f"{network} is too small; use a prefix length of 29 or less"
        raise ValueError(msg)
    if any(network.overlaps(special) for special in _SPECIAL):
        msg = f"{network} is reserved for other purposes; use a private network such as 10.0.0.0/24"
        raise ValueError(msg)
    return network


def _network_text(value: object) -> IPv4Network:
    if isinstance(value, IPv4Network):
        return value
    try:
        return IPv4Network(value if isinstance(value, str) else "")
    except ValueError as error:
        text = str(error) if "host bits" in str(error) else f"{shown(value)} is not a range"
        msg = f"{text}; write an address and a prefix length, as in 10.0.0.0/24"
        raise ValueError(msg) from error


@dataclass(frozen=True, slots=True)
class Ranges:
    """The address ranges of a tenant's network: one of IPv4, and at most one of IPv6."""

    four: IPv4Network
    six: IPv6Network | None = None

    @classmethod
    def parse(cls, value: object) -> Ranges:
        """Return the ranges that a file gives a network: one as text, or a list in any order.

        Raises:
            ValueError: a range is none, or is not for tenants, or there are too many or too few.

        """
        if isinstance(value, Ranges):
            return value
        found: list[IPv4Network | IPv6Network] = []
        wrong: list[str] = []
        for item in value if isinstance(value, list) else [value]:
            try:
                found.append(_tenant_range(item))
            except ValueError as error:
                wrong.append(str(error))
        if wrong:
            facts, remedies = zip(*(text.split("; ", 1) for text in wrong), strict=True)
            raise ValueError("; ".join((", and ".join(facts), *dict.fromkeys(remedies))))
        return cls._of(found)

    @classmethod
    def _of(cls, found: Sequence[IPv4Network | IPv6Network]) -> Ranges:
        four = [item for item in found if isinstance(item, IPv4Network)]
        six = [item for item in found if isinstance(item, IPv6Network)]
        if len(four) != 1 or len(six) > 1:
            msg = (
                f"{len(four)} ranges of IPv4 and {len(six)} of IPv6 are given; give one of IPv4, and one "
                "or none of IPv6"
            )
            raise ValueError(msg)
        return cls(four[0], six[0] if six else None)

    @property
    def all(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """Every range, IPv4 first."""
        return (self.four,) if self.six is None else (self.four, self.six)


def _tenant_range(item: object) -> IPv4Network | IPv6Network:
    if not isinstance(item, str):
        msg = (
            f"{shown(item)} is not a range; write an address and a prefix length, as in 10.0.0.0/24 or "
            "fd00:a::/64"
        )
        raise ValueError(msg)
    try:
        network = ip_network(item)
    except ValueError as error:
        text = str(error) if "host bits" in str(error) else f"{shown(item)} is not a range"
        msg = f"{text}; write an address and a prefix length, as in 10.0.0.0/24 or fd00:a::/64"
        raise ValueError(msg) from error
    return _private_network(network) if isinstance(network, IPv4Network) else _unicast_network(network)


def _unicast_network(network: IPv6Network) -> IPv6Network:
    if network.prefixlen != _PREFIX6:
        msg = f"{network} has not the length of an IPv6 network; use a prefix length of {_PREFIX6}"
        raise ValueError(msg)
    usable = any(network.subnet_of(unicast) for unicast in _UNICAST)
    if not usable or any(network.overlaps(special) for special in _SPECIAL6):
        msg = f"{network} is reserved for other purposes; use a unique local network such as fd00:a::/64"
        raise ValueError(msg)
    return network


Network = Annotated[
    IPv4Network,
    BeforeValidator(_network_text),
    AfterValidator(_private_network),
    WithJsonSchema({"type": "string", "examples": ["10.0.0.0/24"]}),
]

TenantRanges = Annotated[
    Ranges,
    BeforeValidator(Ranges.parse),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
            ],
            "examples": ["10.0.0.0/24", ["10.0.0.0/24", "fd00:a::/64"]],
        }
    ),
]
