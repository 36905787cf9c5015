"""Compares a machine with its reference: the golden reading, its identity, and what its lab adds. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from testbed.inventory.allowed import Allowed
from testbed.inventory.compare import Comparison, compare, domains_of
from testbed.inventory.records import UNREAD, Inventory, Records
from testbed.inventory.reference.derive import Origin, derived, normal
from testbed.inventory.reference.domains import judged
from testbed.inventory.reference.expected import Expected, grant


@dataclass(frozen=True, slots=True)
class Judgement:
    """The result for one machine.

    Args:
        expected: number of records that each line of ``expected.toml`` expected.
        judged: number of records in judged domains.
        skipped: number of records of each domain that is not judged yet.

    """

    comparison: Comparison
    expected: Counter[str]
    judged: int
    skipped: Counter[str]


def judge(
    origin: Origin,
    found: Inventory,
    golden: Inventory,
    expected: Sequence[Expected],
    allowed: Sequence[Allowed],
) -> Judgement:
    """Return where a machine differs from its reference.

    Args:
        origin: the machine, its lab and the identity that was handed over.
        found: what is on it.
        golden: what was on it when its memory was saved.

    """
    skipped = Counter(domain for domain, _ in found.records if not judged(domain))
    seen, before = _judged(found), _judged(golden)
    is_ = normal(seen.records)
    should, counts = grant(is_, derived(origin, normal(before.records)), expected, origin.machine.role)
    compared = compare(
        origin.machine.name, replace(found, records=is_), replace(golden, records=should), allowed
    )
    return Judgement(compared, counts, len(is_), skipped)


def _judged(inventory: Inventory) -> Inventory:
    """Return an inventory without records of domains that are not judged, and without gaps in these."""
    known = {domain for domain, _ in inventory.records}
    records: Records = {
        (domain, key): value
        for (domain, key), value in inventory.records.items()
        if (any(map(judged, domains_of(key, known))) if domain == UNREAD else judged(domain))
    }
    return replace(inventory, records=records)
