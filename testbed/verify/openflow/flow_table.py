"""Parses the rules of an Open vSwitch bridge into classes of packets and actions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ovs.flow.decoders import EthMask, IntMask, IPMask
from ovs.flow.kv import ParseError
from ovs.flow.ofp import OFPFlow

from testbed.errors import InstrumentError
from testbed.verify.openflow.header_space import FIELDS, Cube, Field

DUMP = "ovs-ofctl -O OpenFlow15 --no-stats --no-names dump-flows br-int"
STATES = {
    "new": 1,
    "est": 2,
    "rel": 4,
    "rpl": 8,
    "inv": 16,
    "trk": 32,
    "snat": 64,
    "dnat": 128,
}  # of connections, ovs-fields(7)
_PROTOCOLS = {
    "ip": (0x0800, None),
    "icmp": (0x0800, 1),
    "tcp": (0x0800, 6),
    "udp": (0x0800, 17),
    "sctp": (0x0800, 132),
    "ipv6": (0x86DD, None),
    "icmp6": (0x86DD, 58),
    "tcp6": (0x86DD, 6),
    "udp6": (0x86DD, 17),
    "sctp6": (0x86DD, 132),
    "arp": (0x0806, None),
    "rarp": (0x8035, None),
}
_OTHER_NAMES = {
    "eth_src": "dl_src",
    "eth_dst": "dl_dst",
    "eth_type": "dl_type",
    "ip_src": "nw_src",
    "ip_dst": "nw_dst",
    "ip_proto": "nw_proto",
    "icmpv6_type": "icmp_type",
    "icmpv6_code": "icmp_code",
}
_LOCAL = 0xFFFFFFFE  # OFPP_LOCAL of OpenFlow 1.5


@dataclass(frozen=True, slots=True)
class FlowRule:
    """One rule of a table.

    Args:
        match: a class that holds every packet which the rule matches.
        exact: whether it holds no others.
        actions: as `ovs.flow` parses them.
        text: the actions as the switch prints them.
    """

    priority: int
    match: Cube
    exact: bool
    actions: tuple[Mapping[str, Any], ...]
    text: str

    @property
    def partial(self) -> bool:
        """Whether it matches no packet by itself, as a part of a conjunctive match (ovs-actions(7))."""
        return self.text.startswith("conjunction(")


Tables = Mapping[int, tuple[FlowRule, ...]]


@cache
def field(name: str, start: int | None = None, end: int | None = None) -> Field | None:
    """Return a field by one of its names, or a range of its bits.

    None means that the walk ignores the field.

    Raises:
        InstrumentError: the field does not have these bits.
    """
    plain = re.sub(r"^(nxm|oxm)_(of|nx)_", "", name.partition("[")[0].lower())
    plain = re.sub(r"^pkt_reg", "xreg", re.sub(r"^(tcp|udp|sctp)_(src|dst)$", r"tp_\2", plain))
    found = FIELDS.get(_OTHER_NAMES.get(plain, plain))
    if found is None or start is None:
        return found
    last = start if end is None else end
    if not 0 <= start <= last < found.width:
        raise _unreadable(f"{name} has no bits from {start} to {last}")
    return found.part(start, last)


def bits(value: object, width: int) -> tuple[int, int] | None:
    """Return the number and mask of a value that `ovs.flow` parsed; None if it is not a number."""
    ones = (1 << width) - 1
    match value:
        case IntMask():
            return value.value, value.mask
        case EthMask():
            return int(value.eth), ones if value.mask is None else int(value.mask)
        case IPMask():
            return int(value.ip), int(value.mask)
        case int() if not isinstance(value, bool):
            return value & ones, ones
        case "LOCAL":
            return _LOCAL, ones
    return None


def read(text: str) -> Tables:
    """Return the rules of a bridge by table, highest priority first, from the output of `DUMP`.

    Raises:
        InstrumentError: a rule cannot be read, or there is none.
    """
    tables: dict[int, list[FlowRule]] = {}
    for line in text.splitlines():
        if "actions=" in line:
            number, rule = _rule(line)
            tables.setdefault(number, []).append(rule)
    if not tables:
        raise InstrumentError("a switch has no rules", fact=text[:200], remedy="run `testbed up`")
    return {number: tuple(sorted(rules, key=lambda rule: -rule.priority)) for number, rules in tables.items()}


def _rule(line: str) -> tuple[int, FlowRule]:
    text = line.strip()
    if not text.isprintable():  # at a tab, the parser of `ovs.flow` would stand still for ever
        raise _unreadable(repr(text[:200]))
    try:
        found = OFPFlow(text)
        fields = dict(found.match)
        priority = int(fields.pop("priority", 0x8000))
        table = int(found.info.get("table", 0))
        parts = [_part(name, value) for name, value in fields.items()]
    except (ParseError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise _unreadable(f"{text[:200]}: {error}") from error
    match, exact = Cube(), True
    for part, certain in parts:
        if not match.meets(part):
            raise _unreadable(f"{text[:200]} contradicts itself")
        match, exact = match.narrowed(part), exact and certain
    return table, FlowRule(priority, match, exact, tuple(found.actions), line.partition("actions=")[2])


def _unreadable(fact: str) -> InstrumentError:
    return InstrumentError("a rule cannot be read", fact=fact, remedy="report it")


def _part(name: str, value: object) -> tuple[Cube, bool]:
    """Return the class that one condition of a rule matches, and whether the class is exact."""
    if name in _PROTOCOLS:
        kind, above = _PROTOCOLS[name]
        found = Cube().put(FIELDS["dl_type"], kind, 0xFFFF)
        return found if above is None else found.put(FIELDS["nw_proto"], above, 0xFF), True
    if name == "ct_state":
        return _states(str(value)), True
    place = field(name)
    condition = None if place is None else bits(value, place.width)
    if place is None or condition is None:
        return Cube(), False
    return Cube().put(place, *condition), True


def _states(text: str) -> Cube:
    found = Cube()
    for sign, name in re.findall(r"([+-])([a-z]+)", text):
        found = found.put(FIELDS["ct_state"], STATES[name] if sign == "+" else 0, STATES[name])
    return found
