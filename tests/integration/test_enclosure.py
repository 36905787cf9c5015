"""Namespaces of a lab: made, found, entered, and gone without a trace."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed.drivers.host.accounts import privileged
from testbed.drivers.namespaces import lab_namespaces

pytestmark = pytest.mark.integration

PROGRAM = """
import json, os, subprocess, sys
from pathlib import Path
from testbed.drivers.namespaces import lab_namespaces
found = lab_namespaces.find(sys.argv[1], Path(sys.argv[2]))
lab_namespaces.enter(found)
subprocess.Popen(["sleep", "1000"], stdin=-3, stdout=-3, stderr=-3)
devices = sorted(path.name for path in Path("/dev").iterdir())
print(json.dumps({"devices": devices, "first": Path("/proc/1/cmdline").read_text()}))
"""


def test_a_lab_s_namespaces_come_and_go(tmp_path: Path) -> None:
    made = lab_namespaces.create("lab-x", tmp_path, devices=(), python=sys.executable, log=tmp_path / "log")
    try:
        assert lab_namespaces.find("lab-x", tmp_path) == made
        assert lab_namespaces.find("lab-x", tmp_path / "other") is None
        argv = [sys.executable, "-c", PROGRAM, "lab-x", str(tmp_path)]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[2]
        )
        assert done.returncode == 0, done.stderr
        inside = json.loads(done.stdout)
        assert "testbed.drivers.namespaces.init" in inside["first"]
        assert "kvm" not in inside["devices"]
        assert {"null", "net", "urandom"} <= set(inside["devices"])
        namespace = str(Path(f"/proc/{made.pid}/ns/net").readlink())
        assert _members(namespace) >= 2
    finally:
        lab_namespaces.destroy(made)
    assert lab_namespaces.find("lab-x", tmp_path) is None
    end = time.monotonic() + 10
    while _members(namespace) and time.monotonic() < end:
        time.sleep(0.05)
    assert _members(namespace) == 0


DEVICES = """
import json, sys
from pathlib import Path
from testbed.drivers.namespaces import lab_namespaces
lab_namespaces.enter(lab_namespaces.find("lab-y", Path(sys.argv[1])))
print(json.dumps([[f"{path.stat().st_mode:o}", path.stat().st_gid, path.stat().st_rdev] for path in map(Path, sys.argv[2:])]))
"""  # noqa: E501 - lines of a program


@pytest.mark.skipif(not privileged(), reason="only root makes device nodes")
def test_a_device_of_a_lab_is_for_its_group_and_nobody_elses(tmp_path: Path) -> None:
    outer = Path("/dev/kmsg").stat()
    made = lab_namespaces.create(
        "lab-y", tmp_path, devices=("kmsg:4711",), python=sys.executable, log=tmp_path / "log"
    )
    try:
        argv = [sys.executable, "-c", DEVICES, str(tmp_path), "/dev/kmsg", "/dev/null"]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[2]
        )
        assert done.returncode == 0, done.stderr
        device, null = json.loads(done.stdout)
    finally:
        lab_namespaces.destroy(made)
    assert device == ["20660", 4711, outer.st_rdev]
    assert null[0] == "20666"
    assert Path("/dev/kmsg").stat().st_gid == outer.st_gid != 4711


def _members(namespace: str) -> int:
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            alive = "\nState:\tZ" not in (process / "status").read_text()
            count += alive and str((process / "ns/net").readlink()) == namespace
        except OSError:
            continue
    return count
