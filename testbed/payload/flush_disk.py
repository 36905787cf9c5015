"""Writes out the root file system of a machine, its journal included, so that its disk can be read.

Freezing writes the journal to its places and marks the superblock (ext4's ``freeze_fs``); a sync leaves
the latest changes in the journal only. Both system calls follow one another at once: no program between them
could wait for a disk that is frozen.
"""

from __future__ import annotations

import fcntl
import os
import time

_FREEZE, _THAW = 0xC0045877, 0xC0045878  # FIFREEZE and FITHAW of linux/fs.h


def written_out(request: dict[str, str]) -> dict[str, float]:
    """Write out a file system; return the machine's clock before and after, in seconds since 1970.

    Args:
        request: ``folder``, the root of the file system.

    Raises:
        OSError: the kernel refuses.

    """
    os.sync()  # so that there is little left to do while it is frozen
    descriptor = os.open(request["folder"], os.O_RDONLY | os.O_DIRECTORY)
    before = time.time()
    try:
        fcntl.ioctl(descriptor, _FREEZE, 0)
        fcntl.ioctl(descriptor, _THAW, 0)
    finally:
        os.close(descriptor)
    return {"before": before, "after": time.time()}
