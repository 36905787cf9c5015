"""The confinement of virtlogd as a setting, given what a real node prints (PRC-06)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from testbed.data_files import playbooks
from testbed.plan.host_config import helper
from testbed.plan.host_config.helper import CLOSED, CONFINED, PROFILE_FILE, PROFILE_TEXT, UNIT_FILE, UNIT_TEXT
from testbed.plan.host_config.settings import TEXTS, settings
from tests.shapes import lab_of

FILES = playbooks() / "roles/hypervisor/files"
LOADED = "enforce as in the file"


def _texts(**changed: str) -> str:
    """Return lines of files as grep(1) prints them, each behind the name of its file."""
    files = {PROFILE_FILE: PROFILE_TEXT, UNIT_FILE: UNIT_TEXT, "/proc/self/mounts": "some mount\n", **changed}
    return "\n".join(f"{path}:{line}" for path, text in files.items() for line in text.splitlines())


def test_the_image_has_the_texts_that_nodes_are_compared_with() -> None:
    assert (FILES / "virtlogd.apparmor").read_text() == PROFILE_TEXT
    assert (FILES / "virtlogd.conf").read_text() == UNIT_TEXT


def test_a_node_as_declared_is_no_difference() -> None:
    assert helper.told(_texts(), LOADED, f"991 {CONFINED}") == CLOSED


@pytest.mark.parametrize(
    ("texts", "loaded", "processes", "difference"),
    [
        (_texts(**{PROFILE_FILE: f"{PROFILE_TEXT}  /** rw,"}), LOADED, "", "profile not as declared"),
        (_texts(**{PROFILE_FILE: ""}), LOADED, "", "profile not as declared"),
        (_texts(), "complain as in the file", "", "complain as in the file"),
        (_texts(), "enforce not as in the file", "", "enforce not as in the file"),
        (_texts(), "", "", "no profile is loaded"),
        (_texts(**{UNIT_FILE: ""}), LOADED, "", "unit not as declared"),
        (_texts(**{UNIT_FILE: f"{UNIT_TEXT}NoNewPrivileges=no\n"}), LOADED, "", "unit not as declared"),
        (
            _texts(**{"/run/systemd/system/virtlogd.service.d/more.conf": "[Service]"}), LOADED, "",
            "unit changed by /run/systemd/system/virtlogd.service.d/more.conf",
        ),
        (
            _texts(**{"/etc/systemd/system.control/virtlogd.service": "[Service]"}), LOADED, "",
            "unit changed by /etc/systemd/system.control/virtlogd.service",
        ),
        (
            _texts(**{"/run/systemd/system/service.d/all.conf": "[Service]"}), LOADED, "",
            "unit changed by /run/systemd/system/service.d/all.conf",
        ),
        (_texts(), LOADED, f"5 {CONFINED}\n6 {CONFINED.replace('enforce', 'complain')}", "process 6 "),
        (_texts(), LOADED, f"6 {CONFINED.partition(' virtlogd')[0]} unconfined", "process 6 "),
        (_texts(), LOADED, f"6 {CONFINED.replace('0' * 16, '0' * 15 + '2', 1)}", "process 6 "),
        (_texts(), LOADED, f"6 {CONFINED.replace(' 1 2 ', ' 0 2 ')}", "process 6 "),
    ],
)  # fmt: skip
def test_each_change_is_a_difference(texts: str, loaded: str, processes: str, difference: str) -> None:
    found = helper.told(texts, loaded, processes)
    assert found != CLOSED
    assert difference in found


def test_the_setting_belongs_to_its_control_and_reads_the_files_that_it_needs() -> None:
    lab = lab_of("one-node")
    item = next(item for item in settings(lab, lab.nodes[0]) if item.name == "helper-confinement")
    assert item.controls == "PRC-06"
    assert item.value == CLOSED
    assert helper.FILES in TEXTS


def test_processes_are_found_by_their_program_and_described_by_the_kernel(tmp_path: Path) -> None:
    program = shutil.copy("/usr/bin/sleep", tmp_path / "renamed")
    process = subprocess.Popen([program, "60"])
    try:
        command = helper.PROCESSES.replace(helper.PROGRAM, str(program))
        printed = subprocess.run(["dash", "-c", command], capture_output=True, text=True, check=True).stdout
    finally:
        process.kill()
        process.wait()
    ours = [line for line in printed.splitlines() if line.startswith(f"{process.pid} ")]
    status = Path("/proc/self/status").read_text()
    words = [
        line.split()[1] for line in status.splitlines() if line.startswith(("Cap", "NoNewPrivs:", "Seccomp:"))
    ]
    assert len(ours) == 1
    assert ours[0].split()[1:8] == words
