"""The program that reads a node's workers, and the check's judgement, on real QEMU processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checks import test_worker_sandbox
from testbed.hosts.facts import HostFacts, parsed
from testbed.payload import workers
from tests.shapes import lab_of

QEMU = shutil.which("qemu-system-x86_64")
ACCOUNT = 64163
FULL = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
LAB = lab_of("one-node")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root reads other accounts' processes"),
    pytest.mark.skipif(QEMU is None, reason="there is no qemu-system-x86_64"),
]

Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start QEMU under a worker's account, in a mount namespace with a small /dev."""
    running: list[subprocess.Popen[bytes]] = []
    devices = "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/zero c 1 5"

    def started(*options: str, privileges: str = "", prepare: str = devices, own: bool = True) -> int:
        qemu = f"{QEMU} -machine none -nodefaults -display none -S {' '.join(options)}"
        identity = f"--reuid {ACCOUNT} --regid {ACCOUNT} --clear-groups {privileges}"
        apart = ["unshare", "--mount"] if own else []
        argv = [*apart, "sh", "-c", f"{prepare}; exec setpriv {identity} {qemu}"]
        process = subprocess.Popen(argv)
        running.append(process)
        end = time.monotonic() + 30
        while Path(f"/proc/{process.pid}/exe").resolve() != Path(str(QEMU)).resolve():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(2.0)  # its options are in force
        return process.pid

    yield started
    for process in running:
        process.kill()
        process.wait()


def observed(tmp_path: Path, pid: int) -> Any:
    """Return what a check is given for one process that libvirt knows as the lab's first guest."""
    (tmp_path / "run").mkdir(exist_ok=True)
    for guest in LAB.guests:
        (tmp_path / "run" / f"{guest.domain}.pid").write_text(f"{pid}\n")
    request = {"folder": str(tmp_path / "run"), "programs": ["/nowhere"], "accounts": [1, 0]}
    program = Path(workers.__file__).read_text()
    text = f"{program}\nimport json\nprint(json.dumps(collect({request!r})))\n"
    done = subprocess.run([sys.executable, "-"], input=text, capture_output=True, text=True, check=True)
    return parsed(json.loads(done.stdout))


def judged(tmp_path: Path, pid: int, check: Callable[..., None]) -> str:
    """Return the first line of a check's failure, or "" if it passes."""
    found = observed(tmp_path, pid)
    one = HostFacts(found.mounts, found.workers[:1])
    fleet: Any = SimpleNamespace(observe_once=lambda *_: one)
    node: Any = SimpleNamespace(name="node")
    try:
        check(fleet=fleet, node=node)
    except AssertionError as error:
        return str(error).splitlines()[0]
    return ""


FILTER = test_worker_sandbox.test_workers_run_under_a_filter
NOTHING_ELSE = test_worker_sandbox.test_workers_have_nothing_but_their_guest


def test_a_worker_in_qemus_sandbox_passes(start: Start, tmp_path: Path) -> None:
    pid = start(f"-sandbox {FULL}")
    (worker, *_) = observed(tmp_path, pid).workers
    assert worker.pid == pid
    assert worker.unread == ""
    assert worker.devices == ("c 1:3 null", "c 1:5 zero")
    assert judged(tmp_path, pid, FILTER) == ""
    assert judged(tmp_path, pid, NOTHING_ELSE) == ""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", "has a thread without a filter"),
        ("-sandbox on,obsolete=deny,elevateprivileges=deny,resourcecontrol=deny", "execve, fork, vfork"),
        ("-sandbox on,obsolete=deny,spawn=deny,resourcecontrol=deny", "setuid, setgid"),
    ],
)
def test_a_worker_whose_filter_allows_more_fails(
    start: Start, tmp_path: Path, options: str, told: str
) -> None:
    assert told in judged(tmp_path, start(options), FILTER)


@pytest.mark.parametrize(
    ("options", "privileges", "prepare", "told"),
    [
        (
            "",
            "--inh-caps=+net_admin --ambient-caps=+net_admin",
            "mount -t tmpfs tmpfs /dev",
            "capabilities: 0x",
        ),
        ("", "", "mount -t tmpfs tmpfs /dev; mknod /dev/sda b 8 0", "does not need: b 8:0 sda"),
        (
            "-chardev socket,id=open,host=127.0.0.1,port=0,server=on,wait=off",
            "",
            "mount -t tmpfs tmpfs /dev",
            "sockets of a network: tcp 0100007F:",
        ),
    ],
)
def test_a_worker_with_more_than_its_guest_fails(
    start: Start, tmp_path: Path, options: str, privileges: str, prepare: str, told: str
) -> None:
    pid = start(f"-sandbox {FULL} {options}", privileges=privileges, prepare=prepare)
    assert told in judged(tmp_path, pid, NOTHING_ELSE)


def test_a_worker_that_sees_the_nodes_files_fails(start: Start, tmp_path: Path) -> None:
    pid = start(f"-sandbox {FULL}", prepare="ulimit -c 7", own=False)
    assert "sees the file systems of the node" in judged(tmp_path, pid, NOTHING_ELSE)
    assert observed(tmp_path, pid).workers[0].core == ("3584", "3584")  # blocks of 512 octets
