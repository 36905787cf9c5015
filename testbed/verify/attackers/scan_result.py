"""What a question to a machine came to, by what came back, what its firewall tells, and who stood still
(NET-09). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from testbed.model.exposure import Contact
from testbed.verify.probe.liveness import OUTER
from testbed.verify.witnesses.firewall_log import Ledger

WINDOW = 4.0  # seconds that answers have; a neighbour that does not answer is unreachable after three
_STILL = (
    WINDOW / 2
)  # seconds that a machine may stand still: what it is asked a second time it can still answer


@dataclass(frozen=True, slots=True)
class Reading:
    """What one question came to.

    Args:
        state: what came back to who asked.
        refused: the machine's firewall says that it refused it.
        passed: the machine's firewall says that it let something pass there meanwhile.
        blind: why silence says nothing: somebody stood still, or the firewall had no room to tell. Empty if
            it does.

    """

    cell: Contact
    state: str
    refused: bool
    passed: bool
    blind: str = ""

    @property
    def reached(self) -> bool:
        """Whether the service was reached: it answered, or was let pass; a datagram may get no answer."""
        return self.state in ("open", "refused") or (
            self.cell.protocol == "udp" and not self.refused and self.passed
        )

    @property
    def unclear(self) -> bool:
        """Whether neither witness saw it: it may not even have arrived."""
        seen = self.reached or self.refused
        return not seen and (bool(self.blind) or self.cell.protocol in ("tcp", "udp"))

    def __str__(self) -> str:
        told = f"{', let pass' if self.passed else ''}{', not refused' if not self.refused else ''}"
        return f"{self.cell}: {self.state}{told}{f', but {self.blind}' if self.blind else ''}"


def read(
    cell: Contact, state: str, before: Ledger, after: Ledger, seconds: float, stood: Mapping[str, float]
) -> Reading:
    """Return what a question came to.

    Args:
        state: its answer.
        before: what the firewall told before all questions.
        after: what it told so many seconds after that.
        stood: for how many seconds machines stood still meanwhile.

    """
    port = cell.port or 0
    refused = after.refuses(str(cell.source.address), str(cell.address), cell.protocol, port, seconds)
    full = before.full or after.full if cell.protocol in ("tcp", "udp") else ""
    passed = cell.protocol == "udp" and not full and after.passed("udp", port) > before.passed("udp", port)
    return Reading(cell, state, refused, passed, full or _stood_still(cell, stood))


def _stood_still(cell: Contact, stood: Mapping[str, float]) -> str:
    """Return who of those that a question needs stood still for so long that an answer could be late."""
    needed = dict.fromkeys((OUTER, cell.source.name, cell.target.name))
    late = [f"{name} stood still for {stood[name]:.1f} s" for name in needed if stood.get(name, 0.0) > _STILL]
    return " and ".join(late)
