"""Measures a large lab's switches and ports in a real OVN, in one run.

    python benchmarks/northbound.py [NODES GUESTS]

Both databases and ovn-northd run from the root file system of the controller's image, without a virtual
machine. The code of `up` makes the switches and ports of a topology of that size over TLS, and observes them
again. Half the size and the whole size are measured, each in a process of its own. The program prints
seconds, and the peak memory of every process in MiB. There are no chassis, so their work is not measured.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from scale import INPUTS, topology_text

from testbed import data_files as packaged
from testbed.drivers.host.content_store import remove_tree
from testbed.drivers.host.private_files import write_secret
from testbed.drivers.host.process import as_root
from testbed.drivers.host.workspace import Workspace, cache_root
from testbed.drivers.pki import Authority
from testbed.drivers.places.controller import Controller, write_client
from testbed.drivers.ssh.client import Host
from testbed.engine.apply import perform
from testbed.engine.timing import Trace
from testbed.lab import build_inputs
from testbed.model.resolve import resolve
from testbed.model.topology import Plane, Topology
from testbed.plan import ovn_northbound
from testbed.plan.diff import diff
from testbed.plan.resources import Key, Kind, Properties, Resource, desired
from testbed.topology_file.loader import load

_SLOWNESS = 90.0  # a time limit of half an hour
# In namespaces of its own: loopback for the controller's address, /dev and /proc for the chroot, the
# databases as the role makes them, then both servers and ovn-northd as daemons.
_START = """set -e
ip link set lo up
mount --bind /dev "$1/dev"; mount -t proc proc "$1/proc"
chroot "$1" /bin/sh -e "/create-databases.sh"
for half in nb sb; do
  case $half in nb) schema=OVN_Northbound table=NB_Global;; sb) schema=OVN_Southbound table=SB_Global;; esac
  chroot "$1" ovsdb-server --detach --no-chdir --log-file=/var/log/$half.log --pidfile=/run/ovn/$half.pid --unixctl=/run/ovn/$half.ctl \\
    --remote=punix:/run/ovn/ovn${half}_db.sock --remote=db:$schema,$table,connections --private-key=/keys/server.pem \\
    --certificate=/keys/server.crt --ca-cert=/keys/clients.crt "/var/lib/ovn/ovn${half}_db.db"
done
chroot "$1" ovn-northd --detach --no-chdir --log-file=/var/log/northd.log --pidfile=/run/ovn/northd.pid --unixctl=/run/ovn/northd.ctl \\
  --ovnnb-db=unix:/run/ovn/ovnnb_db.sock --ovnsb-db=unix:/run/ovn/ovnsb_db.sock
"""  # noqa: E501 - lines of a program


class _Place(Controller):
    """A controller of which only the databases and ovn-northd run."""

    def wait(self) -> None:
        """Do nothing: there is no machine that boots."""

    def observe(self) -> dict[Key, Properties]:
        """Return the switches and ports, and the rows that no topology asked for."""
        found = {Key(self.name, Kind.SWITCH, name): item for name, item in self.northbound.switches().items()}
        strays = ovn_northbound.strays(self.northbound.tables(), self.topology.name)
        found[Key(self.name, Kind.DATABASE, ovn_northbound.NAME)] = dict(ovn_northbound.told(strays))
        return found | {
            Key(self.name, Kind.PORT, name): item for name, item in self.northbound.ports().items()
        }


def _wanted(topology: Topology) -> Mapping[Key, Resource]:
    kinds = (Kind.SWITCH, Kind.PORT, Kind.DATABASE)
    return {
        key: item
        for key, item in desired(topology, INPUTS).items()
        if key.place == topology.controller.name and key.kind in kinds
    }


@contextmanager
def _served(folder: Path, authority: Authority, name: str) -> Iterator[Path]:
    """Run the controller's databases and ovn-northd during the block; yield their root folder.

    They run in our own network namespace.
    """
    root = folder / "root"
    root.mkdir()
    archive = max(cache_root().glob("base-controller-*.tar"), key=lambda path: path.stat().st_mtime)
    subprocess.run(
        [*as_root(), "tar", "--extract", "--exclude=./dev/*", f"--file={archive}", f"--directory={root}"],
        check=True,
    )
    script = packaged.playbooks() / "roles/controller/files/create-databases.sh"
    (root / "create-databases.sh").write_bytes(script.read_bytes())
    keys, server = root / "keys", authority.tls(name, now=datetime.now(UTC))
    keys.mkdir()
    write_secret(keys / "server.pem", server.private_key)
    write_secret(keys / "server.crt", server.certificate)
    (keys / "clients.crt").write_bytes(authority.administrators_ca)
    (root / "run/ovn").mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["sh", "-c", _START, "sh", str(root)], check=True, stdout=subprocess.DEVNULL)
        yield root
    finally:
        for pid in _pids(root).values():
            subprocess.run(["kill", str(pid)], check=False)
        for mount in ("dev", "proc"):
            subprocess.run(["umount", "--lazy", str(root / mount)], check=False)


def _pids(root: Path) -> dict[str, int]:
    return {path.stem: int(path.read_text()) for path in sorted((root / "run/ovn").glob("*.pid"))}


def _peak(pid: int) -> int:
    """Return the peak memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1024


