"""Uses up, in the place of a worker, what its limits bound: memory, threads, logs (DOS-03, DOS-04, DOS-05).

It runs as root on nodes. The attack is a child that wears everything a worker wears. It stops by itself at a
given amount, so that a limit that is missing does not bring down the node. The kernel is asked to choose the
child before the worker if memory runs out, since the guest is needed afterwards; whether it has to choose is
up to the limit.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import signal
import stat
import time

from testbed.payload.attacks import confinement
from testbed.payload.attacks.attempts import Facts, watched
from testbed.payload.attacks.worker_attacks import described, wear_worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_RUN = "/run/libvirt/qemu"
_PIECE = 2**22  # bytes of memory that are taken at once
_STACK = 2**16  # bytes of a thread's stack
_LINE = b"x" * 79 + b"\n"
_TEXT = _LINE * 800  # about a pipe's capacity
_PATIENCE = 90  # seconds in which an attack ends
_COUNTERS = ("memory.events", "pids.events")


def collect(request: dict[str, object]) -> Facts:
    """Return how far an attack came, and what the kernel counted meanwhile.

    An answer has: ``worker`` and ``worn``, as of `worker_attacks`; ``reached``, in bytes or threads;
    ``status`` of the child; ``counted``: events of each worker's control groups, by domain, before and after;
    ``killed``: processes that the kernel has ended for lack of memory, likewise; ``workers``: process id of
    each worker, likewise. A guest without a worker has an empty answer.

    Args:
        request: ``domain``, ``kind`` ("memory", "threads" or "log"), and ``most``: where it stops by itself.
    """
    domain, kind, most = str(request["domain"]), str(request["kind"]), int(str(request["most"]))
    before = _counts()
    if domain not in before["workers"]:  # type: ignore[operator]
        return {}
    pid = int(confinement.text(f"{_RUN}/{domain}.pid"))
    filters = confinement.filters(pid)
    pipes = _pipes(pid) if kind == "log" else []

    def begin() -> None:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
        signal.alarm(_PATIENCE)
        wear_worker(pid, None, filters)

    def act(writer: int) -> None:
        _ATTACKS[kind](writer, most, pipes)

    worn, answer, status = watched(begin, act, described)
    for pipe in pipes:
        os.close(pipe)
    return {
        "worker": described(pid),
        "worn": worn,
        "reached": len(answer) * _UNITS[kind],
        "status": status,
        "before": before,
        "after": _counts(),
    }


def _counts() -> Facts:
    """Return events, kills and process ids, by the domain of each worker."""
    events: dict[str, dict[str, int]] = {}
    workers: dict[str, int] = {}
    for name in os.listdir(_RUN):
        domain, dot, kind = name.rpartition(".")
        if not dot or kind != "pid" or domain == "driver":
            continue
        pid = int(confinement.text(f"{_RUN}/{name}"))
        folder = f"/sys/fs/cgroup{confinement.text(f'/proc/{pid}/cgroup').strip().rpartition(':')[2]}"
        workers[domain] = pid
        found = events.setdefault(domain, {})
        while folder.count("/") > 4:  # down to that of the guest, below the slice of all guests
            for file in _COUNTERS:
                if os.path.exists(f"{folder}/{file}"):
                    for line in confinement.text(f"{folder}/{file}").splitlines():
                        key, _, count = line.partition(" ")
                        key = f"{file.partition('.')[0]} {key}"
                        found[key] = max(found.get(key, 0), int(count))
            folder = os.path.dirname(folder)
    lines = confinement.text("/proc/vmstat").splitlines()
    killed = next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return {"events": events, "workers": workers, "killed": killed}


def _pipes(pid: int) -> list[int]:
    """Return descriptors of the pipes into which a worker writes its logs."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            continue
        flags = next(
            line for line in confinement.text(f"/proc/{pid}/fdinfo/{name}").splitlines() if "flags" in line
        )
        if int(flags.split()[1], 8) & os.O_ACCMODE == os.O_WRONLY:
            found.append(os.open(path, os.O_WRONLY))
    return found


def _fill_memory(writer: int, most: int, _: list[int]) -> None:
    held = []
    for _piece in range(most // _PIECE):
        held.append(b"\1" * _PIECE)
        os.write(writer, b".")


def _start_threads(writer: int, most: int, _: list[int]) -> None:
    gate = _thread.allocate_lock()
    gate.acquire()
    _thread.stack_size(_STACK)
    for _thread_number in range(most):
        try:
            _thread.start_new_thread(gate.acquire, ())
        except RuntimeError:  # "can't start new thread"
            return
        os.write(writer, b".")


def _flood_logs(writer: int, most: int, pipes: list[int]) -> None:
    for pipe in pipes:
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        for _piece in range(most // len(_TEXT)):
            left = _TEXT
            while left:
                left = left[os.write(pipe, left) :]
            os.write(writer, b".")
    time.sleep(1.0)  # the reader of the pipes takes the rest


_ATTACKS: dict[str, Callable[[int, int, list[int]], None]] = {
    "memory": _fill_memory,
    "threads": _start_threads,
    "log": _flood_logs,
}
_UNITS = {"memory": _PIECE, "threads": 1, "log": len(_TEXT)}
