"""RAM of the outer machine."""

from __future__ import annotations

from pathlib import Path


def total() -> int:
    """Return the bytes of RAM that this machine, or the control group we are in, has."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    installed = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(installed, int(text)) if text.isdigit() else installed
