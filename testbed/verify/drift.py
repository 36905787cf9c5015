"""Judges a lab's configuration before and after the checks (VMM-04).

A difference from the topology endangers controls. A look changes nothing. A difference is a fail of the
controls whose wall rests on that setting. If it was there at the beginning and is gone at the end, a check
repaired it without a report, and the fail stays. A place that cannot be observed makes its controls
inconclusive. A guest or machine that does not run opens no wall: checks that need it are inconclusive by
themselves.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from testbed.engine.place import Place
from testbed.errors import TestbedError
from testbed.lab.session import Lab
from testbed.plan import descriptions
from testbed.plan.controls import ITSELF, SEVERITY, STATE, Walls
from testbed.plan.diff import Difference, Observed, differences
from testbed.plan.resources import OUTER, Key, Kind, Properties, Resource
from testbed.report.result import CheckResult, Verdict
from testbed.verify.fleet import Fleet
from testbed.verify.inventory import selects

OBJECTIVE = "The settings that hold this wall are as the topology says"
_PATIENCE = (
    15.0  # seconds for a running machine to answer; `testbed.verify.runner.run` has waited for it before
)
_SHOWN = 6
_ALIVE = ("running", "paused", "silent", "waiting")
_OF_WORKERS = ("worker", "confinement")  # properties of the worker, absent in a stopped guest


@dataclass(frozen=True, slots=True)
class LabState:
    """The result of one comparison of the lab with its topology.

    Args:
        different: the differences, in places that could be observed.
        blind: the reason why a place could not be observed, by place.
        seconds: duration of the comparison.
        resources: number of compared resources.
    """

    different: tuple[Difference, ...]
    blind: Mapping[str, str]
    seconds: float
    resources: int = 0

    def open(self) -> list[Difference]:
        """Return the differences that may have opened a wall."""
        idle = self.idle()
        return [item for item in self.different if item not in idle]

    def idle(self) -> list[Difference]:
        """Return the differences that mean a stopped guest or machine, and their consequences."""
        gone = {
            (item.key.place, item.key.name)
            for item in self.different
            if _stopped(item) and item.key.kind is Kind.GUEST
        }
        return [
            item for item in self.different if _stopped(item) or item.name == STATE or _gone_with(item, gone)
        ]


def _gone_with(item: Difference, guests: Container[tuple[str, str]]) -> bool:
    """Return whether a difference is a consequence of stopped guests, given by place and name."""
    key = item.key
    if key.kind is Kind.LIMIT and not item.name and item.found is None:
        return (key.place, key.name.rpartition("/")[0]) in guests
    return key.kind is Kind.GUEST and item.name in _OF_WORKERS and (key.place, key.name) in guests


def _stopped(item: Difference) -> bool:
    """Return whether a difference means that a guest or machine is absent or does not run."""
    absent = not item.name and item.found is None
    return item.key.kind in (Kind.GUEST, Kind.MACHINE) and (
        absent or (item.name == STATE and item.found not in _ALIVE)
    )


def look(lab: Lab) -> LabState:
    """Return the present differences between a lab and its topology.

    A machine that does not answer hides no other machine.
    """
    started, desired = time.monotonic(), lab.desired
    try:
        outer: Observed = lab.outer.observe()
    except TestbedError as error:
        return LabState((), {place.name: _told(error) for place in lab.places}, time.monotonic() - started)
    others = [place for place in lab.places if place.name != OUTER]
    with ThreadPoolExecutor(max_workers=len(others)) as pool:
        looks = list(pool.map(lambda place: _observe(lab, place, outer), others))
    blind = {place.name: found for place, found in zip(others, looks, strict=True) if isinstance(found, str)}
    observed: dict[Key, Properties] = dict(outer)
    for found in looks:
        observed.update(found if not isinstance(found, str) else {})
    seen: dict[Key, Resource] = {key: item for key, item in desired.items() if key.place not in blind}
    return LabState(tuple(differences(seen, observed)), blind, time.monotonic() - started, len(seen))


def _observe(lab: Lab, place: Place, outer: Observed) -> Observed | str:
    """Return the resources of a place, or the reason why it could not be observed."""
    state = outer.get(Key(OUTER, Kind.MACHINE, place.name), {}).get(STATE, "not there")
    if state != "running":
        return f"it is {state}"
    try:
        lab.host(place.name).wait(_PATIENCE)
        return place.observe()
    except Exception as error:  # noqa: BLE001 - a hostile node must neither end the run nor pass
        return _told(error)


def _told(error: Exception) -> str:
    return (
        f"{error.what}: {error.fact}"
        if isinstance(error, TestbedError)
        else f"{type(error).__name__}: {error}"[:400]
    )


def state(fleet: Fleet) -> LabState:
    """Return the lab's differences from its topology in this phase, recorded as evidence."""
    return fleet.observe_once("state", lambda: _recorded(fleet))


