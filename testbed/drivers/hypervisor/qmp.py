"""A QEMU's monitor (QMP), as far as saving and loading memory needs it.

libvirt can save and restore as well, but its restore insists on the name and the UUID that were saved; here
one saved memory starts many machines. What is written is QEMU's own migration stream, without a header of
libvirt's.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from testbed.drivers.host import process
from testbed.drivers.host.private_files import create
from testbed.errors import ProvisioningError

_LOOK_S = 0.05
_CHUNK = 2**20
_UNLIMITED = 2**50  # bytes a second
_WORKING = ("setup", "active", "device", "pre-switchover", "wait-unplug")

Ask = Callable[[str, Sequence[int]], str]


class Monitor:
    """One domain's monitor.

    Args:
        ask: passes one request (JSON) and descriptors on, and returns the answer; raises `ProvisioningError`.

    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def _command(self, execute: str, files: Sequence[int] = (), **arguments: object) -> dict[str, Any]:
        """Give a command, its arguments with underscores in place of hyphens, and return its answer."""
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        answer = json.loads(self._ask(json.dumps({"execute": execute, "arguments": given}), files))
        if "error" in answer:
            raise _cannot_be_moved(f"QEMU says to {execute}: {answer['error'].get('desc', answer['error'])}")
        found: dict[str, Any] = answer["return"]
        return found

    def save_memory(self, file: Path, timeout: float) -> None:
        """Write the memory of a paused domain to a new file; afterwards the domain is of no more use.

        Args:
            timeout: seconds that may pass until more of it comes, and until QEMU says that this was all.

        Raises:
            ProvisioningError: QEMU refuses, or it takes too long.

        """
        with os.fdopen(create(file), "wb") as target:
            ours, theirs = os.pipe()
            with os.fdopen(ours, "rb", buffering=0) as source:
                self._pass_on(theirs)
                self._command("migrate-set-parameters", max_bandwidth=_UNLIMITED)
                self._command("migrate", uri="fd:memory")
                while process.wait_readable(source.fileno(), timeout=timeout) and (
                    data := source.read(_CHUNK)
                ):
                    target.write(data)
            self._wait(timeout)
            target.flush()
            os.fsync(target.fileno())

    def load_memory(self, file: Path, timeout: float) -> None:
        """Give a domain that waits for it the memory that a file holds; it stays paused.

        Args:
            timeout: seconds.

        Raises:
            ProvisioningError: QEMU refuses, or it takes too long.

        """
        theirs, ours = os.pipe()
        threading.Thread(target=_fill, args=(file, ours), daemon=True).start()
        self._pass_on(theirs)
        self._command("migrate-incoming", uri="fd:memory")
        self._wait(timeout)

    def _pass_on(self, descriptor: int) -> None:
        """Give QEMU a descriptor, of which nothing stays open here."""
        try:
            self._command("getfd", [descriptor], fdname="memory")
        finally:
            os.close(descriptor)

    def _wait(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            found = self._command("query-migrate")
            status = found.get("status", "setup")
            if status == "completed":
                return
            late = time.monotonic() > end
            if status not in _WORKING or late:
                raise _cannot_be_moved(
                    f"QEMU says: {status}{f' after {timeout:.0f} s' if late else ''} "
                    f"{found.get('error-desc', '')}"
                )
            time.sleep(_LOOK_S)


def _cannot_be_moved(fact: str) -> ProvisioningError:
    return ProvisioningError(
        "a virtual machine's memory cannot be moved",
        fact=fact,
        remedy="use --cold to do without saved memory",
    )


def _fill(file: Path, pipe: int) -> None:
    """Write a file into a pipe; where that ends too early, QEMU tells so."""
    with suppress(OSError), os.fdopen(pipe, "wb", buffering=0) as target, file.open("rb") as source:
        while os.sendfile(target.fileno(), source.fileno(), None, _CHUNK):
            pass
