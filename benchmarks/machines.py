"""Compares machines that boot with machines that start from saved memory, in one run.

    python benchmarks/machines.py [TOPOLOGY]

Only the machines of a topology are started, all in parallel, from the same images. For each way, the program
prints the seconds until the emulators run, until ssh answers on all machines and until systemd has finished
the boot. It also prints the size of the saved memory in MiB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from testbed.drivers.host.workspace import Workspace, cache_root
from testbed.drivers.namespaces import lab_namespaces
from testbed.drivers.snapshots import machine_memory
from testbed.lab import session as labs
from testbed.model.resolve import resolve
from testbed.plan.diff import Action, Verb
from testbed.plan.resources import OUTER, Kind
from testbed.topology_file.loader import read


def _start(file: Path, state: Path, way: str) -> dict[str, object]:
    topology = resolve(read(file).spec)
    inputs = labs.prepare_inputs(lambda _: None)
    if way == "saved":
        inputs = labs.attach_snapshots(inputs, topology, lambda _: None, save=True)
    workspace = Workspace(state, topology.name)
    labs.enter(topology, workspace, inputs.environment)
    told: list[str] = []
    with labs.open_lab(topology, workspace, inputs, progress=told.append) as lab:
        labs.settle(topology, workspace)
        start = time.monotonic()
        for kind in (Kind.NETWORK, Kind.TAP, Kind.MACHINE):
            items = [
                (key, item) for key, item in lab.desired.items() if key.place == OUTER and key.kind is kind
            ]
            wanted = [Action(Verb.CREATE, key, "", item, ()) for key, item in items]
            with ThreadPoolExecutor(max_workers=len(wanted)) as pool:
                list(pool.map(lab.outer.perform, wanted))
        started = time.monotonic() - start
        with ThreadPoolExecutor(max_workers=len(lab.hosts)) as pool:
            list(pool.map(lambda host: host.wait(900), lab.hosts))
            answered = time.monotonic() - start
            list(
                pool.map(
                    lambda host: host.must("systemctl is-system-running --wait || true", timeout=900),
                    lab.hosts,
                )
            )
        return {
            "started_s": round(started, 1),
            "ssh_s": round(answered, 1),
            "running_s": round(time.monotonic() - start, 1),
            "told": told,
        }


def main() -> int:
    """Measure both ways and print one JSON document."""
    if len(sys.argv) == 5 and sys.argv[1] == "--way":
        print(json.dumps(_start(Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[2])))
        return 0
    topology = Path(sys.argv[1] if len(sys.argv) > 1 else "topologies/two-tenants.yaml")
    result: dict[str, object] = {}
    for way in ("saved", "boot"):
        with tempfile.TemporaryDirectory(prefix="tb", dir="/var/tmp") as folder:
            Path(folder).chmod(0o755)
            argv = [sys.executable, __file__, "--way", way, str(topology), folder]
            result[way] = json.loads(
                subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            found = lab_namespaces.find(read(topology).spec.name, Path(folder))
            if found is not None:
                lab_namespaces.destroy(found)
    result["saved_mib"] = {
        saved.made["hardware"]: saved.size // 2**20 for saved in machine_memory.stored(cache_root())
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
