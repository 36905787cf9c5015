"""Checks of machines, against the same questions asked one by one by plain pytest-testinfra: python
benchmarks/one_by_one.py [LAB]

In one run: `testbed check` of the controls that look at machines only, on a lab that is up; then every
command that its evidence holds, in a test of its own, each over an ssh connection of its own, as testinfra
asks. A command that reads a program from its input gets none there, and ends at once: what plain testinfra is
said to need is the least that it needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from testbed.drivers.host.workspace import Workspace, state_root
from testbed.drivers.namespaces import lab_namespaces
from testbed.lab import session as labs

CONTROLS = ("PRC", "STO", "CMP", "DEV", "ACC-05")
TESTS = """
import json
import pytest
import testinfra

QUESTIONS = json.loads({questions!r})

@pytest.mark.parametrize("number", range(len(QUESTIONS)))
def test_it(number):
    machine, command, status = QUESTIONS[number]
    host = testinfra.get_host(f"ssh://{{machine}}", ssh_config={config!r}, sudo=True)
    assert host.run(command).rc in (status, 0)
"""


def asked(folder: Path) -> list[tuple[str, str, int]]:
    """Return machine, command and exit status of everything that a run has asked of machines."""
    found = []
    for file in sorted((folder / "evidence").glob("*.jsonl")):
        for entry in map(json.loads, file.read_text().splitlines()):
            if entry["kind"] == "command" and isinstance(entry["answer"], dict):
                found.append((entry["host"], entry["request"], entry["answer"]["status"]))
    return found


def main() -> int:
    """Measure both and print one JSON document."""
    name = sys.argv[1] if len(sys.argv) > 1 else "two-tenants"
    workspace = Workspace(state_root(), name)
    words = [word for control in CONTROLS for word in ("--only", control)]
    start = time.monotonic()
    subprocess.run(
        [str(Path(sys.executable).with_name("testbed")), "check", name, *words],
        check=True,
        capture_output=True,
    )
    ours = time.monotonic() - start
    questions = asked(max(workspace.runs.iterdir()))
    found = lab_namespaces.find(labs.load_applied(workspace).name, workspace.root)
    if found is None:
        sys.stderr.write(f"{name} is down\n")
        return 1
    lab_namespaces.enter(found)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "test_questions.py"
        file.write_text(TESTS.format(questions=json.dumps(questions), config=str(workspace.ssh_config)))
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--rootdir={folder}",
            str(file),
        ]
        start = time.monotonic()
        done = subprocess.run(
            argv,
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        plain = time.monotonic() - start
    told = done.stdout.strip().splitlines()[-1:]
    print(json.dumps({"questions": len(questions), "check_s": round(ours, 1), "plain_s": round(plain, 1),
                      "check_to_plain": round(ours / plain, 2), "pytest": told}))  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
