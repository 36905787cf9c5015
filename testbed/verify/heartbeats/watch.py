"""Takes heartbeats of all guests and nodes during a whole run, beside its checks (DOS-01).

A beat is one short command on each node and a call of its libvirt. Nothing waits for it: commands and calls
of checks use the same connections at the same time. Nothing of it reaches a guest: checks would hear a
question to guests, and find the socket that asks it. So interfaces and disks are tried once more at the end.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from dataclasses import dataclass, field, replace

from testbed import timeouts
from testbed.errors import TestbedError
from testbed.hosts.rules import UnseenError
from testbed.model.topology import Guest
from testbed.report.result import CheckResult, Verdict
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.heartbeats import look
from testbed.verify.heartbeats.beats import Judgement, Reading, judged, lives

CONTROL = "DOS-01"
OBJECTIVE = "Every guest runs and answers, and its node can be managed, during the whole run"
_CALM, _PERIOD = 3.0, 15.0  # seconds between two beats before the checks, and during them
_LEAST_CALM = 4  # readings before the checks
_PATIENCE = 30.0  # seconds that the checks wait for them
_LAST = 20  # questions to each guest at the end
_API = 10.0  # seconds in which libvirt answers
_NODE = timeouts.HEARTBEAT
# One shell of built-in commands reads everything: each other process would cost more than all of it.
_READ = """read -r up rest < /proc/uptime; echo "up $up"
one() {
pid=0; start=0; ran=0; domain=$1
read -r pid < /run/libvirt/qemu/$domain.pid
if read -r stat < /proc/$pid/stat; then
for thread in /proc/$pid/task/*; do
name=; read -r name < $thread/comm
case $name in "CPU "*|"ALL CPUs"*) ns=0; read -r ns rest < $thread/schedstat; ran=$((ran + ns));; esac
done
set -- ${stat##*) }; shift 19; start=$1
else pid=0; fi
echo "$domain $pid $start $ran"
} 2>/dev/null
"""


def reading_command(guests: Sequence[Guest]) -> str:
    """Return the shell command that reads the state of guests on their node."""
    return _READ + "\n".join(shlex.join(["one", guest.domain]) for guest in guests)


@dataclass
class _Heart:
    """The beats of one node."""

    guests: tuple[Guest, ...]
    calm: list[Reading] = field(default_factory=list)
    run: list[Reading] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)


class HeartWatch:
    """Heartbeats of a run of all controls, and the results from them; others take none.

    Args:
        only: beginnings of the ids of the requested controls; all controls if empty.
    """

    def __init__(self, fleet: Fleet, only: Sequence[str] = ()) -> None:
        self._fleet = replace(fleet, evidence=fleet.evidence.separate())
        topology = fleet.topology
        self._hearts = {
            node.name: _Heart(topology.guests_on(node.name))
            for node in topology.nodes
            if not only and topology.guests_on(node.name)
        }
        self._over, self._started = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self.results: list[CheckResult] = []  # one for each node with guests, at the end

    def begin(self) -> None:
        """Begin to take beats of a calm lab."""
        for name in self._hearts:
            thread = threading.Thread(target=self._beat, args=(name,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def attacked(self) -> None:
        """Take the beats from now on as those of a lab under attack; wait until enough were calm."""
        end = time.monotonic() + _PATIENCE
        for heart in self._hearts.values():
            heart.enough.wait(max(0.0, end - time.monotonic()))
        self._started.set()

    def stop(self) -> None:
        """Take a last beat, and stop."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def judge(self, *, last_look: bool) -> None:
        """Write all beats down as evidence, and judge them.

        Args:
            last_look: whether to look at all guests once more.
        """
        with self._fleet.evidence.of("heartbeats") as written:
            last = {
                name: self._last(name, heart) if last_look else (Verdict.PASS, "")
                for name, heart in self._hearts.items()
            }
            for name, heart in self._hearts.items():
                for reading in (*heart.calm, *heart.run):
                    self._fleet.evidence.record(name, "heartbeat", "beat", str(reading), time.time())
        for name, heart in self._hearts.items():
            names = {guest.domain: guest.label for guest in heart.guests}
            beats = judged(heart.calm, heart.run, names, self._fleet.interruptions.of(name))
            self.results.append(_row(name, heart, beats.worse(*last[name]), tuple(written)))

    def among(self, results: Sequence[CheckResult]) -> list[CheckResult]:
        """Return results of checks with those of heartbeats.

        Beats that show nothing are told with the pass of the node's check; others are a result of their own.
        """
        well = {row.case: row.reason for row in self.results if row.verdict is Verdict.PASS}
        told = [
            replace(row, reason=well[row.case])
            if row.id == CONTROL and row.verdict is Verdict.PASS and row.case in well
            else row
            for row in results
        ]
        return [*told, *(row for row in self.results if row.verdict is not Verdict.PASS)]

    @property
    def told(self) -> list[str]:
        """What the beats of each node show, in words."""
        return [f"heartbeats of {row.case}: {row.verdict}: {row.reason}" for row in self.results]

    def _last(self, name: str, heart: _Heart) -> tuple[Verdict, str]:
        """Return whether all guests of a node still answer and write, after the checks.

        As a check is, it is repeated if it observes nothing.
        """
        machine = MachineView(self._fleet.lab.host(name), self._fleet.evidence)
        reason = ""
        for _ in range(2):
            try:
                found = look.faults(self._fleet, machine, heart.guests, _LAST)
            except (TestbedError, UnseenError) as error:
                reason = f"at the end: {error}"
            else:
                return (Verdict.FAIL, f"at the end: {'; '.join(found)}") if found else (Verdict.PASS, "")
        return Verdict.INCONCLUSIVE, reason

    def _beat(self, name: str) -> None:
        """Take beats of one node until the run is over."""
        heart = self._hearts[name]
        pool = ThreadPoolExecutor(max_workers=1)
        call: Future[float] | None = None
        last = False
        while not last:
            last = self._over.is_set()
            if not any(item.ended is None for item in self._fleet.interruptions.of(name)):
                if call is None or call.done():
                    call = pool.submit(self._call, name)
                calm = not self._started.is_set()
                kept = heart.calm if calm else heart.run
                kept.append(self._read(name, heart, call))
                if calm and len(kept) >= _LEAST_CALM:
                    heart.enough.set()
            self._over.wait(_PERIOD if heart.enough.is_set() else _CALM)
        pool.shutdown(wait=False, cancel_futures=True)  # a call that libvirt never answers ends by itself

    def _read(self, name: str, heart: _Heart, call: Future[float]) -> Reading:
        """Read the state of a node and of its guests."""
        host = self._fleet.lab.host(name)
        asked = time.monotonic()
        found = Reading(asked, asked)
        try:
            done = host.sudo(reading_command(heart.guests), timeout=_NODE)
            up, guests = lives(done.text)
        except (TestbedError, ValueError):
            return replace(found, answered=time.monotonic())
        return Reading(asked, time.monotonic(), up, self._answered(call), guests)

    def _call(self, name: str) -> float:
        began = time.monotonic()
        self._fleet.lab.nodes[name].hypervisor.count()
        return time.monotonic() - began

    @staticmethod
    def _answered(call: Future[float]) -> float | None:
        """Return the seconds in which libvirt has answered; None if it has not."""
        try:
            return call.result(_API)
        except (LateError, TestbedError):
            return None


def _row(name: str, heart: _Heart, found: Judgement, evidence: tuple[str, ...]) -> CheckResult:
    return CheckResult(
        id=CONTROL,
        case=name,
        objective=OBJECTIVE,
        severity="high",
        verdict=found.verdict,
        reason=found.reason,
        simulated=False,
        duration_s=round(sum(item.answered - item.asked for item in (*heart.calm, *heart.run)), 2),
        evidence=evidence,
    )
