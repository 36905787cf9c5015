"""Runs many checks of one clean lab on a busy machine.

    python benchmarks/busy.py LOG [RUNS] [TOPOLOGY] [--seconds N]

One process for each processor computes at normal priority while the checks run. Each check is a line of JSON
in LOG: seconds, exit code, and each verdict that is neither pass nor not-applicable. A later call continues
an interrupted one; with ``--seconds`` no check begins after that time. The program prints one line with the
sums of LOG. The lab is clean: the program exits with 1 if a check failed, or more than one was inconclusive.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from soak import odd_verdicts

from testbed.errors import Exit
from testbed.topology_file.loader import read

PROGRAM = str(Path(sys.executable).with_name("testbed"))


@contextmanager
def busy() -> Iterator[None]:
    """Keep every processor busy during the block."""
    spinning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)
    ]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


@contextmanager
def clean_lab(topology: Path, name: str) -> Iterator[dict[str, str]]:
    """Build a lab in a state folder of its own, and yield the environment of its commands."""
    with tempfile.TemporaryDirectory(prefix="tb", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        variables = {**os.environ, "TESTBED_STATE_DIR": f"{folder}/s"}
        try:
            subprocess.run([PROGRAM, "up", str(topology)], check=True, env=variables, stdout=sys.stderr)
            yield variables
        finally:
            subprocess.run([PROGRAM, "down", name], check=False, env=variables, stdout=sys.stderr)


def check_once(name: str, variables: dict[str, str]) -> dict[str, Any]:
    """Check the lab and return what happened."""
    start = time.monotonic()
    done = subprocess.run(
        [PROGRAM, "check", name, "--json"], check=False, capture_output=True, text=True, env=variables
    )
    seconds = round(time.monotonic() - start, 1)
    return {"seconds": seconds, "exit": done.returncode, "odd": odd_verdicts(done.stdout)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("runs", type=int, nargs="?", default=20)
    parser.add_argument("topology", type=Path, nargs="?", default=Path("topologies/two-tenants.yaml"))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    return parser.parse_args()


def _checks(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def main() -> int:
    """Build the lab, check it until LOG has enough checks, and take it down."""
    options, start = _options(), time.monotonic()
    name = read(options.topology).spec.name
    missing = options.runs - len(_checks(options.log))
    if missing > 0:
        with clean_lab(options.topology, name) as variables, busy():
            for _ in range(missing):
                if time.monotonic() - start > options.seconds:
                    break
                with options.log.open("a") as stream:
                    stream.write(json.dumps(check_once(name, variables)) + "\n")
    codes = [found["exit"] for found in _checks(options.log)]
    passed, unsure = codes.count(Exit.OK), codes.count(Exit.INCONCLUSIVE)
    others = len(codes) - passed - unsure
    print(json.dumps({"checks": len(codes), "passed": passed, "inconclusive": unsure, "others": others}))
    return 1 if others or unsure > 1 else 0


if __name__ == "__main__":
    raise SystemExit(main())
