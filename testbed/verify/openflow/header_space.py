"""Classes of packets: which bits of a packet, and of what a switch keeps beside it, are known, and which may
be anything.

A class is a ternary cube over all fields that Open vSwitch knows and that a walk has to follow (Kazemian,
Varghese and McKeown, "Header space analysis: static checking for networks", NSDI 2012). A field that is not
among `WIDTHS` may be anything at any time, so a class is never smaller than what it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

# Width in bits of each field; registers are views of the four extended ones (ovs-fields(7)).
WIDTHS = {
    "in_port": 32,
    "metadata": 64,
    "tun_id": 64,
    "tun_metadata0": 32,
    "ct_state": 16,
    "ct_mark": 32,
    "xxreg0": 128,
    "xxreg1": 128,
    "xxreg2": 128,
    "xxreg3": 128,
    "dl_dst": 48,
    "dl_src": 48,
    "vlan_tci": 16,
    "dl_type": 16,
    "nw_src": 32,
    "nw_dst": 32,
    "ipv6_src": 128,
    "ipv6_dst": 128,
    "nw_proto": 8,
    "nw_ttl": 8,
    "tp_src": 16,
    "tp_dst": 16,
    "icmp_type": 8,
    "icmp_code": 8,
    "nd_target": 128,
    "nd_sll": 48,
    "nd_tll": 48,
    "arp_op": 16,
    "arp_spa": 32,
    "arp_tpa": 32,
    "arp_sha": 48,
    "arp_tha": 48,
}
_SHOWN = tuple(
    name
    for name in WIDTHS
    if name not in ("in_port", "metadata", "ct_mark") and not name.startswith(("xxreg", "tun"))
)
_ADDRESSES = {"nw": IPv4Address, "arp": IPv4Address, "ipv6": IPv6Address, "nd": IPv6Address}


@dataclass(frozen=True, slots=True)
class Field:
    """Where a field lies in a cube, in bits from its least significant one."""

    offset: int
    width: int

    @property
    def whole(self) -> int:
        """A mask of all its bits."""
        return (1 << self.width) - 1

    @property
    def ones(self) -> int:
        """The same mask, at the field's place."""
        return self.whole << self.offset

    def part(self, start: int, end: int) -> Field:
        """Return some bits of a field, both ends included."""
        return Field(self.offset + start, end - start + 1)


def _layout() -> Iterator[tuple[str, Field]]:
    offset = 0
    for name, width in WIDTHS.items():
        whole = Field(offset, width)
        yield name, whole
        if name.startswith("xxreg"):
            number = int(name[5:])
            for half in (0, 1):
                yield f"xreg{2 * number + half}", whole.part(64 * (1 - half), 64 * (1 - half) + 63)
            for quarter in range(4):
                yield f"reg{4 * number + quarter}", whole.part(32 * (3 - quarter), 32 * (3 - quarter) + 31)
        offset += width


FIELDS = dict(_layout())


@dataclass(frozen=True, slots=True)
class Cube:
    """A class of packets.

    Args:
        value: the known bits; the others are 0.
        known: which bits are known.

    """

    value: int = 0
    known: int = 0

    def meets(self, other: Cube) -> bool:
        """Tell whether some packet belongs to both classes."""
        return not (self.value ^ other.value) & self.known & other.known

    def within(self, other: Cube) -> bool:
        """Tell whether every packet of this class belongs to the other one."""
        return not other.known & ~self.known and self.meets(other)

    def narrowed(self, other: Cube) -> Cube:
        """Return what belongs to both classes, which must meet."""
        return Cube(self.value | other.value, self.known | other.known)

    def outside(self, other: Cube) -> Cube | None:
        """Return a class that holds every packet of this one that does not belong to the other, or None if
        there is no such packet.

        It is no larger than this one, and exact where at most one bit tells the two apart.
        """
        if not self.meets(other):
            return self
        missing = other.known & ~self.known
        if not missing:
            return None
        return (
            Cube(self.value | (missing & ~other.value), self.known | missing)
            if not missing & (missing - 1)
            else self
        )

    def get(self, field: Field) -> tuple[int, int]:
        """Return a field's known bits, and which they are."""
        return (self.value & field.ones) >> field.offset, (self.known & field.ones) >> field.offset

    def number(self, name: str) -> int | None:
        """Return the value of a field by its name, or None if any of its bits may be anything."""
        field = FIELDS[name]
        value, known = self.get(field)
        return value if known == field.whole else None

    def put(self, field: Field, value: int, mask: int, known: int | None = None) -> Cube:
        """Return the class after the bits of a mask were written to a field.

        Args:
            known: which of the written bits are known; all of them if None.

        """
        mask, known = (
            mask << field.offset & field.ones,
            (mask if known is None else known & mask) << field.offset & field.ones,
        )
        return Cube(self.value & ~mask | value << field.offset & known, self.known & ~mask | known)

    def fill(self, field: Field, value: int, known: int | None = None) -> Cube:
        """Return the class after a whole field was written.

        Args:
            known: which of its bits are known; all of them if None.

        """
        return self.put(field, value, field.whole, known)

    def forget(self, *fields: Field) -> Cube:
        """Return the class after some fields have become anything."""
        found = self
        for item in fields:
            found = found.fill(item, 0, 0)
        return found

    def __str__(self) -> str:
        """The fields of the packet that are known, for people."""
        return (
            ",".join(_told(name, *self.get(FIELDS[name])) for name in _SHOWN if self.get(FIELDS[name])[1])
            or "anything"
        )


def cube(**fields: int) -> Cube:
    """Return the class in which whole fields have certain values."""
    found = Cube()
    for name, value in fields.items():
        found = found.fill(FIELDS[name], value)
    return found


def _told(name: str, value: int, known: int) -> str:
    whole = known == FIELDS[name].whole
    if WIDTHS[name] == 48:
        text = ":".join(f"{value >> shift & 255:02x}" for shift in range(40, -8, -8))
    elif WIDTHS[name] in (32, 128) and whole:
        text = str(_ADDRESSES[name.partition("_")[0]](value))
    else:
        text = f"{value:#x}" if name in ("dl_type", "vlan_tci", "ct_state") or not whole else str(value)
    return f"{name}={text}" + ("" if whole else f"/{known:#x}")
