"""Compares a machine with its reference: the golden reading, its identity, and what its lab adds. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from testbed.inventory.allowed import Allowed
from testbed.inventory.compare import Comparison, Finding, compare, domains_of
from testbed.inventory.controls import INTEGRITY, KERNEL_CODE
from testbed.inventory.records import UNREAD, Inventory, Records
from testbed.inventory.reference.derive import Origin, derived, in_memory, normal, unchanged
from testbed.inventory.reference.domains import judged
from testbed.inventory.reference.expected import Expected, grant
from testbed.inventory.reference.mounts import parts
from testbed.inventory.reference.units import idle

AWAKE = ("file", "/run/testbed/boot_id")  # only a machine that started from saved memory has it


class Scope(StrEnum):
    """How much of a machine is judged."""

    WHOLE = "everything in judged domains"
    CODE = "code in the kernel"
    PROGRAMS = "programs and what starts them"
    REBOOTED = "programs on disk and what starts them, since the machine has booted"


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
    scope: Scope = Scope.WHOLE


def judge(
    origin: Origin,
    found: Inventory,
    golden: Inventory,
    expected: Sequence[Expected],
    allowed: Sequence[Allowed],
    *,
    scope: Scope = Scope.WHOLE,
) -> Judgement:
    """Return where a machine differs from its reference.

    Args:
        origin: the machine, its lab and the identity that was handed over.
        found: what is on it.
        golden: what was on it when its memory was saved.
        scope: how much is judged; less of its files if the machine has booted since it started from saved
            memory. Code in the kernel is the same after a boot.

    """
    scope = scope if scope is Scope.CODE or AWAKE in found.records else Scope.REBOOTED
    skipped = Counter(domain for domain, _ in found.records if not _counts(domain, scope))
    seen, before = _judged(found, scope), _judged(golden, scope)
    is_ = normal(unchanged(seen.records, golden.records))
    known = derived(origin, normal(before.records), is_)
    base = {at: value for at, value in known.items() if at[0] == UNREAD or _counts(at[0], scope)}
    should, counts = grant(is_, base, expected, origin.machine.role)
    should |= parts(is_, should) | idle(is_, before.records)
    compared = compare(
        origin.machine.name, replace(found, records=is_), replace(golden, records=should), allowed
    )
    kept = tuple(finding for finding in compared.findings if _matters(finding, scope))
    return Judgement(replace(compared, findings=kept), counts, len(is_), skipped, scope)


def _counts(domain: str, scope: Scope) -> bool:
    if scope is Scope.WHOLE:
        return judged(domain)
    return domain in (("image", KERNEL_CODE) if scope is Scope.CODE else ("image", "file"))


def _matters(finding: Finding, scope: Scope) -> bool:
    """Return whether a finding is in scope: what breaches and boots leave behind is elsewhere."""
    if scope in (Scope.WHOLE, Scope.CODE):
        return True
    return INTEGRITY in finding.controls and not (scope is Scope.REBOOTED and in_memory(finding.key))


def _judged(inventory: Inventory, scope: Scope) -> Inventory:
    """Return an inventory without records of domains that are not judged, and without gaps in these."""
    known = {domain for domain, _ in inventory.records}
    records: Records = {
        (domain, key): value
        for (domain, key), value in inventory.records.items()
        if (
            any(_counts(item, scope) for item in domains_of(key, known))
            if domain == UNREAD
            else _counts(domain, scope)
        )
    }
    return replace(inventory, records=records)
