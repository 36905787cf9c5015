"""Measures the reach matrix of 4, 8 and 16 guests, in one run.

    python benchmarks/matrix.py [GUESTS …]

Each size gets a lab of its own on two nodes. The program prints the number of cells, seconds for one whole
observation of the matrix (the median of three), milliseconds for each cell, programs started in each guest
through its agent, and the ratio of seconds between one size and the next.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from testbed.drivers.host.workspace import Workspace
from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.lab import build_inputs
from testbed.lab import session as labs
from testbed.verify.evidence import Evidence
from testbed.verify.fleet import Fleet
from testbed.verify.observation.arrivals import matrix_probes, reach
from testbed.verify.observation.observe import observe
from testbed.verify.probe.client import end_all

LAB = "matrix"
NODES = ("node-a", "node-b")
TIMES = 3  # observations of each size; the median is used, since other work disturbs
RESERVE, EACH = 800, 320  # MiB


def topology(guests: int) -> str:
    """Return a topology file with two tenants that have the same addresses and one flow each.

    The guests are distributed alternately over two nodes.
    """
    memory = RESERVE + EACH * guests // len(NODES)
    lines = [
        "version: 1",
        f"name: {LAB}",
        "nodes:",
        *(f"  {node}: {{memory: {memory} MiB}}" for node in NODES),
        "tenants:",
    ]
    for tenant in ("red", "blue"):
        lines += [
            f"  {tenant}:",
            "    networks: {app: 10.0.0.0/24}",
            "    allow: [g0 -> g1 tcp/5432]",
            "    guests:",
        ]
        lines += [f"      g{number}: {{node: {NODES[number % len(NODES)]}}}" for number in range(guests // 2)]
    return "\n".join(lines) + "\n"


def measure(state: Path) -> dict[str, object]:
    """Return the cost of one observation of a running lab's matrix.

    The probes run already when the measurement begins. Call it in a process of its own, since it enters the
    lab's enclosure.
    """
    workspace = Workspace(state, LAB)
    topology, inputs = labs.load_applied(workspace), build_inputs.load_inputs()
    calls: Counter[str] = Counter()
    plain = Hypervisor.agent

    def counted(
        self: Hypervisor, name: str, command: str, arguments: dict[str, object], timeout: int
    ) -> dict[str, Any]:
        calls[command] += 1
        return plain(self, name, command, arguments, timeout)

    Hypervisor.agent = counted  # type: ignore[method-assign]
    labs.enter(topology, workspace, inputs.environment)
    with labs.open_lab(topology, workspace, inputs) as lab:
        fleet = Fleet.of(lab, Evidence(workspace.runs / "benchmark"))
        cells, took, wrong = fleet.matrix.cells, list[float](), 0
        try:
            observe(fleet, [])
            calls.clear()
            for _ in range(TIMES):
                start = time.monotonic()
                found = reach(cells, observe(fleet, matrix_probes(cells)))
                took.append(time.monotonic() - start)
                wrong += sum(arrived != cell.allowed for cell, arrived in found)
        finally:
            end_all(fleet)
    count, middle = len(topology.guests), sorted(took)[TIMES // 2]
    return {
        "guests": count,
        "cells": len(cells),
        "wrong": wrong,
        "seconds": round(middle, 1),
        "all_seconds": [round(one, 1) for one in took],
        "ms_per_cell": round(1000 * middle / len(cells), 1),
        "programs_per_guest": calls["guest-exec"] / count / TIMES,
        "agent_calls_per_guest": round(calls.total() / count / TIMES, 1),
    }


def main() -> int:
    """Measure each size and print one JSON document."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
        return 0
    sizes = [int(word) for word in sys.argv[1:]] or [4, 8, 16]
    program, results = str(Path(sys.executable).with_name("testbed")), []
    with tempfile.TemporaryDirectory(prefix="tb", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        variables = {**os.environ, "TESTBED_STATE_DIR": f"{folder}/s"}
        file = Path(folder) / "matrix.yaml"
        for size in sizes:
            file.write_text(topology(size))
            try:
                subprocess.run([program, "up", str(file)], check=True, env=variables, capture_output=True)
                argv = [sys.executable, __file__, "--measure", f"{folder}/s"]
                done = subprocess.run(argv, check=True, capture_output=True, text=True, env=variables)
                results.append(json.loads(done.stdout.splitlines()[-1]))
            finally:
                subprocess.run([program, "down", LAB], check=False, env=variables, capture_output=True)
    ratios = {
        f"{two['guests']}/{one['guests']}": round(two["seconds"] / one["seconds"], 2)
        for one, two in pairwise(results)
    }
    print(json.dumps({"sizes": results, "ratios": ratios}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
