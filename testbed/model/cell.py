"""What the cells of every reach matrix have in common, and what every interface has by its MAC address."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Protocol


class Named(Protocol):
    """Something with a name that is unique in the lab."""

    @property
    def label(self) -> str:
        """The name."""


class Question:
    """May this source use that service of that target? The cells of a matrix are frozen values with these
    fields.
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
        """What is asked."""
        return self.target.label

    def as_row(self, observed: bool | None = None) -> dict[str, object]:
        """Return plain values, for JSON; None stands for a cell that was not observed."""
        row = {name: getattr(self, name) for name in ("protocol", "port", "allowed", "reason")}
        return {"source": self.source.label, "target": self.aim, **row, "observed": observed}

    def __str__(self) -> str:
        return f"{self.source.label} -> {self.aim} {self.service}"


def link_local(mac: str) -> IPv6Address:
    """Return the address that IPv6 gives every interface, made from its MAC address (RFC 4291, appendix
    A).
    """
    octets = bytes.fromhex(mac.replace(":", ""))
    return IPv6Address(bytes((0xFE, 0x80, *bytes(6), octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:])))
