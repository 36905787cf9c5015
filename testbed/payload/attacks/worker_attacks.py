"""Tries, in the place of workers, what a program that took one over would try (PRC-01, PRC-02, STO, RES-01).

It runs as root on nodes. Each attack is a child that wears a worker: control group, namespaces, account,
groups, profile, no capability, and its system-call filters; or a chosen account and the profile alone, so
that nothing but the profile can refuse. The child waits until its parent has read from the kernel what it
wears. An attempt opens, and changes nothing: a socket that is opened for writing ends with ENXIO after its
permissions were granted (open(2)); signal 0 only asks for the permission (kill(2)).
"""

from __future__ import annotations

import errno
import json
import os
import signal

from testbed.payload.attacks import confinement
from testbed.payload.attacks.attempts import Facts, open_path, outcome, watched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_RUN = "/run/libvirt/qemu"
_SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd")
_NOTHING, _EXECUTE = "/dev/null", "execute"


def collect(request: dict[str, object]) -> list[Facts]:
    """Return how each job ended: what the worker and its child wear, and an outcome for each attempt.

    An outcome is "done", the name of an error, or that of the signal that ended the child. A guest without a
    worker has an empty answer.

    Args:
        request: ``jobs``: domain, account (or None for the worker's own with all that confines it), and
            attempts as verb and target.
    """
    return [_job(str(domain), account, attempts) for domain, account, attempts in request["jobs"]]  # type: ignore[attr-defined]


def _job(domain: str, account: int | None, attempts: list[tuple[str, str]]) -> Facts:
    try:
        pid = int(confinement.text(f"{_RUN}/{domain}.pid"))
        worker = described(pid)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return {}
    filters = confinement.filters(pid) if account is None else ()

    def wear() -> None:
        wear_worker(pid, account, filters)

    worn: Facts = {}
    outcomes: list[str] = []
    for batch in _batches(attempts):
        seen, found = _tried(batch, wear)
        worn = worn or seen
        if seen != worn or len(found) != len(batch):
            return {"worker": worker, "worn": seen or worn, "outcomes": []}
        outcomes += found
    return {"worker": worker, "worn": worn, "outcomes": outcomes}


def _batches(attempts: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Return attempts in their order; one that starts a program is alone, since its child may end by it."""
    found: list[list[tuple[str, str]]] = []
    for attempt in attempts:
        if not found or _EXECUTE in (attempt[0], found[-1][-1][0]):
            found.append([])
        found[-1].append(attempt)
    return found


def described(pid: int) -> Facts:
    """Return what the kernel holds against a process."""
    fields = confinement.fields(confinement.text(f"/proc/{pid}/status"))
    return {
        "label": confinement.label(pid),
        "accounts": [int(word) for word in fields["Uid"].split()],
        "groups": [int(word) for word in fields["Gid"].split()],
        "others": sorted(int(word) for word in fields["Groups"].split()),
        "capabilities": [int(fields[name], 16) for name in _SETS],
        "bound": int(fields["NoNewPrivs"]),
        "filters": [int(fields["Seccomp"]), int(fields["Seccomp_filters"])],
        "namespaces": {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in confinement.NAMESPACES},
        "group": confinement.text(f"/proc/{pid}/cgroup").strip(),
    }


def wear_worker(pid: int, account: int | None, filters: tuple[bytes, ...]) -> None:
    """Take the place of a worker."""
    fields = confinement.fields(confinement.text(f"/proc/{pid}/status"))
    profile = confinement.label(pid).partition(" ")[0]
    confinement.join_group(pid)
    confinement.enter(pid, *confinement.NAMESPACES)
    confinement.limit_bounding_set(0)
    user, group = (int(fields[name].split()[1]) for name in ("Uid", "Gid"))
    others = [int(number) for number in fields["Groups"].split()]
    if account is not None:
        user, group, others = account, account, []
    os.setgroups(others)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    confinement.set_capabilities(0, 0, 0)
    confinement.put_on_profile(profile)
    if account is None and fields["NoNewPrivs"] == "1":
        confinement.put_on_filters(filters)


def _tried(tries: list[tuple[str, str]], wear: Callable[[], None]) -> tuple[Facts, list[str]]:
    """Make attempts in a child; return what it wears, and the outcomes, as many as it came to."""

    def begin() -> None:
        _silence()
        wear()

    def act(writer: int) -> None:
        for verb, target in tries:
            os.write(writer, f"{json.dumps(outcome(_VERBS[verb], target))}\n".encode())

    worn, text, status = watched(begin, act, described)
    found = [str(json.loads(line)) for line in text.decode().splitlines()]
    if worn and not found and tries[0][0] == _EXECUTE:
        # A filter has ended the child by a signal; or a program was started, and with it the pipe was closed.
        found = [signal.Signals(-status).name if status < 0 else "done"]
    return worn, found


def _silence() -> None:
    """Give a program that is started nothing to read, and nowhere to write."""
    nothing = os.open(_NOTHING, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)


def _connect(path: str) -> None:
    try:
        open_path(path, os.O_WRONLY)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise


def _list(path: str) -> None:
    if not os.listdir(path):
        raise FileNotFoundError(errno.ENOENT, path)


_VERBS: dict[str, Callable[[str], None]] = {
    "read": lambda path: open_path(path, os.O_RDONLY),
    "write": lambda path: open_path(path, os.O_WRONLY | os.O_APPEND),
    "list": _list,
    "connect": _connect,
    _EXECUTE: lambda path: os.execv(path, [path]),  # noqa: S606 - the path is the request's
    "signal": lambda number: os.kill(int(number), 0),
}
