"""Boots a machine that has no identity and saves its memory.

This runs as a program, in namespaces of its own. ``python -m testbed.drivers.snapshots.capture JOB`` is the
first process of a process namespace: when it ends, the kernel kills all processes that it started.
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

from testbed import timeouts
from testbed.deadline import ProgressDeadline
from testbed.drivers.host import process
from testbed.drivers.host.accounts import freezer
from testbed.drivers.host.console import console_progress
from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.errors import ProvisioningError, TestbedError
from testbed.plan.libvirt_xml.machine import ANONYMOUS

CAN_BE_SAVED = "testbed: memory can be saved"  # playbooks/roles/base/files/adopt.py prints both
AWAKE = "testbed: identity taken"
_FAILED = "testbed: failed:"
_SAVE = 120.0
_LOOK_S = 0.1
_TAIL = 600


@dataclass(frozen=True, slots=True)
class CaptureJob:
    """A machine to save; all paths absolute.

    Args:
        xml: description of its domain.
        files: files that the emulator must be able to write.
        console: file that receives its serial console.
        memory: file to write; must not exist.
        patience: seconds until the machine must be ready to be saved.

    """

    xml: str
    files: list[str]
    console: str
    memory: str
    patience: float


def wait_for_line(console: Path, line: str, patience: float, running: Callable[[], bool]) -> None:
    """Wait until a machine has printed a line on its serial console; other lines extend the time.

    Args:
        console: file that receives the console's output.
        line: text to wait for.
        patience: seconds without a new line.
        running: returns whether the machine still runs.

    Raises:
        ProvisioningError: the line does not come in time, the machine reports a failure, or it ends.

    """
    deadline = ProgressDeadline(patience, lambda: console_progress(console))
    while line not in (text := console.read_text(errors="replace")):
        if _FAILED in text:
            why = "it has failed"
        elif not running():
            why = "the machine has ended"
        elif deadline.over():
            why = f"not {deadline.reason}"
        else:
            time.sleep(_LOOK_S)
            continue
        fact = f"{why}; its console ends with: {' '.join(text[-_TAIL:].split()) or 'nothing'}"
        raise ProvisioningError(
            f'a machine does not say "{line}"', fact=fact, remedy="use --cold to do without saved memory"
        )


def freeze(job: CaptureJob, state: Path) -> None:
    """Boot a machine, wait until it is ready for its identity, and save its memory.

    Args:
        job: the machine.
        state: folder for libvirt; the path must be short, since it holds sockets.

    Raises:
        ProvisioningError: a step failed.

    """
    account = freezer()
    for path in job.files:
        account.give(Path(path))
    hypervisor = Hypervisor.embed(state, account)
    hypervisor.create(job.xml)
    wait_for_line(
        Path(job.console),
        CAN_BE_SAVED,
        job.patience,
        lambda: parent_is_alive() and hypervisor.runs(ANONYMOUS),
    )
    hypervisor.suspend(ANONYMOUS)
    hypervisor.monitor(ANONYMOUS).save_memory(Path(job.memory), _SAVE)


def parent_is_alive() -> bool:
    """Return whether the process that started us still reads our standard output.

    When that process is killed, the pipe loses its reader.
    """
    # Without events, poll reports only POLLERR and POLLHUP: here a pipe whose reader is gone.
    poll = select.poll()
    poll.register(1, 0)
    return not poll.poll(0)


def reap() -> None:
    """Continue in a child process; this process reaps orphans and exits with the child's status.

    It is the first process of its namespace, so that orphans become its children. Call it while the process
    has one thread.
    """
    child = os.fork()
    while child:
        found, status = os.wait()
        if found == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def main(file: str) -> int:
    """Run the job in a file; return 0, or 1 after printing the error to standard error."""
    reap()
    try:
        process.run(
            ["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"],
            what="cannot hide /run",
            timeout=timeouts.NAMESPACES,
        )
        freeze(CaptureJob(**json.loads(Path(file).read_text())), Path("/run/v"))
    except TestbedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
