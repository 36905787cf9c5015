"""From which saved state a machine has started, as its disk says."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from testbed.drivers.snapshots.machine_memory import GOLDEN, MemorySnapshot, stored


def started_from(overlay: Path) -> MemorySnapshot | None:
    """Return the state that a machine has started from, or None if it booted from an image.

    Args:
        overlay: its first disk.

    Raises:
        OSError: the disk cannot be read, or the state has been removed.

    """
    folder = base_of(overlay).parent
    found = next((saved for saved in stored(folder.parent) if saved.folder == folder), None)
    if found is None and folder.name.startswith(GOLDEN):
        raise FileNotFoundError(f"the saved memory that the machine started from is gone: {folder}")
    return found


def base_of(overlay: Path) -> Path:
    """Return the disk under an overlay.

    Raises:
        OSError: the overlay cannot be read.

    """
    with overlay.open("rb") as disk:
        head = disk.read(20)
        at, size = struct.unpack(">QI", head[8:20])  # of the backing file's name (qcow2.txt, "Header")
        disk.seek(at)
        return Path(os.fsdecode(disk.read(min(size, 1023))))
