"""Asks the kernel whether a list of its own is empty, so that no program is started to print nothing."""

from __future__ import annotations

import socket
import struct

_DONE, _DUMP = 3, 0x301  # NLMSG_DONE; NLM_F_REQUEST | NLM_F_DUMP, linux/netlink.h
_ROUTE, _XFRM, _NETFILTER = 0, 6, 12  # families of netlink
_BRIDGE = 7  # AF_BRIDGE, linux/socket.h
_SECONDS = 5.0
# Type and body of a request: linux/rtnetlink.h, linux/xfrm.h, linux/netfilter/nf_tables.h.
LINKS_OF_BRIDGES = (_ROUTE, 18, struct.pack("=BxHiII", _BRIDGE, 0, 0, 0, 0))
ENTRIES_OF_BRIDGES = (_ROUTE, 30, struct.pack("=BxxxiHBB", _BRIDGE, 0, 0, 0, 0))
POLICIES = (_XFRM, 0x15, bytes(4))
STATES = (_XFRM, 0x12, bytes(4))
TABLES = (_NETFILTER, 0x0A01, bytes(4))


def classes(link: int) -> tuple[int, int, bytes]:
    """Return the request for the classes of a link, by its number."""
    return _ROUTE, 42, struct.pack("=BxxxiIII", 0, link, 0, 0, 0)


def filters(link: int, parent: int = 0) -> tuple[int, int, bytes]:
    """Return the request for the filters of a link, by its number and by what they hang on."""
    return _ROUTE, 46, struct.pack("=BxxxiIII", 0, link, 0, parent, 0)


def empty(request: tuple[int, int, bytes]) -> bool:
    """Return whether the kernel says that a list is empty; in doubt, it is not."""
    family, kind, body = request
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as asked:
            asked.settimeout(_SECONDS)
            asked.send(struct.pack("=IHHII", 16 + len(body), kind, _DUMP, 1, 0) + body)
            answer = asked.recv(65536)
        _, told, _, _, _, status = struct.unpack_from("=IHHIIi", answer)
    except (OSError, struct.error):
        return False
    return bool(told == _DONE and status == 0)
