"""Limits of libvirtd on nodes: the unit's addition, and what the control group has (DEV-03)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from testbed.plan.controls import Walls
from testbed.plan.diff import Difference
from testbed.plan.host_config.daemon_limits import (
    CLOSED,
    CONTROL,
    FILES,
    GROUP,
    LIMIT,
    LIMITS,
    LIVE,
    UNIT_FILE,
    UNIT_TEXT,
    told,
)
from testbed.plan.host_config.settings import TEXTS, settings
from testbed.plan.resources import Key, Kind
from tests.shapes import lab_of

ROLE = Path(__file__).parents[3] / "playbooks/roles/hypervisor/files"
OWN = "".join(f"{UNIT_FILE}:{line}\n" for line in UNIT_TEXT.splitlines())
VALUES = "\n".join(f"{name} {value}" for name, value in LIMITS.items())


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return a folder in place of a node's root, in which libvirtd runs without limits."""
    group = tmp_path / GROUP.lstrip("/")
    group.mkdir(parents=True)
    for name in LIMITS:
        (group / name).write_text("max\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/libvirtd.pid").write_text("77")  # libvirt writes no end of line
    (tmp_path / "proc/77").mkdir(parents=True)
    (tmp_path / "proc/77/cgroup").write_text(f"0::{GROUP.removeprefix('/sys/fs/cgroup')}\n")
    return tmp_path


def _done(machine: Path, command: str) -> str:
    for place in ("/run/libvirtd.pid", "/proc/", "/sys/fs/cgroup"):
        assert place in command
        command = command.replace(place, f"{machine}{place}")
    argv = ["/bin/sh", "-c", command]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def test_the_addition_of_the_image_is_the_declared_one() -> None:
    assert (ROLE / "libvirtd.conf").read_text() == UNIT_TEXT
    assert told(OWN, VALUES) == CLOSED
    assert FILES in TEXTS


@pytest.mark.parametrize(
    ("files", "live", "line"),
    [
        ("", VALUES, "unit not as declared"),
        (OWN.replace("512", "513"), VALUES, "unit not as declared"),
        (OWN, VALUES.replace("memory.max 268435456", "memory.max max"), "memory.max max"),
        (OWN, "libvirtd does not run", "libvirtd does not run"),
        (
            f"{OWN}{CONTROL}/libvirtd.service.d/50-MemoryMax.conf:[Service]\n",
            VALUES,
            f"unit changed by {CONTROL}/libvirtd.service.d/50-MemoryMax.conf",
        ),
    ],
)
def test_each_difference_is_seen(files: str, live: str, line: str) -> None:
    found = told(files, live)
    assert found != CLOSED
    assert line in found.split("\n")


def test_limits_are_read_around_the_process_and_written_there(machine: Path) -> None:
    assert _done(machine, LIVE) == "\n".join(f"{name} max" for name in LIMITS)
    _done(machine, LIMIT)
    assert _done(machine, LIVE) == VALUES


def test_a_process_outside_of_its_group_has_no_limit_and_is_brought_back(machine: Path) -> None:
    _done(machine, LIMIT)
    (machine / "proc/77/cgroup").write_text("0::/\n")
    assert _done(machine, LIVE) == "\n".join(f"{name} none" for name in LIMITS)
    _done(machine, LIMIT)
    assert (machine / GROUP.lstrip("/") / "cgroup.procs").read_text() == "77\n"


def test_a_daemon_that_does_not_run_is_seen_and_needs_no_repair_of_its_group(machine: Path) -> None:
    (machine / "proc/77/cgroup").unlink()
    assert _done(machine, LIVE) == "libvirtd does not run"
    assert _done(machine, LIMIT) == ""
    assert (machine / GROUP.lstrip("/") / "memory.max").read_text() == "max\n"


@pytest.mark.parametrize(("text", "stays"), [(UNIT_TEXT, True), ("[Service]\n", False), ("", False)])
def test_the_repair_leaves_the_addition_alone_if_it_is_right(tmp_path: Path, text: str, stays: bool) -> None:
    lab = lab_of("one-node")
    (item,) = [found for found in settings(lab, lab.nodes[0]) if found.name == "libvirt-limits"]
    own, control = tmp_path / UNIT_FILE.lstrip("/"), tmp_path / CONTROL.lstrip("/")
    foreign = control / "libvirtd.service.d/50-MemoryMax.conf"
    for file in (foreign, own.with_name("other.conf"), *([own] if text else [])):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    inode = own.stat().st_mtime_ns if text else 0
    command = item.repair.replace("systemctl daemon-reload", "true")
    for place in ("/etc/systemd", "/run/", "/proc/", "/sys/fs/cgroup"):
        command = command.replace(place, f"{tmp_path}{place}")
    subprocess.run(["/bin/sh", "-c", command], check=True)
    assert own.read_text() == UNIT_TEXT
    assert (own.stat().st_mtime_ns == inode) is stays
    assert [path.name for path in own.parent.iterdir()] == [own.name]
    assert not control.exists()


def test_a_node_that_differs_fails_the_control_and_is_repaired_without_a_restart() -> None:
    lab = lab_of("one-node")
    (item,) = [found for found in settings(lab, lab.nodes[0]) if found.name == "libvirt-limits"]
    assert item.value == CLOSED
    assert "restart" not in item.repair
    assert LIMIT in item.repair
    key = Key("node", Kind.SETTING, "libvirt-limits")
    assert Walls.of_lab(lab).endangered(Difference(key, "value", "", CLOSED)) == {"DEV-03"}
