"""`testbed audit` on this machine: ssh is replaced by a program that runs the command here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.drivers.host import process

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root reads other accounts' processes"),
]
# The host's name decides. `here` runs the last argument, as sshd does.
SSH = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
case $2 in
  here) exec sh -c "$3" ;;
  refused) echo "Permission denied (publickey)." >&2; exit 255 ;;
  noisy) exec yes ;;
  garbled) echo "{" ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    return tmp_path


def audit(folder: Path, *words: str) -> tuple[int, Any]:
    program = Path(sys.executable).with_name("testbed")
    done = subprocess.run(
        [program, "audit", "--json", *words],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


@pytest.fixture
def qemu() -> Iterator[subprocess.Popen[bytes]]:
    emulator = process.find("qemu-system-x86_64")
    if emulator is None:
        pytest.skip("there is no qemu-system-x86_64")
    started = subprocess.Popen([emulator, "-machine", "none", "-nodefaults", "-display", "none", "-S"])
    time.sleep(2.0)
    yield started
    started.kill()
    started.wait()


def test_a_qemu_without_any_wall_is_found(folder: Path, qemu: subprocess.Popen[bytes]) -> None:
    status, (host,) = audit(folder, "here")
    assert status == 1
    found = {finding["control"]: finding for finding in host["controls"]}
    own = f"process {qemu.pid}"
    assert found["PRC-03"]["verdict"] == "fail"
    assert found["PRC-01"]["verdict"] == "fail"
    assert host["guests"] >= 1
    if host["guests"] == 1:
        assert found["PRC-01"]["reason"] == f"{own} runs as root"
        assert found["PRC-03"]["reason"].startswith(f"{own} has a thread without a filter")


def test_hosts_that_do_not_answer_are_one_result_each(folder: Path) -> None:
    status, found = audit(folder, "refused", "garbled", "noisy")
    assert status == 3
    assert [item["host"] for item in found] == ["refused", "garbled", "noisy"]
    assert [item["controls"] for item in found] == [[], [], []]
    refused, garbled, noisy = (item["error"] for item in found)
    assert "Permission denied" in refused
    assert "garbled cannot be looked at" in garbled
    assert "ended with status" in noisy


def test_an_option_is_no_host(folder: Path) -> None:
    status, error = audit(folder, "--", "-oProxyCommand=true")
    assert status == 2
    assert "is no host" in error


def test_a_look_changes_nothing(folder: Path) -> None:
    places = [Path("/run"), Path("/tmp"), Path("/var/tmp"), Path("/etc")]
    before = {path: sorted(path.iterdir()) for path in places}
    status, (host,) = audit(folder, "here")
    assert status in (0, 1, 3)
    assert len(host["controls"]) == 7
    assert {path: sorted(path.iterdir()) for path in places} == before
