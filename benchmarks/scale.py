"""Measures validation and planning of large topologies, in one run.

    python benchmarks/scale.py [NODES GUESTS]

The size and twice the size are measured three times, alternately, in processes of their own. The fastest
result of each counts, since other work on the machine only adds time. The program prints seconds, peak memory
in MiB, and the ratio of seconds between the two sizes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

from testbed.model.environment import Accelerator, Environment
from testbed.model.resolve import resolve
from testbed.plan.diff import diff
from testbed.plan.resources import OUTER, Inputs, desired, places
from testbed.topology_file.loader import load

PER_TENANT = 10
ROUNDS = 3
INPUTS = Inputs(
    Environment(Accelerator.TCG, Accelerator.KVM, 4.0, "/usr/bin/qemu-system-x86_64"),
    {"node": "digest-n", "controller": "digest-c", "guest": "digest-g"},
)


def topology_text(nodes: int, guests: int) -> str:
    """Return a topology file with tenants of ten guests each, all with the same addresses.

    The guests of a tenant form a chain of flows, and are distributed over the nodes.
    """
    lines = ["version: 1", "name: scale"]
    lines += [
        "infrastructure: {management: 10.64.0.0/16, fabric: 10.65.0.0/16, storage: 10.66.0.0/16}",
        "nodes:",
    ]
    lines += [f"  n{number}: {{memory: 32 GiB}}" for number in range(nodes)]
    lines.append("tenants:")
    for tenant in range(guests // PER_TENANT):
        lines += [f"  t{tenant}:", "    networks: {app: 10.0.0.0/24}", "    guests:"]
        members = range(PER_TENANT)
        lines += [
            f"      g{g}: {{node: n{(tenant * PER_TENANT + g) % nodes}, volumes: {{data: 64 MiB}}}}"
            for g in members
        ]
        lines += ["    allow:", *(f"      - g{g} -> g{g + 1} tcp/5432" for g in members[:-1])]
    return "\n".join(lines) + "\n"


def measure(nodes: int, guests: int) -> dict[str, float]:
    """Return time and peak memory of reading, resolving and planning one topology."""
    text = topology_text(nodes, guests)
    marks = [time.perf_counter()]
    spec = load(text, "scale.yaml").spec
    marks.append(time.perf_counter())
    topology = resolve(spec)
    marks.append(time.perf_counter())
    plan = diff(desired(topology, INPUTS), {}, frozenset(places(topology)) - {OUTER})
    marks.append(time.perf_counter())
    steps = {
        name: round(end - start, 2)
        for name, start, end in zip(("read", "resolve", "plan"), marks, marks[1:], strict=False)
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        **steps,
        "total_s": round(marks[-1] - marks[0], 2),
        "peak_mib": round(peak),
        "actions": len(plan.actions),
    }


def _apart(nodes: int, guests: int) -> dict[str, float]:
    argv = [sys.executable, __file__, "--one", str(nodes), str(guests)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return {"nodes": nodes, "guests": guests, **json.loads(done.stdout)}


def main() -> int:
    """Measure a size and twice that size, and print one JSON document."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
        return 0
    nodes, guests = (int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 2 else (1000, 10_000)
    sizes = [(nodes * factor, guests * factor) for factor in (1, 2)]
    seen = [_apart(*size) for _ in range(ROUNDS) for size in sizes]
    results = [
        min((one for one in seen if one["guests"] == size[1]), key=lambda one: one["total_s"])
        for size in sizes
    ]
    ratio = results[1]["total_s"] / results[0]["total_s"]
    print(json.dumps({"sizes": results, "twice_the_size_costs": round(ratio, 2)}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
