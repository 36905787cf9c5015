"""Breaches by emulators that libvirt has not started, under the account of a guest's worker."""

from __future__ import annotations

from collections.abc import Callable

from checks.support.breaches import shell_breach
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach

QEMU = "/usr/bin/qemu-system-x86_64"
SANDBOX = "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
IN_PLACE = "-p PrivateMounts=yes -p PrivateDevices=yes -p NoNewPrivileges=yes"
_UNIT = "foreign-worker"


def foreign_worker(
    name: str,
    options: str | Callable[[BreachContext], str],
    properties: str = IN_PLACE,
    *,
    count: int = 1,
    before: Callable[[BreachContext], str] = lambda _: "true",
    after: str = "true",
    ready: str = "true",
) -> Breach:
    """Return a breach: emulators under the account of the first guest's worker.

    Args:
        name: the breach.
        options: of each emulator.
        properties: options of systemd-run(1).
        count: number of emulators.
        before: commands before they start.
        after: commands that remove what is left.
        ready: commands that succeed as soon as the wall is open.
    """
    units = " ".join(f"{_UNIT}-{number}" for number in range(count))
    started = f"[ $(readlink /proc/$(systemctl show -P MainPID $unit)/exe) = {QEMU} ]"

    def opens(context: BreachContext) -> str:
        words = options if isinstance(options, str) else options(context)
        return (
            f"{before(context)} && for unit in {units}; do "
            f"systemd-run -q --collect --unit=$unit --uid={context.guest.uid} {properties} {QEMU} "
            f"-machine none -nodefaults -display none -S {words} || exit 1; done; "
            f"for unit in {units}; do for look in $(seq 60); do {started} && break; sleep 0.5; done; "
            f"{started} || exit 1; done; sleep 3; "
            f"for look in $(seq 60); do {{ {ready}; }} && exit 0; sleep 0.5; done; exit 1"
        )

    return shell_breach(
        name,
        opens=opens,
        closes=lambda _: f"systemctl stop {units} 2>/dev/null; {after}; ! systemctl is-active -q {units}",
        shows=lambda _: f"for unit in {units}; do systemctl is-active -q $unit || exit 1; done; {ready}",
    )
