"""Many runs of up, check and down in a row: python benchmarks/soak.py [RUNS] [TOPOLOGY]

Prints one line of JSON for each run: seconds of each command, and what was not as it should be: an exit code
that is not 0, a verdict that is neither pass nor not-applicable, a guest that had to be started again. Exits
1 if there was any.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from testbed.topology_file.loader import read

SOUND = ("pass", "not-applicable")


def odd_verdicts(text: str) -> list[str]:
    """Return what a check run says that it should not."""
    try:
        data: dict[str, Any] = json.loads(text)
    except ValueError:
        return ["no result"]
    odd = [check for check in data["checks"] if check["verdict"] not in SOUND]
    told = [f"{check['id']} {check['case']}: {check['verdict']}: {check['reason']}" for check in odd]
    return [*told, *(f"started again: {guest}" for guest in data["retried_starts"])]


def run(program: str, topology: Path, state: str) -> tuple[dict[str, float], list[str]]:
    """Return the seconds of up, check and down, and what was wrong with them."""
    name, seconds, wrong = read(topology).spec.name, {}, []
    variables = {**os.environ, "TESTBED_STATE_DIR": state}
    for verb, argument, *options in (("up", str(topology)), ("check", name, "--json"), ("down", name)):
        start = time.monotonic()
        done = subprocess.run(
            [program, verb, argument, *options], check=False, capture_output=True, text=True, env=variables
        )
        seconds[verb] = round(time.monotonic() - start, 1)
        if done.returncode != 0:
            wrong.append(f"{verb} ended with {done.returncode}: {done.stderr[-300:]}")
        if verb == "check":
            wrong += odd_verdicts(done.stdout)
    return seconds, wrong


def main() -> int:
    """Do the runs, one after another."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    topology = Path(sys.argv[2] if len(sys.argv) > 2 else "topologies/two-tenants.yaml")
    program, failed = str(Path(sys.executable).with_name("testbed")), 0
    with tempfile.TemporaryDirectory(prefix="tb", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        for number in range(runs):
            seconds, wrong = run(program, topology, f"{folder}/s")
            failed += bool(wrong)
            print(json.dumps({"run": number + 1, **seconds, "wrong": wrong}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
