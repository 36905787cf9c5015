"""Rules about traces: what an attack must not change in a root partition (BND-01). Pure.

`testbed.payload.node_traces` reads them on a node, before an attack and after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from testbed.hosts.rules import UnseenError
from testbed.untrusted.answers import formed
from testbed.untrusted.text import line

_Text = Annotated[str, Field(max_length=4096)]
_LONGEST = 2000  # entries of a list that the program sends
_SESSION = re.compile(r"session-\w+\.scope")
_LASTING = ("/machine.slice", "/system.slice")  # groups whose processes do not end by themselves
_LOGINS, _DAEMON = "/system.slice/ssh.service", "/usr/sbin/sshd"  # its other processes are logins, also ours
# Services that end when nothing has asked them for a while (`--exit-idle-time`, or by activation).
_IDLE = re.compile(r"/systemd-(hostnamed|timedated|localed|importd|tmpfiles-clean|networkd-persistent)\S*$")
# What the node itself writes while a guest comes and goes: records of what happens, and the states of
# libvirt, the switch and udev. No program is started from there.
_EXPECTED_FILES = (
    r"/var/log/(audit/audit\.log(\.\d+)?|journal/\w{32}/\S+\.journal~?|libvirt/qemu/[\w.-]+\.log(\.\d+)?)",
    r"/var/log/(wtmp|btmp|lastlog)(\.db)?|/var/lib/lastlog/\S+|/run/utmp",
    r"/var/log/(openvswitch|ovn)/[\w-]+\.log",
    r"/(etc|var/lib)/openvswitch/(\.?conf\.db(\.~lock~)?)",
    r"/run/udev/(data/[\w:+.-]+|queue|tags/\S+|links/\S+)",
    r"/run/systemd/(sessions|users|units|machines|journal/streams|seats|transient|io\.systemd\.\w+)/[\w:.@+-]+",
    r"/run/libvirt/(qemu|network|nwfilter-binding)/[\w.-]+",
    r"/run/lock/[\w.-]+|/run/sudo/ts/\w+",
    r"/dev/kvm|/dev/char/10:232",  # KVM announces each guest to udev, which sets their owners again
)
_EXPECTED_REPORTS = (
    # KVM refuses what a guest does: a counter that the processor does not have, which each guest asks for as
    # it boots, and what the emulated interrupt controller does not know. The rate is limited.
    r"kvm: kvm \[\d+\]: vcpu\d+, guest rIP: 0x[0-9a-f]+ Unhandled (RD|WR)MSR\(0x[0-9a-f]+\)( = 0x[0-9a-f]+)?",
    r"kvm: pic: (non byte (read|write)|(single mode|level sensitive irq) not supported)",
    # The machine below the node is slow.
    r"hrtimer: interrupt took \d+ ns",
    r"perf: interrupt took too long \(\d+ > \d+\), lowering kernel\.perf_event_max_sample_rate to \d+",
    r"workqueue: \w+( \[\w+\])? hogged CPU for >\d+us \d+ times, consider switching to WQ_(UNBOUND|BH)",
)


class Process(NamedTuple):
    """A process of user space.

    Args:
        start: when it started, in ticks of the node's clock since boot.
        program: path of its executable.
        group: its control group.
        account: its user id.
    """

    pid: int
    start: int
    program: _Text
    group: _Text
    account: int


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Traces:
    """What a node showed at one moment.

    Args:
        now: the node's clock, in seconds.
        sockets: protocol and address of each that receives without a connection.
        mounts: places of mounts.
        tainted: flags of the kernel; 0 if nothing has harmed it.
        reports: number and text of each warning of the kernel.
        files: kind and path of what has changed since an earlier moment, if one was given.
    """

    now: float
    processes: Annotated[tuple[Process, ...], Field(max_length=_LONGEST)]
    sockets: tuple[tuple[_Text, _Text], ...]
    modules: tuple[_Text, ...]
    mounts: tuple[_Text, ...]
    tainted: int
    reports: tuple[tuple[int, _Text], ...]
    files: tuple[tuple[_Text, _Text], ...]


_ANSWER = TypeAdapter(Traces)


def parsed(answer: object) -> Traces:
    """Return what a node showed.

    Raises:
        UnseenError: the answer has another form, or no process in it.
    """
    try:
        found = formed(_ANSWER, answer)
    except ValueError as error:
        raise UnseenError(str(error)) from error
    if not found.processes or not found.sockets or not found.modules:
        raise UnseenError("the node shows no processes, sockets or modules")
    return found


def left_behind(before: Traces, after: Traces) -> list[str]:
    """Return what is different after an attack.

    Raises:
        UnseenError: the node's clock went back, so changed files would not be seen.
    """
    if after.now <= before.now:
        raise UnseenError("the node's clock went back")
    kinds = {_kind(process) for process in before.processes}
    still = {(process.pid, process.start) for process in after.processes}
    known = {number for number, _ in before.reports}
    return [
        *sorted(
            {
                f"{line(item.program)} runs in {line(_kind(item)[1])} as {item.account}"
                for item in after.processes
                if _kind(item) not in kinds
            }
        ),
        *(
            f"{line(item.program)} of {line(item.group)} has ended or restarted"
            for item in before.processes
            if _lasts(item) and (item.pid, item.start) not in still
        ),
        *(
            f"{kind} {line(address)} receives"
            for kind, address in sorted({*after.sockets} - {*before.sockets})
        ),
        *(f"the module {line(name)} is loaded" for name in sorted({*after.modules} - {*before.modules})),
        *(f"{line(place)} is mounted" for place in sorted({*after.mounts} - {*before.mounts})),
        *([f"the kernel is tainted: {after.tainted:#x}"] if after.tainted & ~before.tainted else []),
        *(
            f"the kernel warns: {line(text)}"
            for number, text in after.reports
            if number not in known and not _is_expected(text, _EXPECTED_REPORTS)
        ),
        *(
            f"{kind} {line(path)} has changed"
            for kind, path in after.files
            if not _is_expected(path, _EXPECTED_FILES)
        ),
    ]


def _is_expected(text: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, text) for pattern in patterns)


def _lasts(process: Process) -> bool:
    """Return whether a process does not end by itself."""
    if process.group == _LOGINS:
        return process.program == _DAEMON
    return process.group.startswith(_LASTING) and not _IDLE.search(process.program)


def _kind(process: Process) -> tuple[str, str, int]:
    return process.program, _SESSION.sub("session.scope", process.group), process.account
