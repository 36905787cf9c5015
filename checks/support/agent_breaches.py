"""Breaches of channels between guests and their root partition, and of the tool's own bounds (DEV-03)."""

from __future__ import annotations

from typing import Any

from checks.support.breaches import shell_breach, unit_breach
from testbed.plan.host_config.daemon_limits import CONTROL, GROUP, LIMIT, UNIT
from testbed.untrusted import bounded_json, text
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach

_LONG = 100  # seconds, instead of the time-out of a question
_LOG = "/var/log/breach-agent.log"


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
TEXT_IN_LOG = unit_breach(
    "a program writes what agents answer to a log of the node",
    ("/bin/sh", "-c", f"exec journalctl -f -n 0 -o cat -u libvirtd > {_LOG}"),
    f"rm -f {_LOG}",
)
TEXT_IN_JOURNAL = unit_breach(
    "a program writes what agents answer to the journal, line by line",
    ("/bin/sh", "-c", "journalctl -f -n 0 -o cat -u libvirtd | systemd-cat"),
    "true",
)
NO_LIMIT = shell_breach(
    "libvirtd may use all memory of its node",
    opens=lambda _: f"systemctl set-property --runtime {UNIT} MemoryMax=infinity",
    closes=lambda _: (
        f"rm -rf {CONTROL}/{UNIT}.d; rmdir {CONTROL} 2>/dev/null; systemctl daemon-reload; {LIMIT}"
    ),
    shows=lambda _: f"grep -qx max {GROUP}/memory.max",
)


def _patched(name: str, module: object, attribute: str, value: object) -> Breach:
    """Return a breach by another value of one of the tool's own limits; it ends with this process."""
    own = getattr(module, attribute)
    return Breach(
        name,
        open=lambda _: setattr(module, attribute, value),
        close=lambda _: setattr(module, attribute, own),
        in_force=lambda _: getattr(module, attribute) is value,
    )


def _unescaped(words: object, limit: int = text.SIZE) -> str:
    return str(words)[:limit]


NO_BOUND = _patched("the tool reads integers of any size", bounded_json, "WHOLE", 2**80)
NO_ESCAPING = _patched("the tool shows texts of guests as they are", text, "clean", _unescaped)


class _Unlimited:
    """Asks agents as a node does, and lets libvirt wait for minutes for the answer."""

    def __init__(self, node: Any) -> None:  # noqa: ANN401 - checks import no driver
        self._node, self.kept = node, vars(node).get("agent")

    def __call__(self, name: str, command: str, arguments: dict[str, object], _: int) -> dict[str, Any]:
        answer: dict[str, Any] = self._node.hypervisor.agent(name, command, arguments, _LONG)
        return answer


def _lift(context: BreachContext) -> None:
    vars(context.node)["agent"] = _Unlimited(context.node)


def _lifted(context: BreachContext) -> bool:
    return isinstance(vars(context.node).get("agent"), _Unlimited)


def _limit(context: BreachContext) -> None:
    if _lifted(context):
        kept = vars(context.node).pop("agent").kept
        vars(context.node).update({"agent": kept} if kept else {})


NO_TIMEOUT = Breach("the tool waits for agents for minutes", open=_lift, close=_limit, in_force=_lifted)