def measure(nodes: int, guests: int, folder: Path) -> dict[str, Any]:
    """Return the cost of the switches and ports of one topology.

    Call it in network and mount namespaces of its own.
    """
    topology = resolve(load(topology_text(nodes, guests), "scale.yaml").spec)
    workspace = Workspace(folder, topology.name)
    workspace.create()
    authority = Authority(workspace.pki)
    now = datetime.now(UTC)
    client = authority.administrator("testbed", start=authority.not_before, now=now)
    write_client(workspace, client.private_key, client.certificate)
    subprocess.run(
        ["ip", "address", "add", f"{topology.controller.address(Plane.MANAGEMENT)}/32", "dev", "lo"],
        check=True,
    )
    with _served(folder, authority, topology.controller.name) as root:
        place = _Place(
            topology,
            workspace,
            cast(Host, SimpleNamespace(name=topology.controller.name, close=lambda: None)),
            _SLOWNESS,
        )
        wanted = _wanted(topology)
        marks = [time.monotonic()]
        done = perform(diff(wanted, {}), place, lambda _: None, Trace(), "")
        marks.append(time.monotonic())
        place.northbound.sync()  # without a chassis, this waits for ovn-northd alone
        marks.append(time.monotonic())
        place.close()
        again = diff(wanted, place.observe())
        marks.append(time.monotonic())
        place.close()
        peaks = {f"{name}_mib": _peak(pid) for name, pid in _pids(root).items()}
    if again or len(done) != len(wanted):
        raise RuntimeError(
            f"{len(done)} of {len(wanted)} done; a second look finds "
            f"{[str(action) for action in again.actions[:3]]}"
        )
    apply_s, northd_s, look_again_s = (round(end - start, 1) for start, end in pairwise(marks))
    steps = {"apply_s": apply_s, "northd_s": northd_s, "look_again_s": look_again_s}
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"nodes": nodes, "guests": guests, "actions": len(done), **steps, "testbed_mib": own, **peaks}


def main() -> int:
    """Measure half of a size and that size, and print one JSON document."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))))
        return 0
    nodes, guests = (int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 2 else (1000, 10_000)
    build_inputs.prepare_inputs(lambda _: None)
    results = []
    for part in (2, 1):
        folder = Path(tempfile.mkdtemp(prefix="tb", dir="/var/tmp"))
        try:
            argv = [
                *as_root("--net"),
                sys.executable,
                __file__,
                "--one",
                str(nodes // part),
                str(guests // part),
                str(folder),
            ]
            results.append(
                json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout)
            )
        finally:
            remove_tree(folder)
    ratio = results[1]["apply_s"] / results[0]["apply_s"]
    print(json.dumps({"sizes": results, "twice_the_size_costs": round(ratio, 2)}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
