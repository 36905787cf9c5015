"""What an attack must not change in a root partition: rules over two looks (BND-01)."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.hosts.traces import Process, Traces, left_behind, parsed

QEMU, SSHD = "/usr/bin/qemu-system-x86_64", "/usr/lib/openssh/sshd-session"
WORKER = Process(900, 4000, QEMU, "/machine.slice/machine-qemu-1.scope/libvirt/emulator", 64100)
SWITCH = Process(500, 300, "/usr/sbin/ovs-vswitchd", "/system.slice/ovs-vswitchd.service", 0)
NAMES = Process(700, 900, "/usr/lib/systemd/systemd-hostnamed", "/system.slice/systemd-hostnamed.service", 0)
SESSION = Process(950, 9000, SSHD, "/user.slice/user-1000.slice/session-3.scope", 1000)
DAEMON = Process(400, 200, "/usr/sbin/sshd", "/system.slice/ssh.service", 0)
BEFORE = Traces(
    now=1000.0,
    processes=(WORKER, SWITCH, NAMES, SESSION, DAEMON),
    sockets=(("tcp", "0100007F:0016"),),
    modules=("kvm",),
    mounts=("/",),
    tainted=512,
    reports=((7, "an old warning"),),
    files=(),
)
AFTER = replace(BEFORE, now=1060.0)


def changed(**changes: Any) -> list[str]:
    return left_behind(BEFORE, replace(AFTER, **changes))


def test_a_node_that_is_as_before_shows_no_trace() -> None:
    assert left_behind(BEFORE, AFTER) == []


def test_sessions_and_idle_services_come_and_go() -> None:
    login = Process(970, 9100, "/usr/bin/dash", "/system.slice/ssh.service", 1000)
    assert left_behind(replace(BEFORE, processes=(*BEFORE.processes, login)), AFTER) == []
    session = SESSION._replace(pid=960, start=9900, group="/user.slice/user-1000.slice/session-c14.scope")
    assert changed(processes=(WORKER, SWITCH, DAEMON, session)) == []


@pytest.mark.parametrize(
    ("process", "fault"),
    [
        (
            SWITCH._replace(pid=990, program="/usr/bin/sleep"),
            "/usr/bin/sleep runs in /system.slice/ovs-vswitchd.service as 0",
        ),
        (SESSION._replace(pid=990, account=0), f"{SSHD} runs in session.scope as 0"),
        (
            WORKER._replace(pid=990, group="/machine.slice/other"),
            f"{QEMU} runs in /machine.slice/other as 64100",
        ),
    ],
)
def test_a_new_program_group_or_account_is_a_trace(process: Process, fault: str) -> None:
    (found,) = changed(processes=(*BEFORE.processes, process))
    assert found.replace("/user.slice/user-1000.slice/", "") == fault


@pytest.mark.parametrize("process", [WORKER, SWITCH, DAEMON])
def test_a_worker_or_service_that_ends_or_restarts_is_a_trace(process: Process) -> None:
    others = tuple(item for item in BEFORE.processes if item != process)
    for some in (
        others,
        (*others, process._replace(pid=process.pid + 1)),
        (*others, process._replace(start=9)),
    ):
        assert f"{process.program} of {process.group} has ended or restarted" in changed(processes=some)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"sockets": (*BEFORE.sockets, ("udp", "00000000:1234"))}, "udp 00000000:1234 receives"),
        ({"modules": ("kvm", "loop")}, "the module loop is loaded"),
        ({"mounts": ("/", "/mnt")}, "/mnt is mounted"),
        ({"tainted": 512 | 128}, "the kernel is tainted: 0x280"),
        ({"reports": ((7, "an old warning"), (8, "a new one"))}, "the kernel warns: a new one"),
        ({"files": (("file", "/etc/passwd"),)}, "file /etc/passwd has changed"),
        (
            {"files": (("socket", "/run/libvirt/qemu/channel/x/agent"),)},
            "socket /run/libvirt/qemu/channel/x/agent has changed",
        ),
        (
            {"files": (("file", "/var/log/audit/audit.log.sh"),)},
            "file /var/log/audit/audit.log.sh has changed",
        ),
        ({"files": (("file", "/run/udev/data/../../x"),)}, "file /run/udev/data/../../x has changed"),
    ],
)
def test_each_kind_of_trace_is_named(changes: Any, fault: str) -> None:
    assert changed(**changes) == [fault]


def test_what_a_node_writes_of_itself_is_expected() -> None:
    paths = (
        "/var/log/audit/audit.log",
        "/var/log/journal/9cdf02a0d69f59ef8b66c363ce1c6f30/system.journal",
        "/var/log/libvirt/qemu/red.web.log",
        "/etc/openvswitch/conf.db",
        "/run/udev/data/n12",
    )
    assert changed(files=tuple(("file", path) for path in paths)) == []


@pytest.mark.parametrize(
    "text",
    [
        "kvm: kvm [984]: vcpu0, guest rIP: 0xffffffff81096048 Unhandled WRMSR(0xc0010007) = 0xffff",
        "kvm: kvm [984]: vcpu0, guest rIP: 0xffffffff81096048 Unhandled RDMSR(0xc0010007)",
        "kvm: pic: non byte write",
        "kvm: pic: single mode not supported",
        "hrtimer: interrupt took 240952 ns",
        "workqueue: blk_mq_timeout_work hogged CPU for >10000us 4 times, consider switching to WQ_UNBOUND",
    ],
)
def test_what_kvm_refuses_and_what_is_slow_is_no_warning(text: str) -> None:
    assert changed(reports=(*BEFORE.reports, (8, text))) == []
    assert changed(reports=(*BEFORE.reports, (8, f"{text}; BUG"))) == [f"the kernel warns: {text}; BUG"]


def test_a_clock_that_went_back_hides_files_so_it_is_no_pass() -> None:
    with pytest.raises(UnseenError, match="clock"):
        changed(now=1000.0)


def test_an_answer_of_another_form_is_no_pass() -> None:
    answer = json.loads(json.dumps(asdict(BEFORE)))
    assert parsed(answer) == BEFORE
    for other in ({}, {**answer, "more": 1}, {**answer, "processes": []}, {**answer, "modules": []}):
        with pytest.raises(UnseenError):
            parsed(other)
