"""Modules of the kernel that any account could have loaded: code that takes what the account sends."""

from __future__ import annotations

from checks.support.breaches import shell_breach
from checks.support.judging import judging
from testbed.plan.host_config.kernel_modules import CONFIGURATION, DISCIPLINES
from testbed.verify.attackers import programs
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses import module_requests

_SHOWN = 12
_NAMESPACES = "/proc/sys/kernel/unprivileged_userns_clone"


@check(
    id="ACC-10",
    objective="No account but root makes the kernel of a machine load a module",
    severity="medium",
    effect=Effect.PROBES,
    local=True,
    breaches=(
        shell_breach(
            "the kernel loads modules for sockets of any account",
            opens=lambda _: f"mount --bind /dev/null {CONFIGURATION}",
            closes=lambda _: f"while umount -q {CONFIGURATION}; do :; done; [ -s {CONFIGURATION} ]",
            shows=lambda _: f"[ ! -s {CONFIGURATION} ]",
        ),
        shell_breach(
            "the kernel loads line disciplines for terminals of any account",
            opens=lambda _: f"echo 1 > {DISCIPLINES}",
            closes=lambda _: f"echo 0 > {DISCIPLINES}",
            shows=lambda _: f"[ $(cat {DISCIPLINES}) = 1 ]",
        ),
        shell_breach(
            "every account gets a user namespace, where it is root",
            opens=lambda _: f"echo 1 > {_NAMESPACES}",
            closes=lambda _: f"echo 0 > {_NAMESPACES}",
            shows=lambda _: f"[ $(cat {_NAMESPACES}) = 1 ]",
        ),
        shell_breach(
            "a file in memory names a module for a family of sockets",
            opens=lambda _: (
                "mkdir -p /run/modprobe.d && echo alias net-pf-41 kcm > /run/modprobe.d/breach.conf"
            ),
            closes=lambda _: "rm -f /run/modprobe.d/breach.conf; rmdir /run/modprobe.d 2>/dev/null; true",
            shows=lambda _: "[ -s /run/modprobe.d/breach.conf ]",
        ),
    ),
)
def test_accounts_load_no_module(fleet: Fleet, machine: MachineView) -> None:
    with judging(f"modules of {machine.name}"):
        answer = programs.collect(machine, "module_requests", {}, package="kernel")
        loaded = module_requests.loaded(answer)
    assert not loaded, f"the kernel loaded {len(loaded)} modules for an account: {', '.join(loaded[:_SHOWN])}"
