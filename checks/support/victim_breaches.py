"""Breaches that keep a guest from running, answering or writing, or its node from being managed (DOS-01)."""

from __future__ import annotations

from checks.support.breaches import shell_breach
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach

_PER_SECOND = 1  # operation, or byte, of a disk whose writes are held
_LOSS = "loss 30%"
_DAEMON = "pid=$(systemctl show -p MainPID --value libvirtd)"  # 0 if it does not run


def _tap(context: BreachContext) -> str:
    return context.guest.nics[0].tap


def _held(context: BreachContext) -> bool:
    return any(item.octets == _PER_SECOND for item in context.node.throttles(context.guest.domain))


PAUSED = shell_breach(
    "a guest is paused",
    opens=lambda context: f"virsh -q suspend {context.guest.domain}",
    closes=lambda context: (
        f'[ "$(virsh -q domstate {context.guest.domain})" != paused ] || '
        f"virsh -q resume {context.guest.domain}"
    ),
    shows=lambda context: f'[ "$(virsh -q domstate {context.guest.domain})" = paused ]',
)
LOSSY = shell_breach(
    "frames to a guest are lost",
    opens=lambda context: f"tc qdisc replace dev {_tap(context)} root netem {_LOSS}",
    closes=lambda context: (
        f"! tc qdisc show dev {_tap(context)} | grep -q netem || tc qdisc del dev {_tap(context)} root; "
        "modprobe -qr sch_netem || true"
    ),
    shows=lambda context: f"tc qdisc show dev {_tap(context)} | grep -q 'netem.* {_LOSS}'",
)
HELD_WRITES = Breach(
    "the writes of a guest are held",
    open=lambda context: context.node.throttle(context.guest, _PER_SECOND, _PER_SECOND),
    close=lambda context: context.node.throttle(
        context.guest, context.guest.limits.disk_operations, context.guest.limits.disk_bandwidth
    ),
    in_force=_held,
)
HELD_API = shell_breach(
    "libvirt's API is held",
    opens=lambda _: f'{_DAEMON}; [ "$pid" -gt 0 ] && kill -STOP "$pid"',
    closes=lambda _: f'{_DAEMON}; [ "$pid" = 0 ] || kill -CONT "$pid"',
    shows=lambda _: f"{_DAEMON}; grep -q '^State:.T' /proc/$pid/status",
)
