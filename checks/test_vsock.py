"""vsock, the socket family between a virtual machine and its host: it must lead nowhere."""

from __future__ import annotations

from pathlib import Path

from checks.support.breaches import needs_guest, shell_breach
from checks.support.device_breaches import lodger_breach, with_device
from checks.support.judging import judging
from testbed import payload
from testbed.verify.check import Effect, check
from testbed.verify.devices import observe, vsock
from testbed.verify.fleet import Fleet, MachineView

_PROGRAM = Path(payload.__file__).parent / "vsock_sockets.py"
_UNIT, _PORT, _SHOWN = "breach-listener", 1024, 6
_LISTENER = (
    f"import socket, time; s = socket.socket(socket.AF_VSOCK); s.bind((0xffffffff, {_PORT})); s.listen(); "
    "time.sleep(100000)"
)
# Removes the kernel's vsock again: nothing else uses it.
_UNLOAD = (
    "modprobe -qr vhost_vsock; modprobe -qr vsock_loopback; modprobe -qr vsock_diag; "
    "modprobe -qr vmw_vsock_vmci_transport; modprobe -qr hv_sock; modprobe -qr vsock"
)
_DEVICE = (
    "<vsock model='virtio'><cid auto='no' address='77'/>"
    "<address type='pci' domain='0x0000' bus='0x00' slot='0x1e' function='0x0'/></vsock>"
)


def _listens(port: int) -> str:
    return f"ss --vsock -lnH | grep -q ':{port} '"


@check(
    id="DEV-04",
    objective="No vsock leads from a guest to its node or to another guest",
    severity="high",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        shell_breach(
            "a program of the root partition listens over vsock",
            opens=lambda _: (
                # an intruder loads it by name: no socket makes the kernel load it (ACC-10)
                f"modprobe -a vsock vsock_loopback vsock_diag && "
                f'systemd-run -q --collect --unit={_UNIT} python3 -c "{_LISTENER}"; '
                f"for look in $(seq 40); do {_listens(_PORT)} && exit 0; sleep 0.5; done; exit 1"
            ),
            closes=lambda _: (
                f"systemctl stop {_UNIT} 2>/dev/null; {_UNLOAD}; ! systemctl is-active -q {_UNIT}"
            ),
            shows=lambda _: _listens(_PORT),
        ),
        lodger_breach("a guest has a vsock device", with_device(_DEVICE), afterwards=f"{_UNLOAD}; true"),
    ),
)
def test_vsock_leads_nowhere(fleet: Fleet, node: MachineView) -> None:
    faults = []
    with judging(f"vsock on {node.name}"):
        for view in observe.domains(fleet, node):
            faults += [f"{view.name}: {text}" for text in vsock.devices(view.entries)]
        answer = node.python(_PROGRAM.read_text(), {}, function="collect")
        faults += [f"{node.name} has the socket {text}" for text in vsock.listeners(answer)]
        for guest, seen in observe.guests(fleet, node).items():
            found = vsock.devices(seen.entries) + vsock.paths(seen.vsock, observe.CONTEXTS, observe.PORTS)
            faults += [f"{guest.domain}: {text}" for text in found]
    assert not faults, "; ".join(faults[:_SHOWN])
