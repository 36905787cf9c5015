"""Heartbeats of a whole run: what was read at each beat, and what is judged of them (DOS-01). Pure.

Between two readings a guest's processors must have run. A reading whose node stood still meanwhile says
nothing about a guest that did not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from testbed.report.result import Verdict
from testbed.verify.interruptions import Interruption

GAP = 60.0  # seconds that a victim may be missed for, beside what it was missed for in calm
SHARE = 0.1  # of the beats, which may be missed
_LEAST = 4  # beats, below which nothing was observed
_STOOD = 2.0  # seconds that a node's clock may lose between two beats that count
_SLOW, _SLOWEST = 20.0, 5.0  # times the calm median, and seconds, beyond which management is slow
_ROW = re.compile(r"(?P<domain>[\w.-]{1,200}) (?P<pid>\d{1,10}) (?P<start>\d{1,20}) (?P<ran>\d{1,20})")
_UP = re.compile(r"up (?P<seconds>\d{1,10}\.\d{1,4})")
_MANAGEMENT = ("ssh", "libvirt")


@dataclass(frozen=True, slots=True)
class Life:
    """What is read of one guest.

    Args:
        worker: process id and start time of its worker; zeros if there is none.
        ran: CPU time of its processors so far, in nanoseconds.
    """

    worker: tuple[int, int]
    ran: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a node.

    Args:
        asked: time on our clock, in seconds; `answered` likewise.
        up: seconds that the node has run, by its own clock; None if it did not answer.
        api: seconds in which libvirt answered; None if it did not.
        guests: by domain.
    """

    asked: float
    answered: float
    up: float | None = None
    api: float | None = None
    guests: dict[str, Life] = field(default_factory=dict)


def lives(text: str) -> tuple[float, dict[str, Life]]:
    """Return uptime and guests from what a node printed.

    Raises:
        ValueError: it has another form.
    """
    first, *rows = text.splitlines() or [""]
    up = _UP.fullmatch(first)
    if up is None:
        raise ValueError("no time of the node")
    found = {}
    for row in rows:
        parts = _ROW.fullmatch(row)
        if parts is None:
            raise ValueError(f"{row[:80]!r} describes no guest")
        worker = int(parts["pid"]), int(parts["start"])
        found[parts["domain"]] = Life(worker, int(parts["ran"]))
    return float(up["seconds"]), found


