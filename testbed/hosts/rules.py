"""Rules about the workers of a host: each names what opens a wall, or returns the empty string. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from testbed.hosts.facts import HostFacts, Worker
from testbed.hosts.syscall_filter import I386, X32, Call, allows

_FILTERED = 2  # mode of seccomp (proc(5))
_FORK = 17  # SIGCHLD: flags of clone(2) that make a process, and not a thread
# Start of programs, change of identity, and administration of the node: `-sandbox` of QEMU denies them with
# elevateprivileges=deny, spawn=deny, or always (qemu(1)). Numbers are those of x86-64.
FORBIDDEN = (
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
    Call("execve of the x32 interface", X32 | 520),
    Call("execve of 32 bits", 11, architecture=I386),
)
_NEEDED = (Call("read", 0), Call("write", 1), Call("ppoll", 271), Call("futex", 202))
# AppArmor's label of a worker, or SELinux's with the two categories that libvirt chooses for each guest.
_CONFINED = re.compile(r"\S+ \(enforce\)|\S+:svirt\w*_t:s0:c\d+,c\d+")
_DISCARDED = ("|/bin/false", "|/usr/bin/false")  # patterns of core files that reach no disk
_SHOWN = 6  # findings that a text names


class UnseenError(Exception):
    """A rule cannot judge: the facts are not there, or not understood."""


def filtered(worker: Worker) -> str:
    """Return what a worker may call that no worker needs (PRC-03).

    Raises:
        UnseenError: its filters cannot be read or evaluated.
    """
    if any(thread.seccomp != _FILTERED for thread in worker.threads) or not worker.threads:
        return f"{worker.name} has a thread without a filter"
    if any(thread.bound != 1 for thread in worker.threads):
        return f"{worker.name} has a thread that can gain privileges"
    if worker.unread or not worker.filters:
        raise UnseenError(f"the filters of {worker.name}: {worker.unread or 'the kernel shows none'}")
    try:
        allowed, needed = (
            [call.name for call in calls if allows(worker.filters, call)] for calls in (FORBIDDEN, _NEEDED)
        )
    except ValueError as error:
        raise UnseenError(f"the filters of {worker.name}: {error}") from error
    if allowed:
        return f"the filter of {worker.name} allows: {', '.join(allowed)}"
    if len(needed) < len(_NEEDED):
        raise UnseenError(f"the filters of {worker.name}: no worker could run under them, as they are read")
    return ""


def unprivileged(worker: Worker, host: HostFacts, devices: Collection[str]) -> str:
    """Return what a worker has beside its guest: capabilities, files, devices, sockets (PRC-04).

    Args:
        worker: one of the host's.
        host: facts about the host.
        devices: device nodes that it may have.
    """
    able = sorted({f"{thread.capabilities:#x}" for thread in worker.threads if thread.capabilities})
    sharing = [
        other.name for other in host.workers if other.pid != worker.pid and other.mounts == worker.mounts
    ]
    foreign = sorted({*worker.devices} - {*devices})
    faults = {
        f"has capabilities: {', '.join(able)}": able,
        f"has sockets of a network: {', '.join(worker.sockets[:_SHOWN])}": worker.sockets,
        "sees the file systems of the node": worker.mounts == host.mounts,
        f"shares a mount namespace with {', '.join(sharing[:_SHOWN])}": sharing,
        f"has devices that it does not need: {', '.join(foreign[:_SHOWN])}": foreign,
    }
    return next((f"{worker.name} {text}" for text, found in faults.items() if found), "")


def without_cores(workers: Iterable[Worker], pattern: str) -> str:
    """Return which workers may write their guest's memory into a core file (STO-05).

    The limit of a core file's size does not bind a program that receives it (core(5)).

    Args:
        workers: those of one host.
        pattern: content of /proc/sys/kernel/core_pattern.
    """
    if pattern.startswith("|") and pattern not in _DISCARDED:
        return f"core files are handed to a program: {pattern[:200]}"
    able = [worker.name for worker in workers if worker.core != ("0", "0")]
    return f"workers may write core files: {', '.join(able[:_SHOWN])}" if able else ""


def one_account_each(workers: Iterable[Worker]) -> str:
    """Return which workers run as root, or under an account of another worker (PRC-01)."""
    owner: dict[int, str] = {}
    for worker in workers:
        accounts = {*worker.accounts}
        if 0 in accounts or not accounts:
            return f"{worker.name} runs as root"
        for account in accounts:
            if account in owner:
                return f"{owner[account]} and {worker.name} run under the account {account}"
        owner.update(dict.fromkeys(accounts, worker.name))
    return ""


def confined(workers: Iterable[Worker]) -> str:
    """Return which workers have no enforced label of their own, of AppArmor or SELinux (PRC-02)."""
    owner: dict[str, str] = {}
    for worker in workers:
        if not _CONFINED.fullmatch(worker.label):
            return f"{worker.name} runs under {f'the label {worker.label!r}' if worker.label else 'no label'}"
        if worker.label in owner:
            return f"{owner[worker.label]} and {worker.name} run under one label"
        owner[worker.label] = worker.name
    return ""
