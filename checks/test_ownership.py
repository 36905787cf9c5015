"""One owner for everything behind a guest: its memory, files, devices, sockets and pipes."""

from __future__ import annotations

import os

from checks.support.breaches import needs_guest, needs_other_tenants, shell_breach
from checks.support.foreign_worker import SANDBOX, foreign_worker
from checks.support.judging import judging
from testbed.hosts import ownership
from testbed.model.topology import IMAGES, POOLS
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses.worker_objects import held

_KSM = "/sys/kernel/mm/ksm"
_FILE, _PIPE = "/run/breach.memory", "/run/breach.pipe"
_SIZE = "512K"  # less than a huge page, which is never merged; 256 equal pages at most have one frame
# Folders of the node with files from which every worker reads: programs, libraries, base images.
_COMMON = ("/usr", IMAGES)
_SHOWN = 6


@check(
    id="CMP-01",
    objective="The memory of every guest is its worker's alone: no file, and no frame of another worker",
    severity="critical",
    effect=Effect.OBSERVES,
    local=True,
    applies=needs_guest,
    breaches=(
        foreign_worker(
            "the memory of a worker is a file",
            f"{SANDBOX} -object memory-backend-file,id=open,mem-path={_FILE},share=on,size={_SIZE}",
            before=lambda context: f"truncate -s {_SIZE} {_FILE} && chown {context.guest.uid} {_FILE}",
            after=f"rm -f {_FILE}",
        ),
        foreign_worker(
            "a worker has a copy of a file for memory, which it shares until it writes",
            f"{SANDBOX} -object memory-backend-file,id=open,mem-path={_FILE},share=off,size={_SIZE}",
            before=lambda context: f"truncate -s {_SIZE} {_FILE} && chown {context.guest.uid} {_FILE}",
            after=f"rm -f {_FILE}",
        ),
        foreign_worker(
            "the kernel merges the memory of two workers",
            f"{SANDBOX} -object memory-backend-ram,id=open,merge=on,prealloc=on,size={_SIZE}",
            count=2,
            before=lambda _: f"echo 1 > {_KSM}/run",
            after=f"echo 2 > {_KSM}/run; echo 0 > {_KSM}/run",
            ready=f"[ $(cat {_KSM}/pages_sharing) -gt 0 ]",
        ),
    ),
)
def test_memory_is_private(fleet: Fleet, node: MachineView) -> None:
    with judging(f"the memory of workers on {node.name}"):
        faults = ownership.not_private(held(fleet, node), _COMMON)
    assert not faults, f"{len(faults)} faults: {'; '.join(faults[:_SHOWN])}"


def _foreign(context: BreachContext) -> str:
    """Return the pool of another tenant than the first guest's.

    It is that of a tenant on the node if there is one; else the breach creates the pool.
    """
    own, names = context.guest.tenant, [tenant.name for tenant in context.topology.tenants]
    here = [guest.tenant for guest in context.guests]
    return f"{POOLS}/{next(name for name in (*here, *names) if name != own)}"


@check(
    id="DEV-02",
    objective="Every file, device, socket and pipe behind a guest belongs to exactly one tenant",
    severity="critical",
    effect=Effect.OBSERVES,
    local=True,
    applies=needs_other_tenants,
    breaches=(
        shell_breach(
            "one tenant's volume is linked into another tenant's pool",
            opens=lambda context: (
                f"mkdir -p {_foreign(context)} && "
                f"ln {context.guest.root_disk} {_foreign(context)}/linked.qcow2"
            ),
            closes=lambda context: (
                f"rm -f {_foreign(context)}/linked.qcow2; rmdir --ignore-fail-on-non-empty "
                f"{_foreign(context)} || true"
            ),
            shows=lambda context: f"[ -e {_foreign(context)}/linked.qcow2 ]",
        ),
        foreign_worker(
            "a second emulator reads a guest's disk",
            lambda context: (
                f"{SANDBOX} -blockdev driver=file,node-name=open,read-only=on,locking=off,"
                f"filename={context.guest.root_disk}"
            ),
        ),
        foreign_worker(
            "two workers hold one pipe",
            f"{SANDBOX} -chardev pipe,id=open,path={_PIPE}",
            count=2,
            before=lambda context: f"mkfifo {_PIPE} && chown {context.guest.uid} {_PIPE}",
            after=f"rm -f {_PIPE}",
        ),
    ),
)
def test_every_object_has_one_owner(fleet: Fleet, node: MachineView) -> None:
    found = held(fleet, node)
    guests = {guest.domain: guest.tenant for guest in fleet.topology.guests_on(node.name)}
    tenants = {name: guests.get(name, name.partition(".")[0]) for name in found.workers}
    files: dict[str, set[str]] = {}
    for line in node.read(f"find {POOLS} -mindepth 2 -type f -printf '%D %i %P\\n'").splitlines():
        device, inode, path = line.split(" ", 2)
        identity = f"{os.major(int(device))}:{os.minor(int(device))}:{inode}"
        files.setdefault(identity, set()).add(path.partition("/")[0])
    shared = ownership.owned_twice(found, tenants, files, _COMMON)
    assert not shared, f"{len(shared)} objects have several owners: {'; '.join(shared[:_SHOWN])}"
