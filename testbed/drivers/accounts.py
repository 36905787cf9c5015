"""Who we are on the outer machine, and the account that emulators run as."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

_WORKER = "libvirt-qemu"


def give_to_worker(path: Path) -> None:
    """Let the emulator's account open a file; in a user namespace that account is our own."""
    if privileged():
        account = pwd.getpwnam(_WORKER)
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def privileged() -> bool:
    """Tell whether uid 0 here is the machine's root."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
