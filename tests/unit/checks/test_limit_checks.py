"""Verdicts about limits of compute, from what attacks and counters show (DOS-02 to DOS-05)."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from checks import test_resource_limits as limits
from testbed.errors import InstrumentError
from testbed.plan.libvirt_xml.limits import THREADS
from testbed.topology_file.quantities import MIB
from testbed.verify.attackers.worker import Layers
from testbed.verify.exhaustion.cpu_load import Shares
from testbed.verify.exhaustion.disk_load import Rate
from testbed.verify.exhaustion.worker_limits import Counts, Spent
from tests.shapes import lab_of

LAB = lab_of("one-node")
WEB, DB, BLUE = LAB.guests
HOST: Any = SimpleNamespace(name=WEB.node)
STRANGER = "red.first.frame"
LAYERS = Layers(
    label="",
    accounts=(),
    groups=(),
    others=(),
    capabilities=(),
    bound=1,
    filters=(2, 1),
    namespaces={},
    group="",
)
FREE = "MemAvailable: 1000000 kB"


def spent(
    domain: str = WEB.domain,
    *,
    reached: int,
    status: int = 0,
    event: str = "",
    total: int = 0,
    gone: str = "",
) -> Spent:
    workers = {guest.domain: number for number, guest in enumerate(LAB.guests, 5)} | {domain: 9}
    after = {name: pid for name, pid in workers.items() if name != gone}
    quiet = {domain: {"memory oom_kill": 3, "pids max": 3}}
    loud = {domain: {**quiet[domain], **({event: quiet[domain][event] + 1} if event else {})}}
    return Spent(
        worker=LAYERS,
        worn=LAYERS,
        reached=reached,
        status=status,
        before=Counts(events=quiet, workers=workers, killed=3),
        after=Counts(events=loud, workers=after, killed=3 + total),
    )


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Any:
    @contextmanager
    def present(_: object) -> Any:
        yield

    stranger = SimpleNamespace(
        present=present,
        start_paused=lambda: None,
        machine=SimpleNamespace(read=lambda _: "1000000\n1048576"),
        guest=SimpleNamespace(domain=STRANGER, console="/log"),
    )
    monkeypatch.setattr(limits.Throwaway, "beside", lambda *_: stranger)
    return SimpleNamespace(topology=LAB, stranger=stranger)


NODE: Any = SimpleNamespace(name="node", read=lambda _: FREE)


def memory(fleet: Any, monkeypatch: pytest.MonkeyPatch, found: Spent) -> None:
    monkeypatch.setattr(limits, "exhaust", lambda *_: found)
    limits.test_memory_runs_out_in_one_group(fleet, NODE)


KILL = "memory oom_kill"


def test_an_attacker_that_its_own_limit_stopped_is_a_pass(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(fleet, monkeypatch, spent(reached=180 * MIB, status=-9, event=KILL, total=1))


@pytest.mark.parametrize(
    ("found", "fact"),
    [
        (spent(reached=WEB.most_memory + MIB), "is its limit"),
        (spent(reached=180 * MIB, status=-9, total=1), "0 of them in the group"),
        (spent(reached=180 * MIB, status=-9, event=KILL, total=2), "1 of them in the group"),
        (spent(reached=180 * MIB, status=-9, event=KILL, total=1, gone=BLUE.domain), "blue.web"),
    ],
)
def test_memory_beyond_the_limit_or_harm_elsewhere_is_a_fail(
    fleet: Any, monkeypatch: pytest.MonkeyPatch, found: Spent, fact: str
) -> None:
    with pytest.raises(AssertionError, match=fact):
        memory(fleet, monkeypatch, found)


@pytest.mark.parametrize("found", [spent(reached=20 * MIB), spent(reached=20 * MIB, status=-14)])
def test_an_attacker_that_stopped_for_another_reason_is_inconclusive(
    fleet: Any, monkeypatch: pytest.MonkeyPatch, found: Spent
) -> None:
    with pytest.raises(InstrumentError):
        memory(fleet, monkeypatch, found)


def test_a_node_without_free_memory_is_not_attacked(fleet: Any) -> None:
    node: Any = SimpleNamespace(name="node", read=lambda _: "MemAvailable: 300000 kB")
    with pytest.raises(InstrumentError, match="free memory"):
        limits.test_memory_runs_out_in_one_group(fleet, node)


def threads(fleet: Any, monkeypatch: pytest.MonkeyPatch, reached: int, event: str = "") -> None:
    monkeypatch.setattr(limits, "exhaust", lambda *_: spent(STRANGER, reached=reached, event=event))
    limits.test_threads_are_bounded(fleet, HOST)


def test_threads_are_judged_by_number_and_refusals(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads(fleet, monkeypatch, THREADS - 8, "pids max")
    with pytest.raises(AssertionError):
        threads(fleet, monkeypatch, 4 * THREADS)
    for reached, event in ((THREADS - 8, ""), (5, "pids max")):
        with pytest.raises(InstrumentError):
            threads(fleet, monkeypatch, reached, event)


def logs(fleet: Any, monkeypatch: pytest.MonkeyPatch, reached: int, sizes: str) -> None:
    fleet.stranger.machine.read = lambda _: sizes
    monkeypatch.setattr(limits, "exhaust", lambda *_: spent(STRANGER, reached=reached))
    limits.test_logs_are_bounded(fleet, HOST)


def test_logs_are_judged_by_what_is_kept(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logs(fleet, monkeypatch, 4 * MIB, "1048576\n900000")
    with pytest.raises(AssertionError):
        logs(fleet, monkeypatch, 4 * MIB, "4194304")
    for reached, sizes in ((MIB, "1048576"), (4 * MIB, "1000")):
        with pytest.raises(InstrumentError):
            logs(fleet, monkeypatch, reached, sizes)


def shares(web: float, db: float = 0, own: float = 0, throttled: int = 5) -> Shares:
    """Return shares of a measurement of a million microseconds, from percentages."""
    used = {"red.web": (web, throttled), "red.db": (db, 0)}
    groups = {
        name: {"usage_usec": int(part * 10**4), "nr_throttled": count} for name, (part, count) in used.items()
    }
    return Shares.model_validate(
        {"elapsed": 10**6, "processors": 1, "own": int(own * 10**4), "groups": groups}
    )


def cpu(fleet: Any, monkeypatch: pytest.MonkeyPatch, *found: Shares) -> None:
    answers = list(found)
    monkeypatch.setattr(limits.cpu_load, "measured", lambda *_, **__: answers.pop(0))
    limits.test_cpu_time_is_shared(fleet)


GOOD = (shares(79), shares(4, 4, 88), shares(47, 46))


def test_fair_shares_are_a_pass(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu(fleet, monkeypatch, *GOOD)


@pytest.mark.parametrize(
    ("number", "found"),
    [(0, shares(97)), (1, shares(45, 45, 9)), (2, shares(90, 5)), (2, shares(5, 90))],
)
def test_a_share_of_others_is_a_fail(
    fleet: Any, monkeypatch: pytest.MonkeyPatch, number: int, found: Shares
) -> None:
    answers = [found if index == number else good for index, good in enumerate(GOOD)]
    with pytest.raises(AssertionError):
        cpu(fleet, monkeypatch, *answers)


@pytest.mark.parametrize("alone", [shares(40), shares(79, throttled=0)])
def test_a_quota_that_is_not_met_is_inconclusive(
    fleet: Any, monkeypatch: pytest.MonkeyPatch, alone: Shares
) -> None:
    with pytest.raises(InstrumentError, match="quota"):
        cpu(fleet, monkeypatch, alone, *GOOD[1:])


def disks(fleet: Any, monkeypatch: pytest.MonkeyPatch, *rates: tuple[Rate, ...]) -> None:
    @contextmanager
    def reading(*_: object) -> Any:
        yield

    answers = list(rates)
    monkeypatch.setattr(limits.disk_load, "reading", reading)
    monkeypatch.setattr(limits.disk_load, "rate", lambda *_: answers.pop(0))
    limits.test_disk_bandwidth_is_bounded(fleet)


CALM, LIMIT = Rate(0, 600, 6.0), 4 * MIB


def test_disks_within_their_limit_are_a_pass(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disks(fleet, monkeypatch, (CALM,), (Rate(6 * LIMIT, 192, 6.0), Rate(0, 400, 6.0)), (CALM,))


@pytest.mark.parametrize(
    "loud",
    [
        (Rate(9 * LIMIT, 280, 6.0), Rate(0, 400, 6.0)),
        (Rate(6 * LIMIT, 9000, 6.0), Rate(0, 400, 6.0)),
        (Rate(6 * LIMIT, 192, 6.0), Rate(0, 50, 6.0)),
    ],
)
def test_too_much_for_one_or_too_little_for_another_is_a_fail(
    fleet: Any, monkeypatch: pytest.MonkeyPatch, loud: tuple[Rate, ...]
) -> None:
    with pytest.raises(AssertionError):
        disks(fleet, monkeypatch, (CALM,), loud, (CALM,))


@pytest.mark.parametrize(
    ("loud", "later"),
    [(Rate(2 * LIMIT, 64, 6.0), CALM), (Rate(6 * LIMIT, 192, 6.0), Rate(0, 100, 6.0))],
)
def test_a_slow_machine_is_inconclusive(
    fleet: Any, monkeypatch: pytest.MonkeyPatch, loud: Rate, later: Rate
) -> None:
    with pytest.raises(InstrumentError):
        disks(fleet, monkeypatch, (CALM,), (loud, Rate(0, 400, 6.0)), (later,))
