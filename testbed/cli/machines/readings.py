"""Prints readings of machines: their records, their surface, or how they differ from other readings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from testbed.cli.output.terminal import out, out_json, show
from testbed.errors import TestbedError
from testbed.inventory import surface
from testbed.inventory.allowed import load
from testbed.inventory.compare import Comparison
from testbed.inventory.records import FORMAT, Inventory
from testbed.inventory.surface import Part
from testbed.model.topology import Machine, Topology
from testbed.report.columns import Line, table
from testbed.untrusted.text import line

_SHOWN = 200  # findings and unread places that the text form lists


@dataclass(frozen=True, slots=True)
class Reading:
    """What machines of a lab have answered.

    Args:
        read: the inventory of each machine that could be read.
        errors: the error of each other one, by its name.

    """

    topology: Topology
    read: Mapping[Machine, Inventory]
    errors: Mapping[str, TestbedError]

    def data(self) -> dict[str, object]:
        """Return what every form of JSON begins with."""
        told = {machine: str(error) for machine, error in self.errors.items()}
        return {"format": FORMAT, "lab": self.topology.name, "errors": told}


def print_records(found: Reading, *, as_json: bool) -> None:
    """Print every record as JSON, or the number of records of each domain."""
    if as_json:
        records = [
            {"machine": item.name, **record} for item, seen in found.read.items() for record in seen.data()
        ]
        machines = [item.name for item in found.read]
        out_json({**found.data(), "machines": machines, "records": len(records)})
        for record in records:
            out_json(record)
        return
    for item, seen in found.read.items():
        out(f"{item.name}: {len(seen.records)} records in {seen.seconds:.1f} s")
        out("\n".join(f"  {count:6} {line(domain)}" for domain, count in seen.domains().items()))
        out(_listed([f"  not read: {line(place)}: {line(why)}" for place, why in seen.unread.items()]))


def print_findings(found: Reading, compared: Sequence[Comparison], *, as_json: bool) -> None:
    """Print what differs from earlier readings, and how much of it is allowed."""
    findings = [finding for item in compared for finding in item.findings]
    unread = [text for item in compared for text in item.unread]
    allowed = sum((item.allowed for item in compared), Counter[str]())
    if as_json:
        told = [finding.data() for finding in findings]
        out_json({**found.data(), "findings": told, "unread": unread, "allowed": dict(allowed)})
        return
    out(_listed([line(finding) for finding in findings]))
    out(_listed([f"not read: {line(text)}" for text in unread]))
    out(
        f"{len(findings)} findings; "
        f"{allowed.total()} differences are allowed by {len(allowed)} of {len(load())} lines; "
        f"{len(unread)} places could not be read"
    )


def print_surfaces(found: Reading, surfaces: Mapping[Machine, set[Part]], *, as_json: bool) -> list[str]:
    """Print the surface of each machine; return the parts that the baseline lacks, in words."""
    accepted = surface.baseline()
    more = {item.name: surface.grown(parts, accepted[item.role]) for item, parts in surfaces.items()}
    if as_json:
        machines = {
            item.name: {
                "role": item.role,
                "parts": [part._asdict() for part in sorted(parts)],
                "more": more[item.name],
                "gone": surface.gone(parts, accepted[item.role]),
            }
            for item, parts in surfaces.items()
        }
        out_json({**found.data(), "machines": machines})
    else:
        rows = [(item.name, *map(line, part)) for item, parts in surfaces.items() for part in sorted(parts)]
        show([Line(text) for text in table(("machine", "kind", "name", "what it may do"), rows)])
        out(_listed([line(f"{machine}: {text}") for machine, texts in more.items() for text in texts]))
    return [text for texts in more.values() for text in texts]


def _listed(lines: Sequence[str]) -> str:
    return "\n".join([*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])])
