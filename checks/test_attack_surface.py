"""Attack surfaces of machines, compared with the baseline: what listens, what gives rights, what runs."""

from __future__ import annotations

from checks.support.breaches import shell_breach
from checks.support.judging import require_read
from testbed.verify import machine_surface
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView

_SHOWN = 6
_SOCKET, _PROGRAM = "/run/undeclared.sock", "/usr/local/bin/undeclared"
# cap_net_raw, permitted and in effect (struct vfs_cap_data of linux/capability.h).
_CAPABILITY = "0100000200200000000000000000000000000000"
_GIVE = f'import os; os.setxattr("{_PROGRAM}", "security.capability", bytes.fromhex("{_CAPABILITY}"))'


def _stop(*units: str) -> str:
    named = " ".join(f"undeclared.{unit}" for unit in units)
    return f"systemctl stop {named} 2>/dev/null; systemctl reset-failed {named} 2>/dev/null; true"


@check(
    id="PRO-01",
    objective="No machine has an attack surface beyond the baseline: listeners, privileged files, processes",
    severity="high",
    effect=Effect.OBSERVES,
    breaches=(
        shell_breach(
            "a socket listens that no part of the baseline names",
            opens=lambda _: (
                f"systemd-run --quiet --unit=undeclared --socket-property=ListenStream={_SOCKET} /bin/true"
            ),
            closes=lambda _: f"{_stop('socket', 'service')}; rm -f {_SOCKET}",
            shows=lambda _: f"[ -S {_SOCKET} ] && systemctl is-active --quiet undeclared.socket",
        ),
        shell_breach(
            "a file gives a capability to every account",
            opens=lambda _: f"install -m 0755 /bin/true {_PROGRAM} && python3 -c '{_GIVE}'",
            closes=lambda _: f"rm -f {_PROGRAM}",
            shows=lambda _: f"[ -x {_PROGRAM} ]",
        ),
        shell_breach(
            "a process runs that no part of the baseline names",
            opens=lambda _: "systemd-run --quiet --unit=undeclared /bin/sleep infinity",
            closes=lambda _: _stop("service"),
            shows=lambda _: "systemctl is-active --quiet undeclared.service",
        ),
    ),
)
def test_the_surface_is_that_of_the_baseline(fleet: Fleet, machine: MachineView) -> None:
    found = machine_surface.state(fleet, machine)
    assert not found.more, "\n".join((f"{len(found.more)} parts too many:", *found.more[:_SHOWN]))
    require_read(machine.name, found.gaps)
