"""One network namespace: links, routes, rules, bridges, sockets, kernel settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, Unread, read
from testbed.payload.inventory.host import kernel
from testbed.payload.inventory.network import filters, iproute, netlink, sockets

_NEWNET = 0x40000000  # CLONE_NEWNET, linux/sched.h
# Of a link: counters, and numbers that the kernel gives in the order in which links appear.
_CHANGING = {
    "ifindex",
    "link_index",
    "stats",
    "stats64",
    "gc_timer",
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "promiscuity",
    "valid_life_time",
    "preferred_life_time",
    "expires",
    "used",
    "confirmed",
    "updated",
    "refcnt",
}
_FLAGS = {
    "UP",
    "BROADCAST",
    "MULTICAST",
    "NOARP",
    "PROMISC",
    "ALLMULTI",
    "LOOPBACK",
    "POINTOPOINT",
    "LOWER_UP",
    "NO-CARRIER",
    "M-DOWN",
}


def enter(path: str) -> None:
    """Move this process into a network namespace.

    Raises:
        Unread: it cannot.

    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if hasattr(os, "setns"):
                os.setns(file, _NEWNET)
            else:
                _setns(file)
        finally:
            os.close(file)
    except OSError as error:
        raise Unread(f"it cannot be entered: {error.strerror}") from error


def _setns(file: int) -> None:
    import ctypes  # noqa: PLC0415 - it loads slowly, and is needed before Python 3.12 only

    if ctypes.CDLL(None, use_errno=True).setns(file, _NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def collect(records: Records, place: str, path: str, holders: Mapping[str, set[str]]) -> None:
    """Record everything of a network namespace.

    Args:
        place: its name.
        path: its file; empty for the one that this process is in.
        holders: labels of the processes that hold a socket, by its inode.

    """
    if path:
        enter(path)
    sockets.collect(records, place, sockets.table("/proc/self/net", records), holders)
    parts = (
        _addressing,
        _bridges,
        filters.traffic,
        filters.packet_filter,
        filters.transforms,
        filters.old_filters,
        _vsock,
    )
    for part in parts:
        try:
            part(records, place)
        except Unread as error:
            records.unread(part.__name__.strip("_"), place, error)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            records.unread(
                part.__name__.strip("_"), place, f"a tool prints something else than expected: {error!r}"
            )
    sockets.families(records, place, "/proc/self/net")
    kernel.settings(records, "/proc/sys/net", place)


def _addressing(records: Records, place: str) -> None:
    """Record links with their addresses, routes, rules and permanent neighbours."""
    links, routes, rules, *neighbours = iproute.asked(
        records,
        place,
        ["ip", "-j", "-d"],
        [
            ("link", "address show"),
            ("route", "route show table all"),
            ("rule", "rule show"),
            ("neighbour", "neighbour show nud permanent"),
            ("neighbour", "neighbour show proxy"),
        ],
    )
    for link in links:
        _link(records, place, link)
    for route in routes:
        key = " ".join(str(route.get(name, "")) for name in ("type", "dst", "table", "dev"))
        records.add("route", f"{place} {key}", iproute.without(route, _CHANGING))
    (later,) = iproute.asked(records, place, ["ip", "-j", "-6"], [("rule", "rule show")])
    for family, found in (("-4", rules), ("-6", later)):
        for rule in found:
            key = f"{place} {family} {rule.get('priority')} {rule.get('src')}"
            records.add("rule", key, iproute.without(rule, ("protocol",)))
    for item in (*neighbours[0], *neighbours[1]):
        records.add(
            "neighbour", f"{place} {item.get('dev')} {item.get('dst')}", iproute.without(item, _CHANGING)
        )


def _link(records: Records, place: str, link: dict[str, Any]) -> None:
    addresses = link.pop("addr_info", [])
    name = link.get("ifname", "?")
    link["flags"] = sorted(set(link.get("flags", [])) & _FLAGS)
    records.add("link", f"{place} {name}", iproute.without(link, _CHANGING))
    for address in addresses:
        records.add(
            "address",
            f"{place} {name} {address.get('local')}/{address.get('prefixlen')}",
            iproute.without(address, _CHANGING),
        )


def _bridges(records: Records, place: str) -> None:
    """Record ports of bridges, and entries of their tables that were not learnt from frames."""
    links = [("bridge port", "link show"), ("bridge port", "vlan show")]  # the latter fails without a bridge
    questions = [] if netlink.empty(netlink.LINKS_OF_BRIDGES) else links
    if not netlink.empty(netlink.ENTRIES_OF_BRIDGES):
        questions.append(("bridge entry", "fdb show"))
    answers = iproute.asked(records, place, ["bridge", "-j", "-d"], questions) if questions else []
    found = [(domain, item) for (domain, _), items in zip(questions, answers, strict=True) for item in items]
    for domain, item in found:
        if domain == "bridge port":
            records.add("bridge port", f"{place} {item.get('ifname')}", iproute.without(item, _CHANGING))
        elif item.get("state") in ("permanent", "static"):
            key = f"{place} {item.get('ifname')} {item.get('mac')} {item.get('vlan', '')}".rstrip()
            records.add("bridge entry", key, iproute.without(item, _CHANGING))


def _vsock(records: Records, place: str) -> None:
    if "\nAF_VSOCK " not in read("/proc/self/net/protocols"):
        return  # the kernel has no such sockets
    # ss(8) needs it, and machines of a lab load it for no request (ACC-10). Its status says nothing.
    programs.run(["modprobe", "-q", "vsock_diag"], complaints=[])
    for line in programs.run(["ss", "-H", "-n", "-l", "--vsock"]).splitlines():
        records.add("listener", f"{place} vsock {' '.join(line.split()[3:5])}")
