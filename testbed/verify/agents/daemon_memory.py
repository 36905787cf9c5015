"""What becomes of libvirtd when a guest's agent fills its memory, and of the guests of its node (DEV-03)."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.errors import InstrumentError, TestbedError
from testbed.hosts.rules import UnseenError
from testbed.plan.host_config.daemon_limits import MEMORY
from testbed.verify.agents.memory_peaks import sizes
from testbed.verify.fleet import MachineView

BEYOND = 96 * 2**20  # octets above the limit, where the attack stops that no limit has stopped
_UNIT = "libvirtd"
_SERVICES = "/sys/fs/cgroup/system.slice"  # counts what was in a group that is gone, too
# Process, its limit, its sizes, processes ended for want of memory (among services, and anywhere), free
# memory, and workers. The root of all groups has no file of a limit.
_LOOK = (
    f"pid=$(systemctl show -P MainPID {_UNIT}); echo pid $pid; read -r group < /proc/$pid/cgroup || exit 1; "
    "limit=max; read -r limit < /sys/fs/cgroup${group#0::}/memory.max; echo limit $limit; "
    "grep -E '^Vm(HWM|RSS):' /proc/$pid/status || exit 1; "
    "while read -r name value; do [ $name != oom_kill ] || echo own $value; done "
    f"< {_SERVICES}/memory.events; "
    "while read -r name value; do [ $name != oom_kill ] || echo killed $value; done < /proc/vmstat; "
    "while read -r name value _; do [ $name != MemAvailable: ] || echo free $value; done < /proc/meminfo; "
    "cd /run/libvirt/qemu && for file in *.pid; do [ $file = driver.pid ] || { "
    "worker=; read -r worker < $file; [ -e /proc/$worker ] || worker=gone; "
    "echo worker ${file%.pid} $worker; }; done 2>/dev/null; true"
)
_READY = f"systemctl is-active -q {_UNIT} && virsh -q list >/dev/null"
# One that has more than its limit gives nothing back.
_RECOVER = (
    f"while read -r name size _; do [ $name != VmHWM: ] || [ $size -le {MEMORY // 1024} ] || "
    f"systemctl restart {_UNIT}; done < /proc/$(systemctl show -P MainPID {_UNIT})/status; "
    f"for round in $(seq 60); do {_READY} && exit 0; sleep 1; done; exit 1"
)
_NUMBER = re.compile(r"^(pid|own|killed|free) (\d{1,18})$", re.MULTILINE)
_LIMIT = re.compile(r"^limit (max|\d{1,18})$", re.MULTILINE)
_WORKER = re.compile(r"^worker (\S{1,200}) (\d{1,9}|gone)$", re.MULTILINE)
_SETTLING, _PAUSE = 90.0, 1.0  # seconds in which the attack must have an end, and between two looks


@dataclass(frozen=True, slots=True)
class Daemon:
    """libvirtd of a node, and what the kernel has counted there.

    Args:
        limit: octets that its control group may have; none if there is no limit.
        peak: octets that the process had at most.
        own: processes of services that the kernel has ended for want of memory.
        killed: likewise, on the whole node.
        free: octets of memory that the node has left.
        workers: process of each worker, by domain.
    """

    pid: int
    limit: int | None
    peak: int
    own: int
    killed: int
    free: int
    workers: Mapping[str, str]


def parsed(printed: str) -> Daemon:
    """Return what a node tells of its libvirtd.

    Args:
        printed: output of the look; untrusted.

    Raises:
        InstrumentError: a part is missing.
    """
    numbers = {name: int(value) for name, value in _NUMBER.findall(printed)}
    limit = _LIMIT.search(printed)
    if len(numbers) < 4 or limit is None:
        raise InstrumentError(
            "libvirtd of a node cannot be seen", fact=printed[:200], remedy="run `testbed status`"
        )
    return Daemon(
        pid=numbers["pid"],
        limit=None if limit[1] == "max" else int(limit[1]),
        peak=sizes(printed)[0],
        own=numbers["own"],
        killed=numbers["killed"],
        free=numbers["free"] * 1024,
        workers=dict(_WORKER.findall(printed)),
    )


def look(node: MachineView) -> Daemon:
    """Return libvirtd of a node as it is.

    Raises:
        InstrumentError: it does not run, or the node does not tell.
    """
    return parsed(node.read(_LOOK))


def require_room(node: MachineView, daemon: Daemon) -> None:
    """Require that a node has memory for the whole attack, so that it cannot hit the node.

    Raises:
        InstrumentError: it has not.
    """
    most = MEMORY + 2 * BEYOND
    if daemon.free < most:
        raise InstrumentError(
            f"{node.name} has too little free memory for the attack",
            fact=f"{daemon.free >> 20} MiB, and {most >> 20} MiB are needed",
            remedy="raise the memory of the node",
        )


def settled(node: MachineView, before: Daemon) -> Daemon:
    """Return libvirtd when the attack has ended it, and it answers again; or when it has passed its limit.

    Raises:
        InstrumentError: it does neither in time, so that the attack met nothing.
    """
    end, fact = time.monotonic() + _SETTLING, "it does not answer"
    while time.monotonic() < end:
        try:
            found = look(node)
            if found.pid == before.pid and found.peak > MEMORY:
                return found
            if found.pid != before.pid and node.run(_READY).status == 0:
                return found
            fact = f"its memory had {found.peak >> 20} MiB at most"
        except TestbedError as error:  # it is between two starts
            fact = getattr(error, "fact", "it does not answer")
        time.sleep(_PAUSE)
    raise InstrumentError(f"libvirtd of {node.name} met no limit", fact=fact, remedy="repeat the check")


def recover(node: MachineView) -> None:
    """Let libvirtd begin with little memory again if it has passed its limit, and wait until it answers.

    Raises:
        InstrumentError: it does not in time.
    """
    node.read(_RECOVER)


def faults(name: str, before: Daemon, after: Daemon) -> list[str]:
    """Return why libvirtd was not bounded, or what else has suffered from its end.

    Args:
        name: of libvirtd.

    Raises:
        UnseenError: no worker was seen.
    """
    if not before.workers:
        raise UnseenError("no worker was seen")
    found = []
    if before.limit != MEMORY:
        told = "no limit of memory" if before.limit is None else f"a limit of {before.limit >> 20} MiB"
        found.append(f"{name} has {told}, not {MEMORY >> 20} MiB")
    own, killed = after.own - before.own, after.killed - before.killed
    if after.pid == before.pid:
        found.append(f"{name} has taken {after.peak >> 20} MiB, and may have {MEMORY >> 20} MiB")
    elif not own:
        found.append(f"{name} has ended, and not at its limit")
    if killed != own:
        found.append(f"the kernel has ended {killed} processes, {own} of them among services")
    gone = [domain for domain, pid in before.workers.items() if after.workers.get(domain) != pid]
    return found + [f"the worker of {domain} has ended" for domain in gone]
