"""Measures what walls around storage and workers cost on a node of a running lab, in one run.

    python benchmarks/walls.py LAB [NODE] [--rounds 5]

On the disk that holds the volumes of the node's tenants, QEMU's own benchmark writes and reads 32 MiB past
the caches, in a raw file and in a LUKS container like those of volumes. Then QEMU starts and ends without a
guest: as it is, in the AppArmor profile of a guest, and in that profile with the filter of system calls. All
ways of a round follow one another, so that a busy machine slows all of them. The program prints one object of
JSON: median seconds of each way by the node's clock, and the median of the ratios of the rounds. What it has
made is gone at its end.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from statistics import median

from testbed.cli.context import entered, running_lab
from testbed.lab import build_inputs
from testbed.model.topology import POOLS

FOLDER = f"{POOLS}/benchmark"
SIZE, PIECE, DEPTH = 32 * 2**20, 64 * 2**10, 8  # octets of a file and of a request; requests at once
KEY = "--object secret,id=key,data=benchmark"  # of a container that holds nothing
RAW = f"-f raw {FOLDER}/raw"
LUKS = f"{KEY} --image-opts driver=luks,key-secret=key,file.driver=file,file.filename={FOLDER}/luks"
MAKE = (
    f"mkdir -p {FOLDER} && qemu-img create -q -f raw {FOLDER}/raw {SIZE} && "
    f"qemu-img create -q -f luks {KEY} -o key-secret=key,iter-time=10 {FOLDER}/luks {SIZE}"
)
WORKER = (
    "/usr/bin/qemu-system-x86_64 -machine q35,accel=kvm -cpu host -m 64 -nodefaults -display none -S "
    "-qmp stdio"
)
FILTER = "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
QUIT = '{"execute": "qmp_capabilities"} {"execute": "quit"}'
_COMPLETED = re.compile(r"Run completed in ([\d.]+) seconds")


def bench(image: str, *, write: bool) -> str:
    """Return the command that measures an image."""
    way = "-w" if write else ""
    return f"qemu-img bench {way} -t none -n -c {SIZE // PIECE} -d {DEPTH} -s {PIECE} {image}"


def start(command: str) -> str:
    """Return the command that lets QEMU start and end, and prints the nanoseconds that it took."""
    return (
        f"began=$(date +%s%N); echo '{QUIT}' | {command} > /dev/null || exit 1; "
        "ended=$(date +%s%N); echo $((ended - began))"
    )


def completed(printed: str) -> float:
    """Return the seconds that QEMU's benchmark prints.

    Raises:
        ValueError: it prints none.
    """
    found = _COMPLETED.search(printed)
    if found is None:
        raise ValueError(f"no benchmark: {printed[:200]!r}")
    return float(found[1])


def ways(profile: str) -> dict[str, tuple[str, Callable[[str], float]]]:
    """Return the command of each way, in the order of a round, and how its seconds are read."""

    def seconds(printed: str) -> float:
        return int(printed) / 1e9

    confined = f"aa-exec -p {profile} -- {WORKER}"
    return {
        "raw, write": (bench(RAW, write=True), completed),
        "LUKS, write": (bench(LUKS, write=True), completed),
        "raw, read": (bench(RAW, write=False), completed),
        "LUKS, read": (bench(LUKS, write=False), completed),
        "worker": (start(WORKER), seconds),
        "worker, profile": (start(confined), seconds),
        "worker, profile and filter": (start(f"{confined} {FILTER}"), seconds),
    }


RATIOS = (
    ("LUKS, write", "raw, write"),
    ("LUKS, read", "raw, read"),
    ("worker, profile", "worker"),
    ("worker, profile and filter", "worker"),
)


def main() -> int:
    """Measure all ways in turn, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lab")
    parser.add_argument("node", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    topology, workspace, _ = running_lab(given.lab)
    name = given.node or next(node.name for node in topology.nodes if topology.guests_on(node.name))
    measured = ways(f"libvirt-{topology.guests_on(name)[0].uuid}")
    rounds: list[dict[str, float]] = []
    with entered(topology, workspace, build_inputs.load_inputs()) as lab:
        host = lab.host(name)
        host.must(MAKE)
        try:
            for _ in range(given.rounds):
                rounds.append({way: read(host.must(command)) for way, (command, read) in measured.items()})
        finally:
            host.must(f"rm -rf {FOLDER}")
    print(
        json.dumps(
            {
                "rounds": given.rounds,
                "seconds": {way: round(median(one[way] for one in rounds), 3) for way in measured},
                "ratios": {
                    f"{way} / {to}": round(median(one[way] / one[to] for one in rounds), 2)
                    for way, to in RATIOS
                },
            },
            indent=1,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
