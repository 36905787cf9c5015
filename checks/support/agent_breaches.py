"""Breaches of channels between guests and their root partition (DEV-03)."""

from __future__ import annotations

from checks.support.breaches import shell_breach
from testbed.verify.breach_context import BreachContext


def _socket(context: BreachContext) -> str:
    """Return shell commands that set the folder and the socket of the first guest's agent."""
    domain = context.guest.domain
    return f"d=$(echo /run/libvirt/qemu/channel/$(virsh -q domid {domain})-*); s=$d/org.qemu.guest_agent.0; "


OPEN_SOCKET = shell_breach(
    "all accounts reach the socket of a guest's agent",
    opens=lambda context: f"{_socket(context)} chmod 755 $d && chmod 777 $s",
    closes=lambda context: f"{_socket(context)} chmod 750 $d && chmod 775 $s",
    shows=lambda context: f"{_socket(context)} [ $(stat -c %a $d)$(stat -c %a $s) = 755777 ]",
)
