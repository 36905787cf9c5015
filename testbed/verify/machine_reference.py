"""Judges machines by their reference (VMM-01): whole ones before the checks, and after them if asked for.

A machine is what was on it when its memory was saved, the identity that was handed over, and what its lab
adds. Everything else is a finding, and a fail of the controls that it endangers. VMM-01 looks at programs and
what starts them. A run of all controls looks at everything before its checks, one with `whole` after them
too.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from testbed.drivers.places.machine_inventory import read_machine
from testbed.drivers.snapshots import golden_inventory
from testbed.drivers.snapshots.machine_memory import MemorySnapshot
from testbed.drivers.snapshots.origin import started_from
from testbed.errors import TestbedError
from testbed.inventory import allowed
from testbed.inventory.compare import Finding
from testbed.inventory.controls import INTEGRITY
from testbed.inventory.records import Inventory
from testbed.inventory.reference import expected
from testbed.inventory.reference.derive import Origin
from testbed.inventory.reference.judge import Judgement, Scope, judge
from testbed.lab.breach_journal import Journal
from testbed.lab.session import Lab
from testbed.model.topology import Machine
from testbed.plan.controls import SEVERITY
from testbed.report.result import CheckResult, Verdict
from testbed.verify.fleet import Fleet
from testbed.verify.inventory import selects

BEGINNING, END = "at the beginning", "at the end"  # of a run
FILES = ("files",)  # collectors that VMM-01 needs
CODE = ("code",)  # and those that VMM-03 needs
SURFACE_COLLECTORS = ("files", "network", "processes")  # and those that PRO-01 needs
OBJECTIVE = "Nothing is on the machine but its image, its identity and what the topology asks for"
_SHOWN = 6
_SEVERITIES = {**SEVERITY, INTEGRITY: "critical"}  # as in the catalogue of controls
_BOOTED = "the machine did not start from saved memory, so nothing says what must be on it"


@dataclass(frozen=True, slots=True)
class MachineState:
    """The result of one reading of a machine.

    Args:
        found: what was read, or None.
        judgement: how it differs from its reference; None if it was not compared.
        blind: why it could not be read or compared; empty if it was.
        without: why it has no reference; empty if it has one.
        began: start of the reading, in seconds since 1970.
        seconds: duration.
        ended: number of findings of a first reading that were processes and nothing else.

    """

    found: Inventory | None = None
    judgement: Judgement | None = None
    blind: str = ""
    without: str = ""
    began: float = 0.0
    seconds: float = 0.0
    ended: int = 0

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What should not be there, or differs."""
        return self.judgement.comparison.findings if self.judgement else ()

    @property
    def gaps(self) -> tuple[str, ...]:
        """Places that could not be read, with the reason."""
        return (self.blind,) if self.blind else self.judgement.comparison.unread if self.judgement else ()

    @property
    def counted(self) -> str:
        """How much was judged and how much was not, in words."""
        if self.judgement is None:
            return self.blind or self.without
        skipped = self.judgement.skipped
        return (
            f"judged is {self.judgement.scope}: "
            f"{self.judgement.judged} records are judged, {skipped.total()} in {len(skipped)} domains "
            f"are not yet; {self.judgement.expected.total()} follow from the list of what a lab adds"
        ) + (f"; {self.ended} processes of a first reading had ended at the second" if self.ended else "")


def look(
    lab: Lab, machine: Machine, scope: Scope, only: tuple[str, ...] = SURFACE_COLLECTORS
) -> MachineState:
    """Return how a machine differs from its reference; it is read again if a place could not be read.

    A busy machine may answer late. It is also read again if processes are the only findings: services start
    programs that end soon, and the second reading counts.

    Args:
        only: collectors that read, unless the scope is everything.
    """
    found = _timed(lab, machine, scope, only)
    if found.findings and not found.gaps and all(item.domain == "process" for item in found.findings):
        again = _timed(lab, machine, scope, only)
        ended = {str(item) for item in found.findings} - {str(item) for item in again.findings}
        return replace(again, ended=len(ended))
    again = _timed(lab, machine, scope, only) if found.gaps and not found.findings else found
    return again if len(again.gaps) < len(found.gaps) or again.findings else found


def looks(lab: Lab, machines: Sequence[Machine]) -> dict[str, MachineState]:
    """Return how machines differ from their references, by name; they are read side by side.

    Where breaches were tried, only programs and what starts them are compared: breaches leave what no revert
    takes back (docs/decisions/0036).
    """
    scope = Scope.PROGRAMS if Journal(lab.workspace).used else Scope.WHOLE
    with ThreadPoolExecutor(max_workers=max(1, len(machines))) as pool:
        found = pool.map(lambda item: look(lab, item, scope), machines)
        return {item.name: state for item, state in zip(machines, found, strict=True)}


def _timed(lab: Lab, machine: Machine, scope: Scope, only: tuple[str, ...]) -> MachineState:
    began, started = time.time(), time.monotonic()
    try:
        found = _look(lab, machine, scope, only)
    except TestbedError as error:
        found = MachineState(blind=f"{error.what}: {error.fact}")
    except Exception as error:  # noqa: BLE001 - a hostile node must neither end the run nor pass
        found = MachineState(blind=f"{type(error).__name__}: {error}"[:400])
    return replace(found, began=began, seconds=round(time.monotonic() - started, 2))


