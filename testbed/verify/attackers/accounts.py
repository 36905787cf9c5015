"""What the accounts of a node reach of its guests and of the hypervisor (BND-02).

No account but root may reach a guest's memory, by any way that Linux has: not even the account of its own
worker, which a process outside the worker could have. A worker's account reaches files and sockets of its own
guest, and accounts of workers use the hypervisor: these are their purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from testbed.hosts.rules import UnseenError
from testbed.model.topology import FIRST_WORKER_UID, POOLS
from testbed.topology_file.validation import WORKERS_PER_NODE
from testbed.verify.attackers import programs
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses.worker_processes import observed

_TIMEOUT = 120.0  # seconds
RANGE = (FIRST_WORKER_UID, FIRST_WORKER_UID + WORKERS_PER_NODE - 1)
_HYPERVISOR = "/dev/kvm"
# Devices through which memory of the node can be read or changed, and the one that moves guests' frames.
_DEVICES = ("/dev/mem", "/proc/kcore", "/dev/userfaultfd", "/dev/vhost-net")
_SHARED = ("use the hypervisor", "read /dev/vhost-net", "write /dev/vhost-net")  # by the group kvm
# Volumes, terminals, consoles and keys of guests; monitors, agents, and what manages guests and the switch.
_LISTED = (
    "stat -c '%u file %n' /dev/pts/[0-9]* /var/log/libvirt/qemu/*.log "
    f"/var/lib/libvirt/qemu/domain-*/master-key.aes {POOLS}/*/* 2>/dev/null; "
    "find /var/lib/libvirt/qemu /run/libvirt /run/openvswitch -xdev -type s "
    "-printf '%U socket %p\\n' 2>/dev/null; true"
)
_LIBVIRT = "libvirt-qemu"  # with which libvirt asks QEMU what it can do
_MEMORY = ("read the memory of", "copy the memory of", "trace", "take a descriptor of")
_REFUSED = {"EACCES", "EPERM"}
_ROOT = "root"


class Account(BaseModel):
    """How the attempts of one account ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    uid: int
    outcomes: dict[str, Annotated[str, Field(max_length=40)]]


_ANSWER = TypeAdapter(dict[str, Account])


def reached(fleet: Fleet, node: MachineView) -> list[str]:
    """Return what the accounts of a node reach, as texts.

    Raises:
        InstrumentError: the node does not answer, or a guest has no worker.
        UnseenError: the attempts would not have shown an open wall.
    """
    workers = observed(fleet, node).workers
    listed = [line.split(" ", 2) for line in node.read(_LISTED).splitlines()]
    paths = {path: (int(owner), kind) for owner, kind, path in listed}
    request = {
        "workers": {worker.name: worker.pid for worker in workers},
        "range": RANGE,
        "hypervisor": _HYPERVISOR,
        "devices": _DEVICES,
        "files": [path for path, (_, kind) in paths.items() if kind == "file"],
        "sockets": [path for path, (_, kind) in paths.items() if kind == "socket"],
    }
    answer = programs.collect(node, "account_attacks", request, _TIMEOUT)
    owners = {worker.name: worker.accounts[0] for worker in workers}
    return judged(answer, owners, {path: owner for path, (owner, _) in paths.items()})


def judged(answer: object, workers: Mapping[str, int], owners: Mapping[str, int]) -> list[str]:
    """Return what accounts reached.

    Args:
        answer: of `testbed.payload.attacks.account_attacks`.
        workers: the number of each worker's account, by guest.
        owners: the number of each path's owner.

    Raises:
        UnseenError: attempts are missing, or root could not reach guests either.
    """
    try:
        found = _ANSWER.validate_python(answer)
    except ValidationError as error:
        raise UnseenError(f"attempts of accounts: {error.error_count()} mistakes in the answer") from error
    possible = _possible(found, workers)
    faults = [f"{name} is root" for name, account in found.items() if not account.uid and name != _ROOT]
    for name, account in found.items():
        if account.outcomes.keys() != found[_ROOT].outcomes.keys():
            raise UnseenError(f"the attempts of {name} broke off")
        if account.uid:
            purpose = _purpose(name, account.uid, workers, owners)
            faults += [
                f"{name} can {attempt}"
                for attempt in possible
                if account.outcomes[attempt] not in _REFUSED and attempt not in purpose
            ]
    return faults


def _possible(found: Mapping[str, Account], workers: Mapping[str, int]) -> list[str]:
    """Return the attempts that succeed as root.

    Raises:
        UnseenError: one on a guest's memory or on the hypervisor does not, or accounts were not tried.
    """
    control = found[_ROOT].outcomes if _ROOT in found else {}
    needed = [_SHARED[0], *(f"{way} {guest}" for guest in workers for way in _MEMORY)]
    failed = {
        attempt: control.get(attempt, "not tried") for attempt in needed if control.get(attempt) != "done"
    }
    if failed:
        raise UnseenError(f"root cannot do it either: {failed}")
    tried = {account.uid for account in found.values()}
    if not {*workers.values()} < tried or all(RANGE[0] <= uid <= RANGE[1] for uid in tried - {0}):
        raise UnseenError(f"only {len(found)} accounts were tried")
    return [attempt for attempt, outcome in control.items() if outcome == "done"]


def _purpose(name: str, uid: int, workers: Mapping[str, int], owners: Mapping[str, int]) -> set[str]:
    """Return what an account is there for."""
    if name != _LIBVIRT and not RANGE[0] <= uid <= RANGE[1]:
        return set()
    own = [path for path, owner in owners.items() if owner == uid and uid in workers.values()]
    return {*_SHARED, *(f"{way} {path}" for path in own for way in ("read", "write", "connect to"))}
