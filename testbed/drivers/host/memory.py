"""RAM of the outer machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def total() -> int:
    """Return the bytes of RAM of this machine, or the smallest limit of our control groups."""
    return bound()[0]


def bound() -> tuple[int, Path | None]:
    """Return the bytes of RAM as `total` does, and the file that limits them, if one does."""
    lines = (ROOT / "proc/meminfo").read_text().splitlines()
    installed = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    limit, file = min(_limits(), default=(installed, None))
    return (limit, file) if limit < installed else (installed, None)


def _limits() -> Iterator[tuple[int, Path]]:
    """Yield the memory limits (bytes) of our control group and its parents, and their files.

    Both cgroup v2 and v1 are read.
    """
    control = ROOT / "proc/self/cgroup"
    for line in control.read_text().splitlines() if control.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, name = ROOT / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = ROOT / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        here = mount / path.lstrip("/")
        for folder in (here, *here.parents):
            file = folder / name
            text = file.read_text().strip() if file.is_file() else ""
            if text.isdigit():
                yield int(text), file
            if folder == mount:
                break
