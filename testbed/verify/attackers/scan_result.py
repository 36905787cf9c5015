"""Judges one contact with a machine by its answer, the firewall and stalls (NET-09). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from testbed.model.exposure import ExposureCell
from testbed.verify.probe.liveness import OUTER
from testbed.verify.witnesses.firewall_log import FirewallCounters

WINDOW = 4.0  # seconds for answers; a silent neighbour is unreachable after three
_STILL = WINDOW / 2  # seconds that a machine may stall: it can still answer a repeated packet


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The result of one contact.

    Args:
        state: the answer that the source received.
        refused: the machine's firewall recorded a refusal.
        passed: the machine's firewall counted accepted packets on the port during the scan.
        blind: why silence is no evidence: a machine stalled, or the firewall's set was full; else empty.
    """

    cell: ExposureCell
    state: str
    refused: bool
    passed: bool
    blind: str = ""

    @property
    def reached(self) -> bool:
        """Whether the service was reached: it answered, or the firewall accepted the datagram.

        A datagram may get no answer.
        """
        return self.state in ("open", "refused") or (
            self.cell.protocol == "udp" and not self.refused and self.passed
        )

    @property
    def unclear(self) -> bool:
        """Whether neither witness saw the packet, so that it may not have arrived."""
        seen = self.reached or self.refused
        return not seen and (bool(self.blind) or self.cell.protocol in ("tcp", "udp"))

    def __str__(self) -> str:
        told = f"{', let pass' if self.passed else ''}{', not refused' if not self.refused else ''}"
        return f"{self.cell}: {self.state}{told}{f', but {self.blind}' if self.blind else ''}"


def read(
    cell: ExposureCell,
    state: str,
    before: FirewallCounters,
    after: FirewallCounters,
    seconds: float,
    stood: Mapping[str, float],
) -> ScanResult:
    """Return the result of one contact.

    Args:
        state: its answer.
        before: the firewall's counters before all contacts.
        after: the counters `seconds` later.
        stood: for how many seconds each machine stalled during the scan.
    """
    port = cell.port or 0
    refused = after.refuses(str(cell.source.address), str(cell.address), cell.protocol, port, seconds)
    full = before.full or after.full if cell.protocol in ("tcp", "udp") else ""
    passed = cell.protocol == "udp" and not full and after.passed("udp", port) > before.passed("udp", port)
    return ScanResult(cell, state, refused, passed, full or _stood_still(cell, stood))


def _stood_still(cell: ExposureCell, stood: Mapping[str, float]) -> str:
    """Return the machines of a contact that stalled for so long that an answer could be late."""
    needed = dict.fromkeys((OUTER, cell.source.name, cell.target.name))
    late = [f"{name} stood still for {stood[name]:.1f} s" for name in needed if stood.get(name, 0.0) > _STILL]
    return " and ".join(late)
