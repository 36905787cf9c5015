"""Code in the kernels of machines that came after their memory was saved: programs, probes and patches."""

from __future__ import annotations

from checks.support.breaches import needs_guest, shell_breach, worker_pid
from checks.support.judging import require_read
from checks.support.kernel_programs import bpf_breach
from testbed.verify import machine_reference
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView

_SHOWN = 6
_PROBES = "/sys/kernel/tracing/kprobe_events"


@check(
    id="VMM-03",
    objective="The kernel of a machine runs no code that its image and its services have not loaded",
    severity="high",
    effect=Effect.OBSERVES,
    local=True,
    applies=lambda context: machine_reference.missing(context.lab, context.case),
    breaches=(
        bpf_breach(
            "a program of the kernel decides about all connections of services",
            lambda _: "/sys/fs/cgroup/system.slice",
            opens="connect",
            closes="disconnect",
            shows="connected",
        ),
        shell_breach(
            "a probe waits in the kernel",
            opens=lambda _: f"echo p:breach vfs_read >> {_PROBES}",
            closes=lambda _: f"! grep -q /breach {_PROBES} || echo -:breach >> {_PROBES}",
            shows=lambda _: f"grep -q /breach {_PROBES}",
        ),
    ),
)
def test_kernels_run_no_other_code(fleet: Fleet, machine: MachineView) -> None:
    _judge(fleet, machine, "VMM-03")


def _guests(context: BreachContext) -> str | None:
    return needs_guest(context) or machine_reference.missing(context.lab, context.case)


@check(
    id="PRC-04",
    objective="The kernel lets each worker open no devices but those of libvirt's list",
    severity="high",
    effect=Effect.OBSERVES,
    local=True,
    applies=_guests,
    breaches=(
        bpf_breach(
            "no filter of devices stands before a worker",
            worker_pid,
            opens="remove",
            closes="return",
            shows="removed",
        ),
        bpf_breach(
            "a worker's filter of devices lets it open the node's disk",
            worker_pid,
            opens="allow",
            closes="forbid",
            shows="allowed",
        ),
    ),
)
def test_workers_open_no_other_devices(fleet: Fleet, node: MachineView) -> None:
    _judge(fleet, node, "PRC-04")


def _judge(fleet: Fleet, machine: MachineView, control: str) -> None:
    found = machine_reference.kernel_code(fleet, machine.name)
    told = [str(item) for item in found.findings if control in item.controls]
    assert not told, "\n".join((f"{len(told)} things in the kernel are not as they must be:", *told[:_SHOWN]))
    require_read(machine.name, found.gaps)
