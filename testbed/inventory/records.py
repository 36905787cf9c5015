"""Records of a machine, parsed within bounds, since the machine may have fallen. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from testbed.untrusted import bounded_json

FORMAT = 3
OCTETS = 32 * 2**20  # of the text of one machine
RECORDS = 70_000  # of one machine
UNREAD = "unread"
_LINE = 2**17  # characters of one record
_WORD = 2_000  # characters of a domain or key

Records = Mapping[tuple[str, str], Any]


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything that was found on a machine.

    Args:
        records: value of each record by its domain and key.
        seconds: that the machine took, as it says itself.

    """

    records: Records
    seconds: float = 0.0

    @property
    def unread(self) -> dict[str, str]:
        """Why a place could not be read, by domain and place."""
        return {key: str(value) for (domain, key), value in self.records.items() if domain == UNREAD}

    @property
    def unfinished(self) -> dict[str, str]:
        """Why a whole domain or collector has no answer, though its tool is there; by its name."""
        return {
            place: why
            for place, why in self.unread.items()
            if place.endswith(" ") and not why.endswith("is not installed")
        }

    def domains(self) -> dict[str, int]:
        """Return the number of records of each domain."""
        counts: dict[str, int] = {}
        for domain, _ in self.records:
            counts[domain] = counts.get(domain, 0) + 1
        return counts

    def data(self) -> list[dict[str, Any]]:
        """Return the records as JSON, sorted."""
        return [
            {"domain": domain, "key": key, "value": value}
            for (domain, key), value in sorted(self.records.items(), key=_by_name)
        ]


def _by_name(item: tuple[tuple[str, str], Any]) -> tuple[str, str]:
    return item[0]


def unpack(packed: bytes) -> Inventory:
    """Return the inventory that the program on a machine printed.

    Raises:
        ValueError: it is none, is cut off, or is beyond the bounds.

    """
    decoder = zlib.decompressobj()
    try:
        text = decoder.decompress(packed, OCTETS)
    except zlib.error as error:
        raise ValueError(f"it is not compressed: {error}") from error
    if not decoder.eof:
        raise ValueError(f"it is cut off, or longer than {OCTETS} octets")
    head, _, rest = text.partition(b"\n")
    told = bounded_json.read(head)
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ValueError(f"it is of another format than {FORMAT}")
    lines = rest.split(b"\n")
    if lines.pop() or len(lines) != bounded_json.whole(told.get("records"), 0, RECORDS):
        raise ValueError(f"it has {len(lines)} records and claims others")
    return Inventory(
        _taken(bounded_json.read(line) for line in lines if _short(line)),
        bounded_json.real(told.get("seconds"), 0, 10_000),
    )


def _short(line: bytes) -> bool:
    if len(line) > _LINE:
        raise ValueError(f"a record has {len(line)} octets")
    return True


def parse(records: object) -> Inventory:
    """Return the inventory that `Inventory.data` gave.

    Raises:
        ValueError: it is none.

    """
    if not isinstance(records, list):
        raise ValueError("records are a list")
    return Inventory(_taken(records))


def _taken(records: Iterable[object]) -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    for record in records:
        if not isinstance(record, dict) or set(record) != {"domain", "key", "value"}:
            raise ValueError(f"{str(record)[:80]!r} is no record")
        domain, key = record["domain"], record["key"]
        if (
            not isinstance(domain, str)
            or not isinstance(key, str)
            or not 0 < len(domain) <= _WORD
            or len(key) > _WORD
        ):
            raise ValueError(f"{str(record)[:80]!r} has no domain and key")
        if (domain, key) in found:
            raise ValueError(f"{domain} {key[:80]} is there twice")
        found[domain, key] = record["value"]
    return found
