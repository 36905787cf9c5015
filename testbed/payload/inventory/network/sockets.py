"""Sockets of every family, with the processes that hold them.

A listener is a record of its own; a connected socket is a property of its process.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterable, Mapping

from testbed.payload.inventory.base.collect import Records, Unread, read

_INTERNET = ("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6")
_LISTEN = "0A"  # TCP_LISTEN, net/tcp_states.h
_ENDED = ("06", "07", "08", "09", "0B")  # TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING: no way in any more
_ACCEPTS = 0x00010000  # __SO_ACCEPTCON, linux/net.h
_TYPES = {"0001": "stream", "0002": "datagrams", "0005": "packets"}
_NETLINK = {
    0: "route",
    4: "sock_diag",
    5: "nflog",
    6: "xfrm",
    7: "selinux",
    8: "iscsi",
    9: "audit",
    10: "fib_lookup",
    11: "connector",
    12: "netfilter",
    14: "dnrt",
    15: "uevent",
    16: "generic",
    18: "scsi",
    20: "rdma",
    21: "crypto",
}
_EPHEMERAL = 32768  # ip_local_port_range's default
_SEEN = {
    "TCP",
    "TCPv6",
    "UDP",
    "UDPv6",
    "UDP-Lite",
    "UDPLITEv6",
    "RAW",
    "RAWv6",
    "PING",
    "PINGv6",
    "UNIX",
    "UNIX-STREAM",
    "NETLINK",
    "PACKET",
    "MPTCP",
    "MPTCPv6",
}
_CHANGING = re.compile(
    r"^@[0-9a-f]{5}$|(?<=/)\d+(?=/|$)"
)  # names that the kernel gives, and numbers of processes


class Socket:
    """A socket.

    Args:
        text: what it is, without numbers that change from start to start.
        open: whether it takes what others send.

    """

    def __init__(self, inode: str, text: str, *, open: bool, uid: str = "") -> None:  # noqa: A002
        self.inode, self.text, self.open, self.uid = inode, text, open, uid


def table(folder: str, records: Records | None = None) -> list[Socket]:
    """Return the sockets of a network namespace, from a folder like /proc/self/net."""
    found: list[Socket] = []
    readers = {**dict.fromkeys(_INTERNET, _internet), "unix": _unix, "packet": _packet, "netlink": _netlink}
    for name, reader in readers.items():
        try:
            lines = read(f"{folder}/{name}", 2**22).splitlines()[1:]
        except Unread as error:
            if records is not None and name in ("tcp", "udp", "unix", "packet", "netlink"):
                records.unread("listener", name, error)
            continue
        found += reader(name, lines)
    return found


def _internet(name: str, lines: Iterable[str]) -> list[Socket]:
    rows = [line.split() for line in lines]
    rows = [row for row in rows if len(row) > 9]
    listening = {row[1].rpartition(":")[2] for row in rows if row[3] == _LISTEN}
    found = []
    for row in rows:
        (address, port), (peer, far) = _place(row[1]), _place(row[2])
        connected = any(row[2].rpartition(":")[0].strip("0")) or far != 0
        if name.startswith("tcp"):
            if row[3] in _ENDED:
                continue
            accepted = row[1].rpartition(":")[2] in listening
            text = (
                f"{address}:{port}"
                if row[3] == _LISTEN
                else f"at {port} from {peer}"
                if accepted
                else f"to {peer}:{far}"
            )
        else:
            own = f"{address}:{port}" if port < _EPHEMERAL or not connected else "any port"
            text = f"{own} to {peer}:{far}" if connected else own
        found.append(
            Socket(
                row[9],
                f"{name} {text}",
                open=row[3] == _LISTEN or not (connected or name.startswith("tcp")),
                uid=row[7],
            )
        )
    return found


def _place(text: str) -> tuple[str, int]:
    """Return address and port of the kernel's hexadecimal form, in the machine's byte order."""
    words, _, port = text.partition(":")
    packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    address = socket.inet_ntop(family, packed)
    return (f"[{address}]" if ":" in address else address), int(port, 16)


def _unix(_: str, lines: Iterable[str]) -> list[Socket]:
    found = []
    for line in lines:
        row = line.split(None, 7)
        if len(row) > 6:
            path = _CHANGING.sub("N", row[7]) if len(row) > 7 else ""
            kind = _TYPES.get(row[4], row[4])
            accepts = bool(int(row[3], 16) & _ACCEPTS)
            found.append(
                Socket(
                    row[6],
                    f"unix {kind} {path}".strip(),
                    open=accepts or (bool(path) and kind == "datagrams"),
                )
            )
    return found


def _packet(_: str, lines: Iterable[str]) -> list[Socket]:
    rows = [row for row in map(str.split, lines) if len(row) > 8]
    return [Socket(row[8], f"packet {row[3]} link {row[4]}", open=True, uid=row[7]) for row in rows]


def _netlink(_: str, lines: Iterable[str]) -> list[Socket]:
    rows = [row for row in map(str.split, lines) if len(row) > 9]
    return [
        Socket(row[9], f"netlink {_NETLINK.get(int(row[1]), row[1])} groups {row[3]}", open=False)
        for row in rows
    ]


def described(tables: Iterable[Iterable[Socket]]) -> dict[str, str]:
    """Return a description of each socket, by its inode."""
    return {item.inode: item.text for found in tables for item in found}


def collect(records: Records, place: str, found: Iterable[Socket], holders: Mapping[str, set[str]]) -> None:
    """Record what listens in a network namespace.

    Args:
        place: name of the namespace.
        holders: labels of the processes that hold a socket, by its inode.

    """
    for item in found:
        if item.open:
            by = sorted(holders.get(item.inode, {"the kernel"}))
            records.add("listener", f"{place} {item.text}", {"by": by, "account": item.uid})


def families(records: Records, place: str, folder: str) -> None:
    """Record which protocols have sockets that no table of the kernel lists."""
    for line in read(f"{folder}/protocols").splitlines()[1:]:
        name, _, count = line.split()[:3]
        if name not in _SEEN and count not in ("0", "-1"):
            records.add("sockets of a family without a list", f"{place} {name}")
