"""A probe with a worker's identity: the powers of an attacker who controls one QEMU process.

The probe wears the worker's control group, namespaces, account, groups, AppArmor profile and system-call
filters, and has no capability; what it wears is read from the kernel and compared with the worker. Its
positive control is the worker's own volume: it must open before and after all attempts, or nothing was
observed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from testbed.errors import InstrumentError
from testbed.model.topology import IMAGES, Guest
from testbed.untrusted.answers import formed
from testbed.verify.attackers import programs
from testbed.verify.fleet import MachineView

_TIMEOUT = 120.0  # seconds
_DONE = "done"


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt: ``read``, ``write``, ``list``, ``execute``, ``connect`` to a path; ``signal`` a process."""

    verb: str
    target: str

    def __str__(self) -> str:
        return f"{self.verb} {self.target}"


@dataclass(frozen=True, slots=True)
class Job:
    """Attempts in the place of one guest's worker.

    Args:
        uid: account to take instead of the worker's; it has the permissions for all attempts, so that only
            the AppArmor profile can refuse them (PRC-02). The positive control is then the base image,
            which every profile allows.
    """

    guest: Guest
    attempts: tuple[Attempt, ...]
    uid: int | None = None

    @property
    def subject(self) -> str:
        """The beginning of a sentence about attempts that succeeded."""
        if self.uid is None:
            return f"the worker of {self.guest.label} reached"
        return f"the profile of {self.guest.label} alone would allow"

    @property
    def controlled(self) -> tuple[Attempt, ...]:
        """The attempts between two positive controls."""
        own = Attempt("read", self.guest.root_disk if self.uid is None else f"{IMAGES}/guest/root.raw")
        return own, *self.attempts, own


def jobs_of(
    attacker: Guest, attempts: Mapping[int, Sequence[Attempt]], own_account: Sequence[Attempt] = ()
) -> list[Job]:
    """Return the jobs of one attacker: with everything that its worker wears, and with its profile alone.

    Args:
        attempts: by the account that may do them, so that only the profile can refuse.
        own_account: further ones, which are not tried with the profile alone.
    """
    together = [attempt for some in attempts.values() for attempt in some]
    alone = [Job(attacker, tuple(some), uid) for uid, some in attempts.items()]
    return [Job(attacker, (*together, *own_account)), *alone]


def in_words(jobs: Sequence[Job], found: Sequence[Collection[Attempt]]) -> list[str]:
    """Return what succeeded, in words."""
    return [
        f"{job.subject}: {', '.join(sorted(map(str, attempts)))}"
        for job, attempts in zip(jobs, found, strict=True)
        if attempts
    ]


class Layers(BaseModel):
    """What a process wears.

    Args:
        accounts: real, effective, saved and file system's user id; ``groups`` likewise.
        others: its further groups.
        capabilities: inheritable, permitted, effective, ambient and bounding set.
        bound: 1 if no program that it starts gains privileges.
        filters: mode of seccomp, and number of its filters.
        group: its control group.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str
    accounts: tuple[int, ...]
    groups: tuple[int, ...]
    others: tuple[int, ...]
    capabilities: tuple[int, ...]
    bound: int
    filters: tuple[int, ...]
    namespaces: dict[str, str]
    group: str


class _Missing(BaseModel):
    """The answer about a guest that has no worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Ended(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    worker: Layers
    worn: Layers
    outcomes: tuple[Annotated[str, Field(max_length=40)], ...]


_ANSWER = TypeAdapter(list[Annotated[_Ended | _Missing, Field(union_mode="left_to_right")]])


def processes(machine: MachineView, guests: Sequence[Guest]) -> dict[str, int]:
    """Return the process id of every worker of a machine's libvirt, by domain.

    Workers that the topology does not know are included. A machine without guests may have none.

    Args:
        machine: a node.
        guests: the topology's guests on it.

    Raises:
        InstrumentError: there are guests and no worker, or the process id of one cannot be read.
    """
    text = machine.read(
        "cd /run/libvirt/qemu && for file in *.pid; do [ $file = driver.pid ] || echo ${file%.pid} "
        "$(cat $file); done"
    )
    lines = [line.split() for line in text.splitlines()]
    odd = [line for line in lines if len(line) != 2 or not line[1].isdecimal()]
    if odd or (guests and not lines):
        fact = f"{len(odd)} of {len(lines)} process ids cannot be read: {odd[:2]}" if odd else repr(text[:80])
        raise InstrumentError(
            f"the workers of {machine.name} cannot be told", fact=fact, remedy="run `testbed up`"
        )
    return {domain: int(number) for domain, number in lines}


def all_succeeded(machine: MachineView, jobs: Sequence[Job]) -> list[set[Attempt]]:
    """Make attempts in the place of workers, and return for each job those that succeeded.

    Raises:
        InstrumentError: a guest has no worker, the probe did not run to its end or did not wear what it must,
            or its positive control did not open before and after.
    """
    request = {
        "jobs": [
            [job.guest.domain, job.uid, [[item.verb, item.target] for item in job.controlled]] for job in jobs
        ]
    }
    answer = programs.collect(machine, "worker_attacks", request, _TIMEOUT)
    try:
        ended = formed(_ANSWER, answer)
    except ValueError as error:
        raise InstrumentError(
            f"the probe in workers of {machine.name} answered in another form",
            fact=str(error),
            remedy="repeat the check; report it as a bug if that does not help",
        ) from error
    if len(ended) != len(jobs):
        raise _broken(jobs[len(ended) :][0] if len(ended) < len(jobs) else jobs[0], len(ended), len(jobs))
    return [_judged(job, found) for job, found in zip(jobs, ended, strict=True)]


def _judged(job: Job, found: _Ended | _Missing) -> set[Attempt]:
    attempts = job.controlled
    if isinstance(found, _Missing):
        raise InstrumentError(
            f"{job.guest.label} has no worker", fact="it has no process", remedy="run `testbed up`"
        )
    if len(found.outcomes) != len(attempts):
        raise _broken(job, len(found.outcomes), len(attempts))
    if bare := bare_layers(found.worker, found.worn, job.uid):
        raise InstrumentError(
            f"the probe does not wear what {job.guest.label}'s worker wears",
            fact=", ".join(bare),
            remedy="repeat the check; report it as a bug if that does not help",
        )
    opened = [outcome == _DONE for outcome in found.outcomes]
    if not (opened[0] and opened[-1]):
        fact = f"{attempts[0].target} opened before: {found.outcomes[0]}, after: {found.outcomes[-1]}"
        raise InstrumentError(
            f"the probe in {job.guest.label}'s worker is blind", fact=fact, remedy="run `testbed up`"
        )
    return {item for item, done in zip(job.attempts, opened[1:-1], strict=True) if done}


def bare_layers(worker: Layers, worn: Layers, uid: int | None) -> list[str]:
    """Return the layers of a worker that its probe does not wear.

    Args:
        uid: account that it takes instead of the worker's, without filters; None if it wears everything.
    """
    same = ["label", "namespaces", "group"]
    if uid is None:
        same += ["accounts", "groups", "others", "bound", "filters"]
    bare = [name for name in same if getattr(worker, name) != getattr(worn, name)]
    if uid is not None and (set(worn.accounts) != {uid} or worn.others):
        bare.append("accounts")
    return [*bare, *(["capabilities"] if any(worn.capabilities) else [])]


def _broken(job: Job, count: int, wanted: int) -> InstrumentError:
    return InstrumentError(
        f"the probe in {job.guest.label}'s worker broke off",
        fact=f"{count} answers to {wanted} attempts",
        remedy="repeat the check",
    )
