"""Base class of the cells of a matrix, and the link-local address of a MAC address."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import Protocol

_PAIRS, _SERVICES = 4, 6  # the most that a summary of cells names


class Named(Protocol):
    """Something with a name that is unique in the lab."""

    @property
    def label(self) -> str:
        """The name."""


class Question:
    """A cell of a matrix: may this source use that service of that target?

    The cells are frozen values with these fields.
    """

    __slots__ = ()
    source: Named
    target: Named
    protocol: str
    port: int | None
    allowed: bool
    reason: str

    @property
    def service(self) -> str:
        """The service as a topology file writes it."""
        return self.protocol if self.port is None else f"{self.protocol}/{self.port}"

    @property
    def aim(self) -> str:
        """The target, as shown to readers."""
        return self.target.label

    def as_row(self, observed: bool | None = None) -> dict[str, object]:
        """Return plain values, for JSON; None stands for a cell that was not observed."""
        row = {name: getattr(self, name) for name in ("protocol", "port", "allowed", "reason")}
        return {"source": self.source.label, "target": self.aim, **row, "observed": observed}

    def __str__(self) -> str:
        return f"{self.source.label} -> {self.aim} {self.service}"


def by_pair(cells: Iterable[Question]) -> str:
    """Return the first pairs of source and target with their first services, and count the rest."""
    pairs: dict[str, list[str]] = {}
    for cell in cells:
        pairs.setdefault(f"{cell.source.label} -> {cell.aim}", []).append(cell.service)
    told = [
        f"{pair}: {', '.join(services[:_SERVICES])}{_more(len(services) - _SERVICES)}"
        for pair, services in pairs.items()
    ]
    return "; ".join(told[:_PAIRS]) + (f"; and {len(told) - _PAIRS} more pairs" if len(told) > _PAIRS else "")


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def link_local(mac: str) -> IPv6Address:
    """Return the IPv6 link-local address of a MAC address (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    # Modified EUI-64: the universal/local bit is inverted, and ff:fe inserted in the middle.
    return IPv6Address(bytes((0xFE, 0x80, *bytes(6), octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:])))
