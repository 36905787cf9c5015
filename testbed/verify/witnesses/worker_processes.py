"""The processes behind a node's guests, as the node's kernel describes them (PRC-03, PRC-04, STO-05)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from testbed.errors import InstrumentError
from testbed.model.topology import FIRST_WORKER_UID
from testbed.topology_file.validation import WORKERS_PER_NODE
from testbed.untrusted.text import line
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses.syscall_filter import Filter

_PROGRAM = Path(__file__).parents[2] / "payload/workers.py"
_REQUEST = {
    "folder": "/run/libvirt/qemu",
    "program": "/usr/bin/qemu-system-",
    "accounts": [FIRST_WORKER_UID, FIRST_WORKER_UID + WORKERS_PER_NODE - 1],
}
_TIMEOUT = 60.0  # seconds


class Thread(NamedTuple):
    """What the kernel holds against a thread.

    Args:
        seccomp: mode of seccomp; 2 is a filter (proc(5)).
        filters: number of its filters.
        bound: 1 if no program that it starts gains privileges (PR_SET_NO_NEW_PRIVS).
        capabilities: union of its inheritable, permitted, effective and ambient sets.
    """

    seccomp: int
    filters: int
    bound: int
    capabilities: int


@dataclass(frozen=True, slots=True)
class Worker:
    """One process.

    Args:
        name: libvirt's name of the guest, or the number of a process that libvirt does not know.
        threads: one entry for all threads that are alike.
        mounts: its mount namespace.
        devices: nodes in its /dev, each as kind, numbers and path.
        sockets: its sockets of networks, each as protocol, local address and state.
        core: soft and hard limit of a core file's size.
        filters: system-call filters of its first thread.
        unread: why these cannot be read; empty if they were.
    """

    name: str
    pid: int
    threads: tuple[Thread, ...]
    mounts: str
    devices: tuple[str, ...]
    sockets: tuple[str, ...]
    core: tuple[str, ...]
    filters: tuple[Filter, ...] = ()
    unread: str = ""


@dataclass(frozen=True, slots=True)
class NodeProcesses:
    """The workers of a node, and the mount namespace of its root partition."""

    mounts: str
    workers: tuple[Worker, ...]


_ANSWER = TypeAdapter(NodeProcesses)


def observed(fleet: Fleet, node: MachineView) -> NodeProcesses:
    """Return the workers of a node; the checks of a phase share one look.

    Raises:
        InstrumentError: the node's answer is not complete: a guest of the topology has no worker in it.
    """
    return fleet.observe_once(f"workers of {node.name}", lambda: _read(fleet, node))


def _read(fleet: Fleet, node: MachineView) -> NodeProcesses:
    answer = node.python(_PROGRAM.read_text(), _REQUEST, _TIMEOUT, function="collect")
    try:
        found = _ANSWER.validate_python(answer)
    except ValidationError as error:
        raise InstrumentError(
            f"the workers of {node.name} cannot be read",
            fact=line(str(error.errors(include_url=False)[:2])),
            remedy="repeat the check",
        ) from error
    names = {worker.name for worker in found.workers}
    missing = [guest.label for guest in fleet.topology.guests_on(node.name) if guest.domain not in names]
    if missing:
        raise InstrumentError(
            f"{len(missing)} guests on {node.name} have no worker",
            fact=", ".join(missing[:6]),
            remedy="run `testbed up`",
        )
    return found
