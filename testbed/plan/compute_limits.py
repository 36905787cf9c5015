"""Limits of guests that kernel and QEMU enforce: CPU, memory, threads and disks (DOS-02 to DOS-05). Pure.

They are observed where they act: in the control groups around the process of a worker, and in the throttle
groups of its QEMU. A worker that is outside of its groups has no limit, whatever its domain says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from testbed.model.topology import Guest
from testbed.plan.libvirt_xml.limits import SLICE, THREADS

Values = dict[str, str | int]  # of a resource

_FILES = ("cpu.max", "cpu.weight", "memory.max", "memory.swap.max", "pids.max")
# Of each worker: its domain, and the limits of each control group from the worker's own to that of the slice.
# Only built-in commands are used: an emulated machine needs 30 ms to start a program.
GROUPS = (
    "cd /run/libvirt/qemu 2>/dev/null || exit 0; for file in *.pid; do "
    # the file has no end of line, so that read(1) fails
    '[ "$file" != driver.pid ] || continue; pid=; read -r pid < "$file"; '
    "read -r group < /proc/${pid:-none}/cgroup || continue; "
    'echo "worker ${file%.pid}"; folder=/sys/fs/cgroup${group#0::}; '
    f'while [ "$folder" != /sys/fs/cgroup ] && [ "$folder" != /sys/fs/cgroup/{SLICE} ]; do '
    f"for name in {' '.join(_FILES)}; do "
    '[ -r "$folder/$name" ] && read -r value < "$folder/$name" && echo "$name $value"; done; '
    'folder=${folder%/*}; [ "$folder" ] || break; done; done 2>/dev/null; true'
)
_NONE = 0  # no limit, as for packets


@dataclass(frozen=True, slots=True)
class DiskThrottle:
    """What QEMU allows one disk.

    Args:
        group: disks of one group share its limits.
        operations: per second; 0 is no limit. A burst counts as the limit.
        octets: likewise, bytes per second.
    """

    group: str
    operations: int
    octets: int


def wanted(guest: Guest) -> Values:
    """Return the limits of a guest, as `observed` returns them."""
    return {
        "cpu": guest.most_cpu,
        "cpu_weight": guest.limits.cpu_weight,
        "memory": guest.most_memory,
        "swap": 0,
        "threads": THREADS,
        "disk_operations": guest.limits.disk_operations,
        "disk_bandwidth": guest.limits.disk_bandwidth,
    }


def observed(groups: Mapping[str, Sequence[str]], throttles: Sequence[DiskThrottle], domain: str) -> Values:
    """Return the limits of one guest that are in force.

    The lowest limit of all groups counts: percentage of a CPU, weight, bytes of memory, bytes of swap, number
    of threads. No limit is 0, and of swap "any".

    Args:
        groups: see `of_workers`.
        throttles: those of the guest's disks.
        domain: name of its domain.
    """
    limits: dict[str, list[float]] = {}
    for line in groups.get(domain, ()):
        name, _, value = line.partition(" ")
        limits.setdefault(name, []).append(_number(value))
    lowest = {name: min(values) for name, values in limits.items()}

    def of(name: str) -> int:
        value = lowest.get(name, inf)
        return _NONE if value == inf else int(value)

    # Weights of inner groups have no meaning, since each is alone in the one around it.
    swap = lowest.get("memory.swap.max", inf)
    return {
        "cpu": of("cpu.max"),
        "cpu_weight": int(limits["cpu.weight"][-1]) if "cpu.weight" in limits else _NONE,
        "memory": of("memory.max"),
        "swap": "any" if swap == inf else int(swap),
        "threads": of("pids.max"),
        "disk_operations": _together([(item.group, item.operations) for item in throttles]),
        "disk_bandwidth": _together([(item.group, item.octets) for item in throttles]),
    }


def of_workers(printed: str) -> dict[str, list[str]]:
    """Return the limits around each worker, by domain: lines of file and value, those of its scope last.

    Args:
        printed: output of `GROUPS`.
    """
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in printed.splitlines():
        if line.startswith("worker "):
            lines = found.setdefault(line.removeprefix("worker "), [])
        else:
            lines.append(line)
    return found


def _number(value: str) -> float:
    """Return a limit: a number, or of cpu.max the percentage of a CPU."""
    quota, _, period = value.partition(" ")
    if quota == "max":
        return inf
    if not (re.fullmatch(r"\d{1,19}", quota) and re.fullmatch(r"\d{1,19}|", period)):
        return inf  # what is not a limit does not limit
    return int(quota) * 100 / int(period) if period and int(period) else int(quota)


def _together(limits: Iterable[tuple[str, int]]) -> int:
    """Return what disks may do together; 0 if one of them has no limit."""
    groups = dict(limits)
    return _NONE if not groups or not all(groups.values()) else sum(groups.values())


def throttles(answer: object) -> list[DiskThrottle]:
    """Return the throttles of a guest's disks.

    Args:
        answer: of QEMU to the command query-block; untrusted.

    Raises:
        ValueError: it has another form.
    """
    found = []
    for device in answer if isinstance(answer, list) else [None]:
        inserted = device.get("inserted") if isinstance(device, dict) else None
        if not isinstance(inserted, dict):
            raise ValueError("a disk without content")
        group = inserted.get("group", inserted.get("node-name"))
        found.append(DiskThrottle(str(group)[:200], *(_rate(inserted, name) for name in ("iops", "bps"))))
    return found


def _rate(inserted: Mapping[str, object], name: str) -> int:
    rate, burst = (inserted.get(key, 0) for key in (name, f"{name}_max"))
    if not (type(rate) is int and type(burst) is int and 0 <= rate < 2**63 and 0 <= burst < 2**63):
        raise ValueError(f"the limit {name} is {str(rate)[:20]}, {str(burst)[:20]}")
    return max(rate, burst) if rate else _NONE


def repair(domain: str) -> str:
    """Return the command that restores the limits of a running guest that libvirt does not set.

    Args:
        domain: name of the guest's domain.
    """
    return (
        f"pid=$(cat /run/libvirt/qemu/{domain}.pid) && read -r group < /proc/$pid/cgroup && "
        "scope=/sys/fs/cgroup${group#0::} && scope=${scope%%.scope*}.scope && "
        f'echo {THREADS} > "$scope/pids.max" && echo 0 > "$scope/memory.swap.max"'
    )
