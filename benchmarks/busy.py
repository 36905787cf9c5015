"""Many checks of one clean lab beside a busy machine: python benchmarks/busy.py [RUNS] [TOPOLOGY]

One process for each processor computes at normal priority while the checks run. Prints one line of JSON for
each check: seconds, exit code, and each verdict that is neither pass nor not-applicable; then one with the
sums. Exits 1 if a check failed, or if more than one was inconclusive: nothing was wrong with the lab.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from soak import odd_verdicts

from testbed.errors import Exit
from testbed.topology_file.loader import read


@contextmanager
def busy() -> Iterator[None]:
    """Keep every processor busy during a block."""
    spinning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)
    ]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def main() -> int:
    """Build the lab, check it many times, and take it down."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    topology = Path(sys.argv[2] if len(sys.argv) > 2 else "topologies/two-tenants.yaml")
    program, name = str(Path(sys.executable).with_name("testbed")), read(topology).spec.name
    codes: list[int] = []
    with tempfile.TemporaryDirectory(prefix="tb", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        variables = {**os.environ, "TESTBED_STATE_DIR": f"{folder}/s"}
        try:
            subprocess.run([program, "up", str(topology)], check=True, env=variables, stdout=sys.stderr)
            with busy():
                for number in range(runs):
                    start = time.monotonic()
                    done = subprocess.run(
                        [program, "check", name, "--json"],
                        check=False,
                        capture_output=True,
                        text=True,
                        env=variables,
                    )
                    codes.append(done.returncode)
                    seconds = round(time.monotonic() - start, 1)
                    odd = odd_verdicts(done.stdout)
                    print(
                        json.dumps(
                            {"run": number + 1, "seconds": seconds, "exit": done.returncode, "odd": odd}
                        ),
                        flush=True,
                    )
        finally:
            subprocess.run([program, "down", name], check=False, env=variables, stdout=sys.stderr)
    unsure = codes.count(Exit.INCONCLUSIVE)
    others = len(codes) - codes.count(Exit.OK) - unsure
    print(
        json.dumps(
            {"checks": len(codes), "passed": codes.count(Exit.OK), "inconclusive": unsure, "others": others}
        )
    )
    return 1 if others or unsure > 1 else 0


if __name__ == "__main__":
    raise SystemExit(main())
