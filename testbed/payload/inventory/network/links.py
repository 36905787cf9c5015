"""One network namespace: links, routes, filters, transforms, bridges, kernel settings."""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, Unread, read
from testbed.payload.inventory.host import kernel
from testbed.payload.inventory.network import sockets

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
_COUNTERS = {
    "bytes",
    "packets",
    "drops",
    "overlimits",
    "requeues",
    "backlog",
    "qlen",
    "stats",
    "installed",
    "last_used",
    "first_used",
    "refcnt",
    "handle",
    "ref",
    "bind",
    "not_in_hw",
    "in_hw_count",
    "id",
    "cookie",
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
            elif ctypes.CDLL(None, use_errno=True).setns(file, _NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(file)
    except OSError as error:
        raise Unread(f"it cannot be entered: {error.strerror}") from error


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
        _links,
        _routes,
        _neighbours,
        _bridges,
        _traffic,
        _packet_filter,
        _transforms,
        _old_filters,
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


def without(value: Any, names: Iterable[str]) -> Any:
    """Return a JSON value without some keys of its objects."""
    if isinstance(value, dict):
        return {key: without(item, names) for key, item in value.items() if key not in names}
    return [without(item, names) for item in value] if isinstance(value, list) else value


def _batch(records: Records, place: str, domain: str, tool: list[str], lines: list[str]) -> list[Any]:
    """Return the objects that several commands of a tool of iproute2 print; one may fail."""
    whole = True
    try:
        text = programs.run([*tool, "-force", "-batch", "-"], "".join(f"{line}\n" for line in lines))
    except Unread as error:
        records.unread(domain, place, error)
        text, whole = error.output, False
    found: list[Any] = []
    for value in programs.values(text, whole=whole):
        found += value if isinstance(value, list) else [value]
    return [item for item in found if item]


def _links(records: Records, place: str) -> None:
    for link in _batch(records, place, "link", ["ip", "-j", "-d"], ["address show"]):
        addresses = link.pop("addr_info", [])
        name = link.get("ifname", "?")
        link["flags"] = sorted(set(link.get("flags", [])) & _FLAGS)
        records.add("link", f"{place} {name}", without(link, _CHANGING))
        for address in addresses:
            records.add(
                "address",
                f"{place} {name} {address.get('local')}/{address.get('prefixlen')}",
                without(address, _CHANGING),
            )


def _routes(records: Records, place: str) -> None:
    for route in _batch(records, place, "route", ["ip", "-j", "-d"], ["route show table all"]):
        key = " ".join(str(route.get(name, "")) for name in ("type", "dst", "table", "dev"))
        records.add("route", f"{place} {key}", without(route, _CHANGING))
    for family in ("-4", "-6"):
        for rule in _batch(records, place, "rule", ["ip", "-j", family], ["rule show"]):
            records.add("rule", f"{place} {family} {rule.get('priority')} {rule.get('src')}", rule)


def _neighbours(records: Records, place: str) -> None:
    for item in _batch(
        records, place, "neighbour", ["ip", "-j"], ["neighbour show nud permanent", "neighbour show proxy"]
    ):
        records.add("neighbour", f"{place} {item.get('dev')} {item.get('dst')}", without(item, _CHANGING))


def _bridges(records: Records, place: str) -> None:
    for item in _batch(records, place, "bridge", ["bridge", "-j", "-d"], ["link show", "vlan show"]):
        records.add("bridge port", f"{place} {item.get('ifname')}", without(item, _CHANGING))
    for item in _batch(records, place, "bridge", ["bridge", "-j", "-d"], ["fdb show"]):
        if item.get("state") in ("permanent", "static"):  # others are learnt from frames
            key = f"{place} {item.get('ifname')} {item.get('mac')} {item.get('vlan', '')}".rstrip()
            records.add("bridge entry", key, without(item, _CHANGING))


def _traffic(records: Records, place: str) -> None:
    """Record queueing disciplines, their classes and filters."""
    queues = _batch(records, place, "tc", ["tc", "-j", "-d"], ["qdisc show"])
    lines = []
    for item in queues:
        device, kind = item.get("dev"), item.get("kind")
        records.add(
            "queue", f"{place} {device} {kind} {item.get('parent', 'root')}", without(item, _COUNTERS)
        )
        if kind in ("clsact", "ingress"):
            sides = ("ingress", "egress") if kind == "clsact" else ("parent ffff:",)
            lines += [f"filter show dev {device} {side}" for side in sides]
        elif kind not in ("noqueue", "pfifo_fast", "fq_codel", "mq", "fq"):
            lines += [f"class show dev {device}", f"filter show dev {device}"]
    for line in lines:
        for item in programs.run_json(["tc", "-j", "-d", *line.split()]):
            for entry in item:
                if entry.get("options") or entry.get("class"):
                    records.add(line.partition(" ")[0], f"{place} {line}", without(entry, _COUNTERS))
    for item in _batch(
        records, place, "tc", ["tc", "-j"], ["filter show block 1"] if "block" in json.dumps(queues) else []
    ):
        records.add("filter", f"{place} block", without(item, _COUNTERS))


def _packet_filter(records: Records, place: str) -> None:
    """Record every table of nftables: its chains with their rules in order, sets, maps, objects."""
    text = programs.run(["nft", "-j", "-s", "list", "ruleset"])
    rules: dict[str, list[str]] = defaultdict(list)
    for item in json.loads(text).get("nftables", []) if text.strip() else []:
        ((kind, told),) = item.items()
        if kind == "metainfo":
            continue
        told = without(told, ("handle", "index"))
        name = " ".join(str(told[key]) for key in ("family", "table", "chain", "name") if key in told)
        if kind == "rule":
            rules[name].append(json.dumps(told.get("expr", told), sort_keys=True))
            continue
        if isinstance(told.get("elem"), list):
            told["elem"] = sorted(json.dumps(_element(entry), sort_keys=True) for entry in told["elem"])
        records.add(f"nft {kind}", f"{place} {name}", told)
    for name, found in rules.items():
        records.add("nft rules", f"{place} {name}", found)


def _element(entry: Any) -> Any:
    """Return an element of a set without the time that it has left."""
    inner = entry.get("elem") if isinstance(entry, dict) else None
    return (
        {"elem": {key: value for key, value in inner.items() if key not in ("expires", "counter")}}
        if isinstance(inner, dict)
        else entry
    )


_STATE = re.compile(r"^src (\S+) dst (\S+)")


def _transforms(records: Records, place: str) -> None:
    """Record policies and states of xfrm, without keys and without numbers that are renewed."""
    for text in programs.run(["ip", "-o", "xfrm", "policy"]).splitlines():
        policy = re.sub(r"\breqid \d+|\bindex \d+|\bptype \S+", "", text.replace("\\", " "))
        key = re.match(r"\s*src (\S+) dst (\S+).*?\bdir (\w+)", policy)
        words = " ".join(policy.split())
        if "socket" not in words.split():
            records.add("xfrm policy", f"{place} {' '.join(key.groups()) if key else words[:200]}", words)
    states: dict[str, set[str]] = defaultdict(set)
    for text in programs.run(["ip", "-o", "xfrm", "state", "list", "nokeys"]).splitlines():
        ends = _STATE.match(text)
        states[" ".join(ends.groups()) if ends else "?"].add(_shape(text))
    for between, shapes in states.items():
        records.add("xfrm state", f"{place} {between}", sorted(shapes))
    for value in ("nat_keepalive", "acq_expires"):
        if os.path.exists(f"/proc/sys/net/core/xfrm_{value}"):
            records.add("xfrm setting", f"{place} {value}", read(f"/proc/sys/net/core/xfrm_{value}").strip())


def _shape(text: str) -> str:
    """Return protocol, mode, algorithms and flags of a state, without keys and counters."""
    found = []
    for part in text.split("\\"):
        words = part.split()
        if not words:
            continue
        if "proto" in words:
            at = words.index("proto")
            mode = words.index("mode") if "mode" in words else -1
            found.append(" ".join([*words[at : at + 2], *(words[mode : mode + 2] if mode >= 0 else [])]))
        elif words[0] in ("auth-trunc", "auth", "aead", "enc", "comp"):
            found.append(" ".join(word for word in words if not word.startswith("0x")))
        elif words[0] in ("encap", "if_id", "offload", "sel", "security"):
            found.append(" ".join(words))
        elif words[0] == "replay-window":
            found.append(" ".join(words).replace(" seq 0x00000000", ""))
    return "; ".join(found)


def _old_filters(records: Records, place: str) -> None:
    """Record tables of iptables, arptables and IPVS, which nft does not list."""
    for name in ("ip_tables_names", "ip6_tables_names", "arp_tables_names"):
        path = f"/proc/self/net/{name}"
        for table in read(path).split() if os.path.exists(path) else []:
            records.add("old packet filter", f"{place} {name} {table}")
    if os.path.exists("/proc/self/net/ip_vs"):
        for line in read("/proc/self/net/ip_vs").splitlines()[3:]:
            records.add("virtual server", f"{place} {' '.join(line.split()[:4])}")


def _vsock(records: Records, place: str) -> None:
    for line in programs.run(["ss", "-H", "-n", "-l", "--vsock"]).splitlines():
        records.add("listener", f"{place} vsock {' '.join(line.split()[3:5])}")
