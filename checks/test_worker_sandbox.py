"""What a worker may do beside its guest's work: system calls, privileges, devices and sockets."""

from __future__ import annotations

from checks.support.breaches import needs_guest, shell_breach, worker_pid
from checks.support.foreign_worker import IN_PLACE, SANDBOX, foreign_worker
from checks.support.judging import judging
from testbed.hosts import rules
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses.worker_processes import observed

# Device nodes that qemu.conf gives every worker (playbooks/roles/hypervisor/files/qemu.conf), with their
# numbers (Linux, admin-guide/devices.txt): the name of a device node alone says nothing.
_DEVICES = frozenset(
    {
        "c 1:3 null",
        "c 1:5 zero",
        "c 1:7 full",
        "c 1:8 random",
        "c 1:9 urandom",
        "c 5:2 ptmx",
        "c 10:232 kvm",
    }
)


@check(
    id="PRC-03",
    objective="Every worker runs under a system-call filter: it starts no program and changes no identity",
    severity="high",
    effect=Effect.OBSERVES,
    local=True,
    applies=needs_guest,
    breaches=(
        foreign_worker("a worker has no system-call filter", ""),
        foreign_worker(
            "a worker's filter lets it start programs",
            "-sandbox on,obsolete=deny,elevateprivileges=deny,resourcecontrol=deny",
        ),
        foreign_worker(
            "a worker's filter lets it change its identity",
            "-sandbox on,obsolete=deny,spawn=deny,resourcecontrol=deny",
        ),
    ),
)
def test_workers_run_under_a_filter(fleet: Fleet, node: MachineView) -> None:
    for worker in observed(fleet, node).workers:
        with judging(f"the system-call filters of {worker.name}"):
            fault = rules.filtered(worker)
        assert not fault, fault


def _worker_device(context: BreachContext) -> str:
    """Return the beginning of a command in the mount namespace of the first guest's worker."""
    return f"nsenter -m -t {worker_pid(context)} --"


@check(
    id="PRC-04",
    objective="Every worker is without capabilities, foreign devices, and sockets of a network",
    severity="high",
    effect=Effect.OBSERVES,
    local=True,
    applies=needs_guest,
    breaches=(
        shell_breach(
            "a disk of the node appears in a worker's /dev",
            opens=lambda context: f"{_worker_device(context)} mknod -m 660 /dev/breach b 253 0",
            closes=lambda context: f"{_worker_device(context)} rm -f /dev/breach",
            shows=lambda context: f"{_worker_device(context)} test -b /dev/breach",
        ),
        foreign_worker(
            "a worker has a capability",
            SANDBOX,
            f"{IN_PLACE} -p AmbientCapabilities=CAP_NET_ADMIN",
        ),
        foreign_worker(
            "a worker runs in the mount namespace of the node",
            SANDBOX,
            "-p NoNewPrivileges=yes",
        ),
        foreign_worker(
            "a worker listens on an address of the node",
            f"{SANDBOX} -chardev socket,id=open,host=127.0.0.1,port=4555,server=on,wait=off",
        ),
    ),
)
def test_workers_have_nothing_but_their_guest(fleet: Fleet, node: MachineView) -> None:
    found = observed(fleet, node)
    for worker in found.workers:
        fault = rules.unprivileged(worker, found, _DEVICES)
        assert not fault, fault
