"""Modules that the kernel loads by itself, for a socket or a terminal of any account (ACC-10). Pure.

The kernel would load some fifty modules for any account: sockets of families that no machine speaks, services
of netlink, a line discipline of terminals. Each is code of the kernel that takes what the account sends. What
machines need is loaded by name when they start, and root can load more by name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from functools import partial

from testbed.model.topology import Role
from testbed.plan.host_config import parsers

CONFIGURATION, OF_NODES = "/etc/modprobe.d/testbed.conf", "/etc/modprobe.d/testbed-node.conf"
TEXT = """\
# ACC-10: the kernel loads no module because an account opens a socket (modprobe.d(5)). This one it may ask
# for: nft does when the firewall is loaded.
alias net-pf-* off
alias net-pf-16-proto-12 nfnetlink
"""
TEXT_OF_NODES = """\
# ACC-10: strongSwan and the switch ask for these when they start.
alias net-pf-16-proto-6 xfrm_user
alias net-pf-16-proto-16-family-ovs_* openvswitch
"""
DISCIPLINES = "/proc/sys/dev/tty/ldisc_autoload"
# Files that this setting needs of `testbed.plan.host_config.settings.TEXTS`.
FILES = f"/etc/modprobe.d/* /run/modprobe.d/* {DISCIPLINES}"
CLOSED = "configuration as declared\nno line disciplines"
_PLACED = re.compile(r"(/(?:etc|run)/modprobe\.d/[^:]+):(.*)")

Parts = tuple[tuple[str, ...], str, str, Callable[..., str]]


def texts_of(role: Role) -> dict[str, str]:
    """Return the text of each file of the configuration of a machine, by its path."""
    return {CONFIGURATION: TEXT} | ({OF_NODES: TEXT_OF_NODES} if role is Role.NODE else {})


def requests(texts: str, role: Role) -> Parts:
    """Return the setting that accounts load no module: how it is observed, its value, its repair.

    Args:
        texts: the command that prints small files, each line behind the name of its file.
        role: of the machine.
    """
    return ((texts,), CLOSED, _repair(texts_of(role)), partial(told, role=role))


def told(texts: str, role: Role) -> str:
    """Return how the configuration differs from the declared one; `CLOSED` if it does not."""
    found: dict[str, str] = {}
    for placed in filter(None, map(_PLACED.fullmatch, texts.split("\n"))):
        found[placed[1]] = f"{found.get(placed[1], '')}{placed[2]}\n"
    wanted = texts_of(role)
    return "\n".join(
        (
            "configuration as declared"
            if {path: found.get(path) for path in wanted} == wanted
            else "configuration not as declared",
            "no line disciplines" if parsers.lines(texts, f"{DISCIPLINES}:") == "0" else "line disciplines",
            *(f"changed by {path}" for path in sorted(found.keys() - wanted)),
        )
    )


def _repair(wanted: Mapping[str, str]) -> str:
    """Return the commands that restore the files; one that is right stays (docs/decisions/0036)."""
    own = "|".join(wanted)
    return "; ".join(
        (
            f"for file in /etc/modprobe.d/* /run/modprobe.d/*; do case $file in {own}) ;; "
            "*) rm -f $file ;; esac; done",
            *(
                f"while umount -q {path}; do :; done; text={shlex.quote(text)}; "
                f'printf %s "$text" | cmp -s - {path} || printf %s "$text" > {path}'
                for path, text in wanted.items()
            ),
            f"echo 0 > {DISCIPLINES}",
        )
    )
