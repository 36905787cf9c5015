"""Facts about a host's workers that `testbed.payload.workers` has read. Pure."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from testbed.hosts.syscall_filter import Filter
from testbed.untrusted.answers import formed


class Thread(NamedTuple):
    """What the kernel holds against a thread.

    Args:
        seccomp: mode of seccomp; 2 is a filter (proc(5)).
        filters: number of its filters.
        bound: 1 if no program that it starts gains privileges (PR_SET_NO_NEW_PRIVS).
        capabilities: union of its inheritable, permitted, effective and ambient sets.
    """

    seccomp: int
    filters: int
    bound: int
    capabilities: int


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Worker:
    """The process behind one guest.

    Args:
        name: libvirt's name of the guest, or the number of a process that libvirt does not know.
        label: label of AppArmor or SELinux; empty if the kernel has neither.
        accounts: real, effective, saved and file system's user id.
        threads: one entry for all threads that are alike.
        mounts: its mount namespace.
        devices: nodes in its /dev, each as kind, numbers and path.
        sockets: its sockets of networks, each as protocol, local address and state.
        core: soft and hard limit of a core file's size.
        arguments: the words of its command line.
        filters: system-call filters of its first thread.
        unread: why these cannot be read; empty if they were.
    """

    name: str
    pid: int
    label: str
    accounts: tuple[int, ...]
    threads: tuple[Thread, ...]
    mounts: str
    devices: tuple[str, ...]
    sockets: tuple[str, ...]
    core: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    filters: tuple[Filter, ...] = ()
    unread: str = ""


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class HostFacts:
    """A host's workers and the settings of its root partition.

    Args:
        mounts: mount namespace of the root partition.
        system: name and version of the operating system.
        deduplication: state of the kernel's page merging: whether it runs, pages shared, pages sharing.
        swap: lines of /proc/swaps behind its head.
        core_pattern: where core files go (core(5)).
        sockets: libvirt's sockets, each as path, mode (octal), user and group id.
    """

    mounts: str
    workers: tuple[Worker, ...]
    system: str = ""
    deduplication: tuple[int, ...] = ()
    swap: tuple[str, ...] = ()
    core_pattern: str = ""
    sockets: tuple[tuple[str, str, int, int], ...] = ()


_ANSWER = TypeAdapter(HostFacts)


def parsed(answer: object) -> HostFacts:
    """Return the facts in an answer from a host.

    Raises:
        ValueError: it has another form.
    """
    return formed(_ANSWER, answer)
