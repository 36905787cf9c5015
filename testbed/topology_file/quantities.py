"""Sizes, bandwidths and packet rates of a topology file: text with a unit, and what it stands for."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from testbed.topology_file.yaml_source import shown

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
_UNITS = {"KiB": KIB, "MiB": MIB, "GiB": GIB}
_SIZE = re.compile(r"^([1-9][0-9]*)\s*(KiB|MiB|GiB)$")
_BITS = {"kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9}
_BANDWIDTH = re.compile(r"^([1-9][0-9]{0,5})\s*(kbit|Mbit|Gbit)/s$")
_PACKETS = re.compile(r"^([1-9][0-9]{0,6})000/s$")
_OPERATIONS = re.compile(r"^([1-9][0-9]{0,6})/s$")
_DISK_BANDWIDTH = re.compile(r"^([1-9][0-9]{0,5})\s*(KiB|MiB|GiB)/s$")
_PERCENTAGE = re.compile(r"^([1-9][0-9]?|100)\s*%$")


def parse_size(value: object) -> int:
    """Return a size in bytes from text such as ``64 MiB``.

    Raises:
        ValueError: the text has no unit, or is no size.

    """
    match = _SIZE.match(value) if isinstance(value, str) else None
    if not match:
        msg = (
            f"{shown(value)} is not a size; write a whole number above zero and KiB, MiB or GiB, as in '64 "
            "MiB'"
        )
        raise ValueError(msg)
    return int(match[1]) * _UNITS[match[2]]


def format_size(size: int) -> str:
    """Return a size in bytes as text in the form of a topology file."""
    for unit, factor in reversed(_UNITS.items()):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"


def parse_bandwidth(value: object) -> int:
    """Return bits per second from text such as ``50 Mbit/s``.

    Raises:
        ValueError: the text has no unit, or is no bandwidth.

    """
    match = _BANDWIDTH.match(value) if isinstance(value, str) else None
    if not match:
        msg = (
            f"{shown(value)} is not a bandwidth; write a whole number above zero and kbit/s, Mbit/s or "
            "Gbit/s, as in '50 Mbit/s'"
        )
        raise ValueError(msg)
    return int(match[1]) * _BITS[match[2]]


def parse_packets(value: object) -> int:
    """Return packets per second from text such as ``2000/s``.

    Open vSwitch counts them in thousands.

    Raises:
        ValueError: the text is no packet rate, or not in thousands.

    """
    match = _PACKETS.match(value) if isinstance(value, str) else None
    if not match:
        msg = f"{shown(value)} is not a packet rate; write whole thousands per second, as in '2000/s'"
        raise ValueError(msg)
    return int(match[1]) * 1000


def parse_operations(value: object) -> int:
    """Return operations per second from text such as ``500/s``.

    Raises:
        ValueError: the text is no such rate.

    """
    match = _OPERATIONS.match(value) if isinstance(value, str) else None
    if not match:
        msg = f"{shown(value)} is not a rate of operations; write a whole number above zero, as in '500/s'"
        raise ValueError(msg)
    return int(match[1])


def parse_disk_bandwidth(value: object) -> int:
    """Return bytes per second from text such as ``8 MiB/s``.

    Raises:
        ValueError: the text has no unit, or is no bandwidth of a disk.

    """
    match = _DISK_BANDWIDTH.match(value) if isinstance(value, str) else None
    if not match:
        msg = (
            f"{shown(value)} is not a bandwidth of a disk; write a whole number above zero and KiB/s, MiB/s "
            "or GiB/s, as in '8 MiB/s'"
        )
        raise ValueError(msg)
    return int(match[1]) * _UNITS[match[2]]


def parse_percentage(value: object) -> int:
    """Return a percentage from text such as ``90%``.

    Raises:
        ValueError: the text is no percentage from 1 to 100.

    """
    match = _PERCENTAGE.match(value) if isinstance(value, str) else None
    if not match:
        msg = f"{shown(value)} is not a percentage; write a whole number from 1 to 100 and %, as in '90%'"
        raise ValueError(msg)
    return int(match[1])


def _within(least: int, most: int) -> AfterValidator:
    """Return a validator of sizes, with both bounds in bytes."""

    def bounded(size: int) -> int:
        return _bounded(size, least, most)

    return AfterValidator(bounded)


def _bounded(size: int, least: int, most: int) -> int:
    if not least <= size <= most:
        msg = (
            f"{format_size(size)} is not possible here; write a size from {format_size(least)} to "
            f"{format_size(most)}"
        )
        raise ValueError(msg)
    return size


def parse_volume_size(value: object) -> int:
    """Return the size of a volume in bytes from text such as ``64 MiB``.

    Raises:
        ValueError: the text is no size, or the size is not possible.

    """
    return _bounded(parse_size(value), MIB, 16 * TIB)


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema({"type": "string", "pattern": _SIZE.pattern, "examples": ["64 MiB", "2 GiB"]}),
]
MachineMemory = Annotated[Size, _within(512 * MIB, 4 * TIB)]
GuestMemory = Annotated[Size, _within(128 * MIB, TIB)]
VolumeSize = Annotated[Size, _within(MIB, 16 * TIB)]
Bandwidth = Annotated[
    int,
    BeforeValidator(parse_bandwidth),
    WithJsonSchema({"type": "string", "pattern": _BANDWIDTH.pattern, "examples": ["50 Mbit/s"]}),
]
PacketRate = Annotated[
    int,
    BeforeValidator(parse_packets),
    WithJsonSchema({"type": "string", "pattern": _PACKETS.pattern, "examples": ["2000/s"]}),
]
DiskOperations = Annotated[
    int,
    BeforeValidator(parse_operations),
    WithJsonSchema({"type": "string", "pattern": _OPERATIONS.pattern, "examples": ["500/s"]}),
]
DiskBandwidth = Annotated[
    int,
    BeforeValidator(parse_disk_bandwidth),
    WithJsonSchema({"type": "string", "pattern": _DISK_BANDWIDTH.pattern, "examples": ["8 MiB/s"]}),
]
Percentage = Annotated[
    int,
    BeforeValidator(parse_percentage),
    WithJsonSchema({"type": "string", "pattern": _PERCENTAGE.pattern, "examples": ["90%"]}),
]
MemoryOverhead = Annotated[Size, _within(64 * MIB, 16 * GIB)]
