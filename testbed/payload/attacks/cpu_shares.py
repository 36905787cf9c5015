"""Measures who gets a node's CPU time while all want it: the root partition, and each worker (DOS-02).

It runs as root on nodes, and uses all the CPU time that it gets itself, as a service of the root partition
under load would. The kernel's counters are compared, so that a slow machine changes no result.
"""

from __future__ import annotations

import os
import time

_RUN = "/run/libvirt/qemu"
_ROOT = "/sys/fs/cgroup"
_STAT = ("usage_usec", "nr_throttled")


def collect(request: dict[str, object]) -> dict[str, object]:
    """Return CPU times in microseconds during some seconds.

    An answer has: ``elapsed``, ``processors``, ``own`` (CPU time that this program has got), and ``groups``:
    of each worker's outermost control group, by domain, the time it has used and how often it was throttled.

    Args:
        request: ``seconds``, and ``spin``: whether this program uses CPU time itself.
    """
    seconds, spin = float(str(request["seconds"])), bool(request["spin"])
    processors = os.cpu_count() or 1
    groups = _groups()
    began, before = time.monotonic(), {domain: _stat(path) for domain, path in groups.items()}
    children = [_child(seconds) for _ in range(processors)] if spin else []
    own = sum(_spent(child) for child in children)
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    after = {domain: _stat(path) for domain, path in groups.items()}
    elapsed = time.monotonic() - began
    return {
        "elapsed": int(elapsed * 1e6),
        "processors": processors,
        "own": own,
        "groups": {
            domain: {name: after[domain][name] - before[domain][name] for name in _STAT} for domain in groups
        },
    }


def _groups() -> dict[str, str]:
    found = {}
    for name in os.listdir(_RUN):
        domain, dot, kind = name.rpartition(".")
        if dot and kind == "pid" and domain != "driver":
            with open(f"{_RUN}/{name}", encoding="ascii") as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
                group = file.read().strip().rpartition(":")[2]
            found[domain] = f"{_ROOT}/{'/'.join(group.split('/')[1:3])}"
    return found


def _stat(path: str) -> dict[str, int]:
    """Return counters of a guest's control groups; those of throttling are of the groups inside."""
    found = dict.fromkeys(_STAT, 0)
    for folder, _, files in os.walk(path):
        if "cpu.stat" in files:
            with open(f"{folder}/cpu.stat", encoding="ascii") as file:
                fields = dict(line.split() for line in file)
            for name in _STAT:
                found[name] = max(found[name], int(fields.get(name, 0)))
    return found


def _child(seconds: float) -> int:
    child = os.fork()
    if not child:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        os._exit(0)
    return child


def _spent(child: int) -> int:
    """Return the CPU time that a child has got, in microseconds, after its end."""
    _, _, usage = os.wait4(child, 0)
    return int((usage.ru_utime + usage.ru_stime) * 1e6)
