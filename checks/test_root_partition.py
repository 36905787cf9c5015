"""Accounts of a node's root partition: none but root reaches guests or the hypervisor."""

from __future__ import annotations

from checks.support.breaches import mode_breach, needs_guest, shell_breach, worker_pid
from checks.support.judging import judging
from testbed.verify.attackers import accounts
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView

_TRACING = "/proc/sys/kernel/yama/ptrace_scope"
_ACCOUNT = "nobody"
_SHOWN = 6


def _terminal(context: BreachContext) -> str:
    """Return the word of a shell that is the terminal of the first guest's serial port."""
    return f"$(virsh ttyconsole {context.guest.domain})"


def _monitor(context: BreachContext) -> str:
    """Return a command that sets the variable "folder" of a shell to that of the first guest's monitor."""
    return (
        f"folder=$(tr '\\0' '\\n' < /proc/{worker_pid(context)}/cmdline | "
        'sed -n \'s#.*"\\(/var/lib/libvirt/qemu/domain[^"]*\\)/master-key.aes".*#\\1#p\') && '
    )


@check(
    id="BND-02",
    objective="No account of the root partition but root reaches a guest's memory or the hypervisor",
    severity="high",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        shell_breach(
            "processes of one account may trace each other",
            opens=lambda _: f"echo 0 > {_TRACING}",
            closes=lambda _: f"echo 2 > {_TRACING}",
            shows=lambda _: f"[ $(cat {_TRACING}) = 0 ]",
        ),
        mode_breach("every account may use the hypervisor", lambda _: "/dev/kvm", opened="666", shut="660"),
        shell_breach(
            "an ordinary account is in the hypervisor's group",
            opens=lambda _: f"gpasswd -a {_ACCOUNT} kvm",
            closes=lambda _: f"! id -nG {_ACCOUNT} | grep -qw kvm || gpasswd -d {_ACCOUNT} kvm",
            shows=lambda _: f"id -nG {_ACCOUNT} | grep -qw kvm",
        ),
        shell_breach(
            "every account may talk to a guest's monitor",
            opens=lambda context: f"{_monitor(context)} chmod o+rwx $folder $folder/monitor.sock",
            closes=lambda context: (
                f"{_monitor(context)} chmod 0750 $folder && chmod 0775 $folder/monitor.sock"
            ),
            shows=lambda context: f"{_monitor(context)} [ $(stat -c %a $folder) = 757 ]",
        ),
        shell_breach(
            "every account may use a guest's serial console",
            opens=lambda context: f"chmod o+rw {_terminal(context)}",
            closes=lambda context: f"chmod o-rw {_terminal(context)}",
            shows=lambda context: f"[ $(stat -c %a {_terminal(context)}) = 606 ]",
        ),
    ),
)
def test_accounts_do_not_reach_guests(fleet: Fleet, node: MachineView) -> None:
    with judging(f"the accounts of {node.name}"):
        reached = accounts.reached(fleet, node)
    assert not reached, f"{len(reached)} attempts succeeded: {'; '.join(reached[:_SHOWN])}"
