"""Limits of libvirtd, which reads what the agents of all guests of a node answer (DEV-03). Pure.

The image brings an addition to Debian's unit (playbooks/roles/hypervisor), whose text is here as well. The
limits are read where they act: in the control group around the process. systemd does not set them when it
reads the unit again, so the repair writes them there; no guest is touched.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

UNIT = "libvirtd.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}.d/testbed.conf"
GROUP = f"/sys/fs/cgroup/system.slice/{UNIT}"
MEMORY, TASKS = 256 * 2**20, 512  # octets; threads and helpers
UNIT_TEXT = f"""\
# DEV-03: libvirtd reads what agents of guests answer, and needs 800 octets for each empty object. At the \
limit
# the kernel ends it, and it comes back each time; guests run on. A helper that meets the limit ends alone.
[Unit]
StartLimitIntervalSec=0
[Service]
MemoryMax={MEMORY}
MemorySwapMax=0
TasksMax={TASKS}
OOMPolicy=continue
RestartSec=1
"""
LIMITS = {"memory.max": MEMORY, "memory.swap.max": 0, "pids.max": TASKS}
CONTROL = "/run/systemd/system.control"  # of `systemctl set-property --runtime`
# Every place in which systemd.unit(5) finds the unit or an addition to it before Debian's.
_OWN = f"/etc/systemd/system/{UNIT}"
_PLACES = tuple(
    f"{folder}/{UNIT}"
    for folder in ("/etc/systemd/system", "/etc/systemd/system.control", "/run/systemd/system", CONTROL)
)
FILES = " ".join(f"{place} {place}.d/*" for place in _PLACES)
_FILE = re.compile(rf"(/(?:etc|run)/systemd/system(?:\.control)?/{re.escape(UNIT)}(?:\.d/[^:]+)?):(.*)")
# The limits around the process itself: one that was moved elsewhere has others, or none. The file of its
# number has no end of line, so that read(1) fails.
_PROCESS = "pid=; read -r pid < /run/libvirtd.pid; read -r group < /proc/${pid:-none}/cgroup"
LIVE = (
    f"{{ {_PROCESS} && folder=/sys/fs/cgroup${{group#0::}} && "
    f"for name in {' '.join(LIMITS)}; do value=none; read -r value < $folder/$name; "
    'echo "$name $value"; done; } 2>/dev/null || echo libvirtd does not run'
)
_DECLARED = "unit as declared"
CLOSED = "\n".join((_DECLARED, *(f"{name} {value}" for name, value in LIMITS.items())))
LIMIT = (
    f"{{ {_PROCESS}; }} 2>/dev/null && {{ [ $group = 0::{GROUP.removeprefix('/sys/fs/cgroup')} ] || "
    f"echo $pid > {GROUP}/cgroup.procs; "
    f"{'; '.join(f'echo {value} > {GROUP}/{name}' for name, value in LIMITS.items())}; }}; true"
)
# A file that is right stays: one that was written again counts as another (docs/decisions/0036).
_REPAIR = (
    f"rm -rf {' '.join(f'{place} {place}.d' for place in _PLACES if place != _OWN)} {_OWN}; "
    f"rmdir {CONTROL} 2>/dev/null; mkdir -p {_OWN}.d; "
    f'for file in {_OWN}.d/*; do [ "$file" = {UNIT_FILE} ] && [ ! -L "$file" ] || rm -rf "$file"; done; '
    f'text={shlex.quote(UNIT_TEXT)}; printf %s "$text" | cmp -s - {UNIT_FILE} || '
    f'printf %s "$text" > {UNIT_FILE} && systemctl daemon-reload && {{ {LIMIT}; }}'
)


def bounds(texts: str) -> tuple[tuple[str, ...], str, str, Callable[..., str]]:
    """Return the setting that libvirtd has its limits: how it is observed, its value, its repair.

    Args:
        texts: the command that prints small files, each line behind the name of its file.
    """
    return ((texts, LIVE), CLOSED, _REPAIR, told)


def told(texts: str, live: str) -> str:
    """Return unit and limits of libvirtd as they are; `CLOSED` if they are the declared ones."""
    files = [found for found in map(_FILE.fullmatch, texts.split("\n")) if found]
    own = "".join(f"{found[2]}\n" for found in files if found[1] == UNIT_FILE)
    foreign = sorted({found[1] for found in files if found[1] != UNIT_FILE})
    return "\n".join(
        (
            _DECLARED if own == UNIT_TEXT else "unit not as declared",
            live,
            *(f"unit changed by {path}" for path in foreign),
        )
    )
