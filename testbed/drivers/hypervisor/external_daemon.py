"""Access to a libvirt daemon of the outer machine from inside a lab's enclosure.

The daemon lives in the outer machine's namespaces, the lab's networks in the lab's own. A node's interface is
therefore one end of a veth pair: its other end is attached to the lab's bridge.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from testbed.errors import MachineError, UsageError

_SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtqemud-sock"))


@dataclass(frozen=True, slots=True)
class Outside:
    """The outer machine as seen from inside an enclosure.

    Args:
        uri: the libvirt URI, with a socket that can be reached from inside.
        network: descriptor of the outer machine's network namespace.
        fresh: whether the enclosure is new; domains that the daemon still runs for the lab have then lost
            their networks.

    """

    uri: str
    network: int
    fresh: bool

    @classmethod
    def take(cls, uri: str, *, fresh: bool) -> Outside:
        """Open the outer machine's root folder and network namespace.

        Call it before the process enters the enclosure, which hides both.

        Raises:
            UsageError: the URI does not name a daemon on this machine.
            MachineError: we cannot use the daemon.

        """
        path = require(uri)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY)
        network = os.open("/proc/self/ns/net", os.O_RDONLY)
        return cls(
            f"qemu+unix:///system?socket=/proc/self/fd/{root}{quote(str(path.resolve()))}", network, fresh
        )


def require(uri: str) -> Path:
    """Return the socket of a daemon that can run labs.

    Raises:
        UsageError: the URI does not name a daemon on this machine.
        MachineError: we cannot use the daemon.

    """
    path = socket_of(uri)
    if os.geteuid() != 0:
        what = f"only root can run a lab with {uri}"
        fact = "the daemon runs nodes in the machine's network namespace, where only root makes interfaces"
        raise MachineError(
            what, fact=fact, remedy="use sudo, or leave out --connect: the built-in libvirt needs no root"
        )
    if not path.exists():
        fact, remedy = f"there is no socket {path}", "start the daemon: `systemctl start libvirtd`"
        raise MachineError(f"cannot reach {uri}", fact=fact, remedy=remedy)
    return path


def socket_of(uri: str) -> Path:
    """Return the path of the socket that belongs to a libvirt URI.

    Raises:
        UsageError: it is not a URI of a QEMU daemon on this machine.

    """
    parts = urlsplit(uri)
    if parts.scheme not in ("qemu", "qemu+unix") or parts.netloc or parts.path != "/system":
        fact = "nodes need interfaces of this machine, and a daemon with the rights to use them"
        raise UsageError(
            f"cannot run a lab with {uri}",
            fact=fact,
            remedy="use qemu:///system, or qemu+unix:///system?socket=PATH",
        )
    named = parse_qs(parts.query).get("socket")
    return Path(named[0]) if named else next((path for path in _SOCKETS if path.exists()), _SOCKETS[0])
