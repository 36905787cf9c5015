"""What a worker may do beside its guest's work: system calls, privileges, devices and sockets."""

from __future__ import annotations

from checks.support.breaches import needs_guest, shell_breach
from testbed.errors import InstrumentError
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses import syscall_filter
from testbed.verify.witnesses.syscall_filter import Call
from testbed.verify.witnesses.worker_processes import Worker, observed

_FORK = 17  # SIGCHLD: flags of clone(2) that make a process, and not a thread
# Start of programs, change of identity, and administration of the node: `-sandbox` of QEMU denies them with
# elevateprivileges=deny, spawn=deny, or always (qemu(1)). Numbers are those of x86-64.
_FORBIDDEN = (
    Call("execve", 59),
    Call("fork", 57),
    Call("vfork", 58),
    Call("clone of a process", 56, (_FORK,)),
    Call("setuid", 105),
    Call("setgid", 106),
    Call("setreuid", 113),
    Call("setresuid", 117),
    Call("mount", 165),
    Call("swapon", 167),
    Call("reboot", 169),
    Call("kexec_load", 246),
    Call("execve of the x32 interface", syscall_filter.X32 | 520),
    Call("execve of 32 bits", 11, architecture=syscall_filter.I386),
)
_NEEDED = (Call("read", 0), Call("write", 1), Call("ppoll", 271), Call("futex", 202))
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
_QEMU = "/usr/bin/qemu-system-x86_64"
_UNIT = "foreign-worker"
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_IN_PLACE = "-p PrivateMounts=yes -p PrivateDevices=yes -p NoNewPrivileges=yes"


def _foreign(name: str, qemu: str, properties: str = _IN_PLACE) -> Breach:
    """Return a breach: a QEMU that libvirt has not started, under the account of the first guest's worker.

    Args:
        name: the breach.
        qemu: its options.
        properties: options of systemd-run(1).
    """
    process = f"/proc/$(systemctl show -P MainPID {_UNIT})/exe"
    return shell_breach(
        name,
        opens=lambda context: (
            f"systemd-run -q --collect --unit={_UNIT} --uid={context.guest.uid} {properties} {_QEMU} "
            f"-machine none -nodefaults -display none -S {qemu}; "
            f"for look in $(seq 60); do [ $(readlink {process}) = {_QEMU} ] && sleep 3 && exit 0; "
            "sleep 0.5; done; exit 1"
        ),
        closes=lambda _: f"systemctl stop {_UNIT} 2>/dev/null; ! systemctl is-active -q {_UNIT}",
        shows=lambda _: f"systemctl is-active -q {_UNIT}",
    )


@check(
    id="PRC-03",
    objective="Every worker runs under a system-call filter: it starts no program and changes no identity",
    severity="high",
    effect=Effect.OBSERVES,
    local=True,
    applies=needs_guest,
    breaches=(
        _foreign("a worker has no system-call filter", ""),
        _foreign(
            "a worker's filter lets it start programs",
            "-sandbox on,obsolete=deny,elevateprivileges=deny,resourcecontrol=deny",
        ),
        _foreign(
            "a worker's filter lets it change its identity",
            "-sandbox on,obsolete=deny,spawn=deny,resourcecontrol=deny",
        ),
    ),
)
def test_workers_run_under_a_filter(fleet: Fleet, node: MachineView) -> None:
    for worker in observed(fleet, node).workers:
        loose = [thread for thread in worker.threads if thread.seccomp != 2 or thread.bound != 1]
        assert worker.threads, f"{worker.name} has no thread"
        assert not loose, (
            f"{worker.name} has threads without a filter, or that can gain privileges: {loose[:3]}"
        )
        if worker.unread or not worker.filters:
            raise InstrumentError(
                f"the system-call filters of {worker.name} cannot be read",
                fact=worker.unread or "the kernel shows none",
                remedy="repeat the check",
            )
        allowed = _allowed(worker, _FORBIDDEN)
        assert not allowed, f"the filter of {worker.name} allows: {', '.join(allowed)}"
        if len(_allowed(worker, _NEEDED)) < len(_NEEDED):
            raise InstrumentError(
                f"the system-call filters of {worker.name} are not understood",
                fact="no worker could run under them, as they are read here",
                remedy="report this as a bug",
            )


def _allowed(worker: Worker, calls: tuple[Call, ...]) -> list[str]:
    try:
        return [call.name for call in calls if syscall_filter.allows(worker.filters, call)]
    except ValueError as error:
        raise InstrumentError(
            f"the system-call filters of {worker.name} are not understood",
            fact=str(error),
            remedy="report this as a bug",
        ) from error


def _worker_device(context: BreachContext) -> str:
    """Return the beginning of a command in the mount namespace of the first guest's worker."""
    return f"nsenter -m -t $(cat /run/libvirt/qemu/{context.guest.domain}.pid) --"


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
        _foreign(
            "a worker has a capability",
            f"-sandbox {_SANDBOX}",
            f"{_IN_PLACE} -p AmbientCapabilities=CAP_NET_ADMIN",
        ),
        _foreign(
            "a worker runs in the mount namespace of the node",
            f"-sandbox {_SANDBOX}",
            "-p NoNewPrivileges=yes",
        ),
        _foreign(
            "a worker listens on an address of the node",
            f"-sandbox {_SANDBOX} -serial tcp:127.0.0.1:4555,server=on,wait=off",
        ),
    ),
)
def test_workers_have_nothing_but_their_guest(fleet: Fleet, node: MachineView) -> None:
    found = observed(fleet, node)
    for worker in found.workers:
        able = [f"{thread.capabilities:#x}" for thread in worker.threads if thread.capabilities]
        assert not able, f"{worker.name} has capabilities: {', '.join(able)}"
        sharing = [other.name for other in found.workers if other != worker and other.mounts == worker.mounts]
        assert worker.mounts != found.mounts, f"{worker.name} sees the file systems of the node"
        assert not sharing, f"{worker.name} shares a mount namespace with {', '.join(sharing)}"
        foreign = sorted({*worker.devices} - _DEVICES)
        assert not foreign, f"{worker.name} has devices that it does not need: {', '.join(foreign[:6])}"
        assert not worker.sockets, f"{worker.name} has sockets of a network: {', '.join(worker.sockets[:6])}"
