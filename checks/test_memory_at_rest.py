"""Memory of guests on the disks of a node: swap, core files and saved machines."""

from __future__ import annotations

from checks.support.breaches import needs_guest, shell_breach, worker_pid
from testbed.errors import InstrumentError
from testbed.hosts import rules
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses.worker_processes import observed

_PATTERN = "/proc/sys/kernel/core_pattern"
# Where libvirt writes the memory of a guest that is saved, dumped or photographed (libvirt, qemu.conf).
_STATE = "/var/lib/libvirt/qemu"
_FOLDERS = " ".join(f"{_STATE}/{name}" for name in ("save", "dump", "snapshot", "checkpoint", "ram"))
_LOOK = (
    f"tail -n +2 /proc/swaps; echo --; cat {_PATTERN}; echo --; "
    f"for folder in {_FOLDERS}; do [ ! -d $folder ] || find $folder -type f; done"
)
_SWAP = "/var/lib/breach.swap"
_CORE = "/var/lib/breach.core"
_SAVED = f"{_STATE}/save/breach.save"
_SWAP_SIZE = 4  # MiB
_SHOWN = 6


@check(
    id="STO-05",
    objective="No memory of a guest reaches a disk of its node: no swap, no core file, no saved guest",
    severity="high",
    effect=Effect.OBSERVES,
    local=True,
    applies=needs_guest,
    breaches=(
        shell_breach(
            "the node swaps to a file",
            opens=lambda _: (
                f"dd if=/dev/zero of={_SWAP} bs=1M count={_SWAP_SIZE} status=none && chmod 600 {_SWAP} && "
                f"mkswap {_SWAP} >/dev/null && swapon {_SWAP}"
            ),
            closes=lambda _: f"swapoff {_SWAP}; rm -f {_SWAP}; ! grep -q {_SWAP} /proc/swaps",
            shows=lambda _: f"grep -q {_SWAP} /proc/swaps",
        ),
        shell_breach(
            "a worker may write a core file",
            opens=lambda context: f"prlimit --pid {worker_pid(context)} --core=unlimited:unlimited",
            closes=lambda context: f"prlimit --pid {worker_pid(context)} --core=0:0",
            shows=lambda context: (
                f"grep -q '^Max core file size *unlimited' /proc/{worker_pid(context)}/limits"
            ),
        ),
        shell_breach(
            "the kernel hands core files to a program that stores them",
            opens=lambda _: f"echo '|/usr/bin/tee {_CORE}' > {_PATTERN}",
            closes=lambda _: f"echo '|/bin/false' > {_PATTERN}; rm -f {_CORE}",
            shows=lambda _: f"grep -q {_CORE} {_PATTERN}",
        ),
        shell_breach(
            "the memory of a saved guest is left on the node",
            opens=lambda _: f"install -D -m 600 /dev/null {_SAVED}",
            closes=lambda _: f"rm -f {_SAVED}",
            shows=lambda _: f"test -e {_SAVED}",
        ),
    ),
)
def test_no_memory_reaches_a_disk(fleet: Fleet, node: MachineView) -> None:
    parts = [part.strip() for part in node.read(f"{_LOOK}; echo --").split("--\n")]
    if len(parts) != 3:
        raise InstrumentError(
            f"{node.name} does not show where memory may go",
            fact=f"{len(parts)} of 3 answers",
            remedy="repeat the check",
        )
    swap, pattern, files = (part.removesuffix("--").strip() for part in parts)
    assert not swap, f"the node swaps: {swap.splitlines()[0]}"
    fault = rules.without_cores(observed(fleet, node).workers, pattern)
    assert not fault, fault
    assert not files, f"files with the memory of guests: {', '.join(files.splitlines()[:_SHOWN])}"