@dataclass
class Series:
    """Beats of one victim: when it was seen alive, and how many beats were missed.

    Args:
        seconds: of the beats that counted.
        gap: longest time without a beat.
    """

    beats: int = 0
    missed: int = 0
    seconds: float = 0.0
    gap: float = 0.0
    _without: float = 0.0

    def add(self, seconds: float, *, alive: bool) -> None:
        """Add a beat that was awaited for some seconds."""
        self.beats += 1
        self.seconds += seconds
        self._without = 0.0 if alive else self._without + seconds
        self.missed += not alive
        self.gap = max(self.gap, self._without)

    def pause(self) -> None:
        """Begin again after a time that does not count."""
        self._without = 0.0

    @property
    def calm(self) -> bool:
        """Whether most of the beats were seen."""
        return self.missed * 2 < self.beats

    def gone(self, calm: Series) -> bool:
        """Return whether nothing was seen for too long, compared with the calm beats, or ever."""
        return self.gap > GAP + calm.gap or self.missed == self.beats

    def rare(self, calm: Series) -> bool:
        """Return whether too many beats are missed, compared with the calm ones."""
        return self.missed > (SHARE + (calm.missed / calm.beats if calm.beats else 0.0)) * self.beats

    def told(self, name: str) -> str:
        """Return in words what is missed."""
        return f"{name}: {self.missed} of {self.beats} beats are missed, for up to {self.gap:.0f} s"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the beats of a node show."""

    verdict: Verdict
    reason: str
    series: dict[str, Series]

    def worse(self, verdict: Verdict, reason: str) -> Judgement:
        """Return this judgement with another one: a fail counts most, and then what was not seen."""
        order = (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL)
        both = "; ".join(filter(None, (reason, self.reason)))
        return Judgement(max(self.verdict, verdict, key=order.index), both, self.series)


@dataclass
class _Counted:
    """Beats of all victims of a node in one part of a run."""

    series: dict[str, Series] = field(default_factory=dict)
    logins: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    left_out: dict[str, float] = field(default_factory=dict)
    restarted: set[str] = field(default_factory=set)

    def of(self, name: str) -> Series:
        return self.series.setdefault(name, Series())

    def leave_out(self, reason: str, seconds: float) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0.0) + seconds
        for series in self.series.values():
            series.pause()


def judged(
    calm: Sequence[Reading], run: Sequence[Reading], names: dict[str, str], breaks: Sequence[Interruption]
) -> Judgement:
    """Judge the beats of a node.

    Args:
        calm: readings before the checks.
        run: readings during the checks; the last one of the calm ones is their first.
        names: label by domain, of the guests that must be there.
        breaks: times that do not count.
    """
    before, found = _counted(calm, names, ()), _counted([*calm[-1:], *run], names, breaks)
    awaited = [*_MANAGEMENT, *names.values()]
    told = _told(found)
    rough = [name for name in awaited if not before.of(name).calm]
    if rough:
        return Judgement(
            Verdict.INCONCLUSIVE, f"not calm before the checks: {', '.join(rough)}", found.series
        )
    faults = [f"the worker of {name} has ended or restarted" for name in sorted(found.restarted)]
    rare = {name for name, one in found.series.items() if one.rare(before.of(name))}
    lost = {name for name, one in found.series.items() if one.gone(before.of(name))}
    # A management that answers between late answers is slow; a guest whose processors do not run is not.
    lost |= rare - {*_MANAGEMENT}
    faults += [found.of(name).told(name) for name in sorted(lost)]
    few = [name for name in awaited if found.of(name).beats < _LEAST]
    if faults:
        return Judgement(Verdict.FAIL, f"{'; '.join(faults)} ({told})", found.series)
    if few:
        return Judgement(Verdict.INCONCLUSIVE, f"too few beats: {', '.join(few)} ({told})", found.series)
    if rare:
        late = "; ".join(found.of(name).told(name) for name in sorted(rare))
        return Judgement(Verdict.INCONCLUSIVE, f"{late} ({told})", found.series)
    for what, calm_times, times in (
        ("a login", before.logins, found.logins),
        ("libvirt", before.calls, found.calls),
    ):
        usual = median(times)
        if usual > _SLOWEST and usual > _SLOW * median(calm_times):
            reason = f"{what} usually answers after {usual:.1f} s ({told})"
            return Judgement(Verdict.INCONCLUSIVE, reason, found.series)
    return Judgement(Verdict.PASS, told, found.series)


def _counted(readings: Sequence[Reading], names: dict[str, str], breaks: Sequence[Interruption]) -> _Counted:
    found = _Counted()
    last: Reading | None = None  # the last one that answered
    for first, then in pairwise(readings):
        last = first if first.up is not None else last
        seconds = then.asked - first.asked
        reason = next((item.reason for item in breaks if _overlaps(item, first.asked, then.answered)), "")
        if reason:
            found.leave_out(reason, seconds)
            last = None
            continue
        found.of("ssh").add(seconds, alive=then.up is not None)
        if then.up is None:
            continue  # one that does not answer does not tell of its guests
        found.logins.append(then.answered - then.asked)
        found.of("libvirt").add(seconds, alive=then.api is not None)
        found.calls += [then.api] if then.api is not None else []
        if last is None or last.up is None:
            continue
        if then.asked - last.answered - (then.up - last.up) > _STOOD:
            found.leave_out("the node stood still", seconds)
            continue
        found.restarted |= {name for domain, name in names.items() if _is_another(last, then, domain)}
        for name, alive in _alive(last, then, names):
            found.of(name).add(then.asked - last.asked, alive=alive)
    return found


def _overlaps(item: Interruption, began: float, ended: float) -> bool:
    return item.began <= ended and (item.ended is None or item.ended >= began)


def _is_another(first: Reading, then: Reading, domain: str) -> bool:
    """Return whether a guest has another worker than before."""
    one, other = first.guests.get(domain), then.guests.get(domain)
    return one is not None and one.worker[0] > 0 and (other is None or one.worker != other.worker)


def _alive(first: Reading, then: Reading, names: dict[str, str]) -> Iterator[tuple[str, bool]]:
    """Yield each victim, and whether it was alive between two readings."""
    nothing = Life((0, 0), 0)
    for domain, name in names.items():
        one, other = first.guests.get(domain, nothing), then.guests.get(domain, nothing)
        yield name, one.worker[0] > 0 and one.worker == other.worker and other.ran > one.ran


def _told(found: _Counted) -> str:
    """Return in words how much was counted, and how much was not."""
    beats = sum(series.beats for series in found.series.values())
    missed = sum(series.missed for series in found.series.values())
    gap = max((series.gap for series in found.series.values()), default=0.0)
    seconds = max((series.seconds for series in found.series.values()), default=0.0)
    left = "; ".join(f"{reason}: {time:.0f} s" for reason, time in found.left_out.items())
    login, call = (max(times, default=0.0) for times in (found.logins, found.calls))
    slow = f"a login took up to {login:.1f} s, libvirt {call:.1f} s"
    return (
        f"{missed} of {beats} beats of {len(found.series)} victims missed in {seconds:.0f} s, "
        f"for up to {gap:.0f} s; {slow}; not counted: {left or 'nothing'}"
    )