def _recorded(fleet: Fleet) -> LabState:
    started = time.time()
    found = look(fleet.lab)
    answer = {
        "different": [[str(item.key), item.name, item.found, item.wanted] for item in found.different],
        "not looked at": dict(found.blind),
    }
    fleet.evidence.record(
        "fleet", "state", f"{found.resources} resources, compared with the topology", answer, started
    )
    return found


def in_words(fleet: Fleet, found: Iterable[Difference]) -> list[str]:
    """Return each difference in words."""
    items = list(found)
    guests = descriptions.owners(fleet.lab.desired) if items else {}
    return [item.told(guests) for item in items]


@dataclass
class DriftWatch:
    """Comparisons at the beginning and at the end of a run, and the results from both.

    Args:
        only: beginnings of the ids of the requested controls; all controls if empty.
    """

    fleet: Fleet
    only: Sequence[str] = ()
    interrupted: bool = False
    _looks: dict[str, tuple[LabState, tuple[str, ...]]] = field(default_factory=dict)

    def begin(self) -> None:
        """Compare before any check runs; checks of the same phase share this result."""
        self._look("begin")

    def end(self) -> None:
        """Compare again after the last check.

        An interrupt ends the comparison; the results of the checks stay.
        """
        self.fleet.new_phase()
        try:
            self._look("end")
        except KeyboardInterrupt:
            self.interrupted = True

    def _look(self, when: str) -> None:
        with self.fleet.evidence.of(f"drift.{when}") as written:
            found = state(self.fleet)
        self._looks[when] = (found, tuple(written))

    @property
    def trouble(self) -> list[str]:
        """Guests and machines that do not run at the end, or a note that there was no final look."""
        if self.interrupted:
            return ["interrupted: there was no look at the configuration after the checks"]
        idle = self._looks["end"][0].idle() if "end" in self._looks else []
        return [f"after the checks: {told}" for told in in_words(self.fleet, idle)[:_SHOWN]]

    @property
    def results(self) -> list[CheckResult]:
        """One result for each control and place with a wrong setting, or with settings not observed."""
        walls, different = Walls.of_lab(self.fleet.topology), self._all()
        guests = descriptions.owners(self.fleet.lab.desired) if different else {}
        rows: dict[tuple[str, str], list[str]] = defaultdict(list)
        for item, when in different:
            for control in walls.endangered(item):
                rows[control, item.key.place].append(f"{item.told(guests)} ({when})")
        failed = [self._row(control, place, Verdict.FAIL, told) for (control, place), told in rows.items()]
        unseen = [
            self._row(*at, Verdict.INCONCLUSIVE, told)
            for at, told in self._blind(walls).items()
            if at not in rows
        ]
        return sorted(
            (row for row in (*failed, *unseen) if self._asked(row.id)), key=lambda row: (row.id, row.case)
        )

    def _all(self) -> list[tuple[Difference, str]]:
        """Return every difference that may have opened a wall, and the time at which it was seen."""
        before, after = (self._looks[when][0] if when in self._looks else None for when in ("begin", "end"))
        first = before.open() if before else []
        if after is None:
            return [(item, "at the beginning") for item in first]
        last = after.open()
        then, now = ({(item.key, item.name) for item in found} for found in (first, last))
        return [
            *((item, _since(item, now, after.blind)) for item in first),
            *(
                (item, "at the end, and not at the beginning")
                for item in last
                if (item.key, item.name) not in then
            ),
        ]

    def _blind(self, walls: Walls) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        desired = self.fleet.lab.desired if any(seen.blind for seen, _ in self._looks.values()) else {}
        for when, (seen, _) in self._looks.items():
            for place, why in seen.blind.items():
                told = (
                    f"{place} could not be looked at "
                    f"({'at the beginning' if when == 'begin' else 'at the end'}): {why}"
                )
                for control in _held_at(place, walls, desired):
                    found[control, place].append(told)
        return found

    def _asked(self, control: str) -> bool:
        return not self.only or any(selects(word, control) for word in self.only)

    def _row(self, control: str, place: str, verdict: Verdict, told: Sequence[str]) -> CheckResult:
        more = [f"and {len(told) - _SHOWN} more differences"] if len(told) > _SHOWN else []
        return CheckResult(
            id=control,
            case=place,
            objective=OBJECTIVE,
            severity=SEVERITY.get(control, SEVERITY[ITSELF]),
            verdict=verdict,
            reason="\n".join((*told[:_SHOWN], *more)),
            simulated=False,
            duration_s=round(sum(seen.seconds for seen, _ in self._looks.values()), 2),
            evidence=tuple(path for _, written in self._looks.values() for path in written),
        )


def _since(item: Difference, now: Container[tuple[Key, str]], blind: Container[str]) -> str:
    """Return, in words, when a difference of the beginning was seen."""
    if (item.key, item.name) in now:
        return "from the beginning to the end"
    if item.key.place in blind:
        return "at the beginning"
    return "at the beginning, and no longer at the end: something in this run repaired it without a word"


def _held_at(place: str, walls: Walls, desired: Mapping[Key, Resource]) -> list[str]:
    keys = [key for key in desired if key.place == place]
    return sorted({control for key in keys for control in walls.held_by(key)})
