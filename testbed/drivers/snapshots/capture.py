"""Boots a machine that has no identity, and saves it; runs as a program of its own, in namespaces of its own.

``python -m testbed.drivers.snapshots.capture JOB`` is the first process of a process namespace: when it ends,
everything that it started is gone.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed.drivers.host import process
from testbed.drivers.host.accounts import freezer
from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.errors import ProvisioningError, TestbedError
from testbed.plan.libvirt_xml.machine import ANONYMOUS

CAN_BE_SAVED = "testbed: memory can be saved"  # both are said by playbooks/roles/base/files/adopt.py
AWAKE = "testbed: identity taken"
_FAILED = "testbed: failed:"
_SAVE = 120.0
_LOOK_S = 0.1
_TAIL = 600


@dataclass(frozen=True, slots=True)
class Job:
    """A machine to save; all paths absolute.

    Args:
        xml: its domain.
        files: what the emulator must be able to write.
        console: file that receives its serial console.
        memory: file to write; must not exist.
        patience: seconds that the boot may take.

    """

    xml: str
    files: list[str]
    console: str
    memory: str
    patience: float


def wait_for_line(console: Path, line: str, timeout: float, running: Callable[[], bool]) -> None:
    """Return when a serial console has shown a line.

    Args:
        timeout: seconds.
        running: tells whether the machine still runs.

    Raises:
        ProvisioningError: it does not in time, or the machine ends.

    """
    end = time.monotonic() + timeout
    while line not in (text := console.read_text(errors="replace")):
        if _FAILED in text:
            why = "it has failed"
        elif not running():
            why = "the machine has ended"
        elif time.monotonic() > end:
            why = f"not within {timeout:.0f} s"
        else:
            time.sleep(_LOOK_S)
            continue
        fact = f"{why}; its console ends with: {' '.join(text[-_TAIL:].split()) or 'nothing'}"
        raise ProvisioningError(
            f'a machine does not say "{line}"', fact=fact, remedy="use --cold to do without saved memory"
        )


def freeze(job: Job, state: Path) -> None:
    """Boot, wait until the machine waits for its identity, and save it.

    Args:
        state: folder for libvirt; short, since it holds sockets.

    Raises:
        ProvisioningError: a step failed.

    """
    account = freezer()
    for path in job.files:
        account.give(Path(path))
    hypervisor = Hypervisor.embed(state, account)
    hypervisor.create(job.xml)
    wait_for_line(
        Path(job.console), CAN_BE_SAVED, job.patience, lambda: awaited() and hypervisor.runs(ANONYMOUS)
    )
    hypervisor.suspend(ANONYMOUS)
    hypervisor.monitor(ANONYMOUS).save_memory(Path(job.memory), _SAVE)


def awaited() -> bool:
    """Tell whether somebody still reads our standard output; when the command that started us is killed,
    nobody does.
    """
    poll = select.poll()
    poll.register(1, 0)
    return not poll.poll(0)


def reap() -> None:
    """Continue in a child; this process, the first of its namespace, buries what loses its parent, and ends
    with the child's status.

    Call it while the process has one thread.
    """
    child = os.fork()
    while child:
        found, status = os.wait()
        if found == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def main(file: str) -> int:
    """Run the job that a file holds; 0, or 1 with the message on standard error."""
    reap()
    try:
        process.run(
            ["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"], what="cannot hide /run", timeout=30
        )
        freeze(Job(**json.loads(Path(file).read_text())), Path("/run/v"))
    except TestbedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
