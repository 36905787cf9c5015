"""A program that imports modules of the payload runs where the package is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from testbed.drivers.host.payload_program import with_modules

_PROGRAM = """
from testbed.payload.attacks import confinement
import testbed.payload.node_traces as traces
print(__name__, confinement.fields("Uid:\\t7"), traces._LISTENS)
"""


def _run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", "-"],
        input=program,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_modules_of_several_packages_are_imported_from_one_text(tmp_path: Path) -> None:
    program = with_modules(_PROGRAM, ["node_traces", "attacks.confinement"])
    done = _run(program, tmp_path)
    assert (done.returncode, done.stdout) == (0, "__main__ {'Uid': '7'} 0A\n"), done.stderr


def test_a_module_that_is_not_sent_is_not_there(tmp_path: Path) -> None:
    program = with_modules(_PROGRAM, ["node_traces"])
    done = _run(program, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ModuleNotFoundError" in done.stderr or "ImportError" in done.stderr
