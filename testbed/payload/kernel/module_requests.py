"""Asks the kernel, as an ordinary account, for everything for which it would load a module (ACC-10).

It runs as root on machines. The kernel names what it has modules for in its own list of aliases; a child that
is the account "nobody" asks for each family and protocol of sockets, each service of netlink and each line
discipline of terminals; and it asks for each kind of interface in a namespace of its own, where it would be
root (user_namespaces(7)). Modules that were loaded are removed again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import socket
import struct
from functools import partial

from testbed.payload.attacks import attempts
from testbed.payload.attacks.confinement import LIBC, required

_ALIAS = re.compile(
    r"alias (net-pf-(\d+)(?:-proto-(\d+))?(?:-(?:type|family)-(\S+))?|tty-ldisc-(\d+)) (\S+)\s*"
)
_LINK = re.compile(r"alias rtnl-link-(\S+) (\S+)\s*")
_ALIASES = 400  # of each of the two that are asked for, at most
_ACCOUNT = "nobody"
_SETD = 0x5423  # TIOCSETD, asm-generic/ioctls.h
_GENERIC, _DIAGNOSIS = 16, 4  # NETLINK_GENERIC and NETLINK_SOCK_DIAG, linux/netlink.h
_REQUEST, _DUMP = 0x1, 0x301  # NLM_F_REQUEST, and with NLM_F_DUMP (linux/netlink.h)
_CONTROLLER, _GET_FAMILY, _FAMILY_NAME = 16, 3, 2  # linux/genetlink.h
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY, linux/sock_diag.h
_NEW_LINK, _CREATE, _INFO, _KIND = 16, 0x405, 18, 1  # RTM_NEWLINK, linux/rtnetlink.h and linux/if_link.h
_NAMESPACES = 0x10000000 | 0x40000000  # CLONE_NEWUSER and CLONE_NEWNET, linux/sched.h
_INET = 6  # IPPROTO_TCP, which is built in
_DIAGNOSED = 56  # octets of the longest request for sockets (struct inet_diag_req_v2, linux/inet_diag.h)
_PROTOCOL = 3  # INET_DIAG_REQ_PROTOCOL, an attribute for numbers that an octet does not hold
_WAIT = 2.0  # seconds for an answer of the kernel


def collect(_: object) -> dict[str, object]:
    """Return how each request ended, and which modules came.

    Returns:
        ``outcomes``: by alias, "done" or the name of an error; ``loaded``: modules among those of the
        aliases that were not there before; ``control``: how it ends to ask for what is there, as the same
        account.
    """
    before = _modules()
    file = f"/lib/modules/{os.uname().release}/modules.alias"
    listed, kinds = _aliases(file, _ALIAS), _aliases(file, _LINK)
    wanted = {alias: module for alias, module in listed.items() if module not in before}
    entry = pwd.getpwnam(_ACCOUNT)
    control = attempts.tried(
        [("a socket of TCP", _open, (socket.AF_INET, socket.SOCK_STREAM, 0)), ("root's file", _shadow, ())],
        partial(attempts.become, entry),
    )
    asked = [(alias, _ask, (alias,)) for alias in wanted]
    asked.append(("interfaces in a namespace", _links, (list(kinds),)))  # type: ignore[arg-type]
    outcomes = attempts.tried(asked, partial(attempts.become, entry))  # type: ignore[arg-type]
    loaded = sorted((_modules() - before) & {*wanted.values(), *kinds.values()})
    for _round in range(2):  # some need others
        for module in loaded:
            if module in _modules():
                os.spawnlp(os.P_WAIT, "modprobe", "modprobe", "-qr", module)
    return {"outcomes": outcomes, "loaded": loaded, "control": control}


def _aliases(file: str, pattern: re.Pattern[str]) -> dict[str, str]:
    """Return the module of each alias that matches."""
    found: dict[str, str] = {}
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            named = pattern.fullmatch(line)
            if named and len(found) < _ALIASES:
                found[named[1]] = named[pattern.groups].replace("-", "_")
    return found


def _modules() -> set[str]:
    with open("/proc/modules", encoding="utf-8") as lines:
        return {line.split(" ", 1)[0] for line in lines}


def _shadow() -> None:
    attempts.open_path("/etc/shadow", os.O_RDONLY)


def _ask(alias: str) -> None:
    """Ask for what an alias stands for.

    Raises:
        OSError: the kernel refuses it, or has none.
    """
    named = _ALIAS.fullmatch(f"alias {alias} -")
    if named is None:
        raise OSError(errno.EINVAL, alias)
    if named[5]:
        _discipline(int(named[5]))
        return
    family, protocol, more = int(named[2]), int(named[3] or 0), named[4]
    if family == socket.AF_NETLINK and protocol == _GENERIC and more:
        _generic(more)
    elif family == socket.AF_NETLINK and protocol == _DIAGNOSIS and more:
        numbers = [int(part) for part in more.split("-")]
        _diagnosis(numbers[0], numbers[1] if len(numbers) > 1 else _INET)
    else:
        kind = socket.SOCK_RAW if family == socket.AF_NETLINK else socket.SOCK_STREAM
        _open(family, int(more) if more else kind, protocol)


def _open(family: int, kind: int, protocol: int) -> None:
    socket.socket(family, kind, protocol).close()


def _discipline(number: int) -> None:
    """Set the line discipline of a terminal."""
    ours, theirs = os.openpty()
    try:
        fcntl.ioctl(theirs, _SETD, struct.pack("i", number))
    finally:
        os.close(ours)
        os.close(theirs)


def _generic(name: str) -> None:
    """Ask for a family of generic netlink by its name."""
    text = name.encode() + b"\0"
    attribute = struct.pack("HH", 4 + len(text), _FAMILY_NAME) + text + bytes(-len(text) % 4)
    _send(_GENERIC, _CONTROLLER, _REQUEST, struct.pack("BBH", _GET_FAMILY, 1, 0) + attribute)


def _diagnosis(family: int, protocol: int) -> None:
    """Ask for a list of sockets."""
    payload = struct.pack("BB", family, min(protocol, 255)).ljust(_DIAGNOSED, b"\0")
    attribute = struct.pack("HHI", 8, _PROTOCOL, protocol) if protocol > 255 else b""
    _send(_DIAGNOSIS, _BY_FAMILY, _DUMP, payload + attribute)


def _links(kinds: list[str]) -> None:
    """Ask for interfaces of all kinds, in a network of the account's own.

    Raises:
        OSError: the account gets no namespaces.
    """
    required(LIBC.unshare(_NAMESPACES))
    for kind in kinds:
        text = kind.encode()
        told = struct.pack("HH", 4 + len(text), _KIND) + text + bytes(-len(text) % 4)
        request = struct.pack("BxHiII", 0, 0, 0, 0, 0) + struct.pack("HH", 4 + len(told), _INFO) + told
        attempts.outcome(_send, socket.NETLINK_ROUTE, _NEW_LINK, _CREATE, request)


def _send(protocol: int, kind: int, flags: int, payload: bytes) -> None:
    """Send a request to the kernel, and wait for its answer.

    Raises:
        OSError: the answer is an error.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as own:
        own.settimeout(_WAIT)
        own.bind((0, 0))
        own.send(struct.pack("IHHII", 16 + len(payload), kind, flags, 1, 0) + payload)
        answer = own.recv(65536)
    code = struct.unpack_from("i", answer, 16)[0] if struct.unpack_from("H", answer, 4)[0] == 2 else 0
    if code:
        raise OSError(-code, os.strerror(-code))