def _look(lab: Lab, machine: Machine, scope: Scope, only: tuple[str, ...]) -> MachineState:
    folder = lab.workspace.machine(machine.name)
    saved = started_from(folder / "vda.qcow2")
    if saved is None:
        return MachineState(without=_BOOTED)
    if why := _unfit(saved):
        return MachineState(blind=why)
    key = golden_inventory.digest_key(saved.key)
    part = {} if scope is Scope.WHOLE else {"only": only}
    found = read_machine(lab.host(machine.name), {"key": key, **part})
    origin = Origin(lab.topology, machine, (folder / "identity.tar").read_bytes(), key)
    golden = golden_inventory.load(saved.folder)
    lines = expected.load(expected.words_of(lab.topology, machine))
    judgement = judge(origin, found, golden, lines, allowed.load(), scope=scope)
    return MachineState(found, judgement)


def reading(fleet: Fleet, name: str) -> Inventory | None:
    """Return what was read of a machine for VMM-01 in this phase; None if that does not have its surface."""
    return state(fleet, name).found if fleet.focus == "" else None


def missing(lab: Lab, machine: str) -> str | None:
    """Return why a machine has no reference, or None if it has one."""
    try:
        saved = started_from(lab.workspace.machine(machine) / "vda.qcow2")
    except OSError:
        return None  # its check finds out
    return None if saved else _BOOTED


def _unfit(saved: MemorySnapshot) -> str:
    """Return why a saved state is no reference for a reading of today, or ""."""
    if saved.made.get("inventory") != golden_inventory.program_digest():
        return "the reading that belongs to its saved memory was made by another program: rebuild the lab"
    saved.verify_one(golden_inventory.FILE)
    return ""


def state(fleet: Fleet, name: str) -> MachineState:
    """Return how a machine differs from its reference in this phase, recorded as evidence."""
    machine = fleet.topology.machine(name)
    only = FILES if fleet.focus == INTEGRITY else SURFACE_COLLECTORS
    return fleet.observe_once(
        _title(name), lambda: _recorded(fleet, name, look(fleet.lab, machine, Scope.PROGRAMS, only))
    )


def kernel_code(fleet: Fleet, name: str) -> MachineState:
    """Return how the code in a machine's kernel differs from its reference in this phase."""
    machine = fleet.topology.machine(name)
    return fleet.observe_once(
        f"kernel code of {name}",
        lambda: _recorded(fleet, name, look(fleet.lab, machine, Scope.CODE, CODE)),
    )


def states(fleet: Fleet) -> dict[str, MachineState]:
    """Return how each machine differs from its reference in this phase; they are read side by side."""
    missing = [item for item in fleet.topology.machines if fleet.observed(_title(item.name)) is None]
    for name, found in looks(fleet.lab, missing).items():
        fleet.observe_once(_title(name), partial(_recorded, fleet, name, found))
    return {item.name: state(fleet, item.name) for item in fleet.topology.machines}


def _title(machine: str) -> str:
    return f"reference of {machine}"


def _recorded(fleet: Fleet, name: str, found: MachineState) -> MachineState:
    answer = {"findings": [item.data() for item in found.findings], "not read": found.gaps}
    fleet.evidence.record(name, "inventory", found.counted, answer, time.time() - found.seconds)
    return found


@dataclass
class ReferenceWatch:
    """Readings at the beginning and at the end of a run, and the results from both.

    Args:
        only: beginnings of the ids of the requested controls; all controls if empty.
        whole: whether machines are read at the end too, and whatever controls are requested.

    """

    fleet: Fleet
    only: Sequence[str] = ()
    whole: bool = False
    _looks: dict[str, tuple[dict[str, MachineState], tuple[str, ...]]] = field(default_factory=dict)

    def look(self, when: str) -> None:
        """Read all machines, if the run asks for it; `when` is `BEGINNING` or `END`."""
        if not (self.whole or (when == BEGINNING and not self.only)):
            return
        with self.fleet.evidence.of(f"reference.{when.rpartition(' ')[2]}") as written:
            found = states(self.fleet)
        self._looks[when] = (found, tuple(written))

    @property
    def told(self) -> list[str]:
        """How much of each machine was judged at the last look, in words."""
        last = next(reversed(self._looks.values()), ({}, ()))[0]
        return [f"{name}: {item.counted}" for name, item in last.items()]

    @property
    def results(self) -> list[CheckResult]:
        """One result for each control and machine with a finding, or with places that were not read."""
        failed: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        unseen: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for when, (found, _) in self._looks.items():
            for name, item in found.items():
                for finding in item.findings:
                    for control in finding.controls:
                        failed[control, name][str(finding)].append(when)
                for gap in item.gaps:
                    unseen[INTEGRITY, name][gap].append(when)
        rows = [
            *(self._row(at, Verdict.FAIL, told) for at, told in failed.items()),
            *(self._row(at, Verdict.INCONCLUSIVE, told) for at, told in unseen.items() if at not in failed),
        ]
        return sorted((row for row in rows if self._asked(row.id)), key=lambda row: (row.id, row.case))

    def _asked(self, control: str) -> bool:
        return not self.only or any(selects(word, control) for word in self.only)

    def _row(self, at: tuple[str, str], verdict: Verdict, found: Mapping[str, Sequence[str]]) -> CheckResult:
        told = [f"{text} ({' and '.join(when)})" for text, when in found.items()]
        more = [f"and {len(told) - _SHOWN} more"] if len(told) > _SHOWN else []
        return CheckResult(
            id=at[0],
            case=at[1],
            objective=OBJECTIVE,
            severity=_SEVERITIES.get(at[0], "high"),
            verdict=verdict,
            reason="\n".join((*told[:_SHOWN], *more)),
            simulated=False,
            duration_s=round(
                max((item.seconds for found, _ in self._looks.values() for item in found.values())), 2
            ),
            evidence=tuple(path for _, written in self._looks.values() for path in written),
        )
