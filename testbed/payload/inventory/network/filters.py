"""What sorts out, limits and encrypts the packets of a network namespace: tc, nftables, xfrm, iptables."""

from __future__ import annotations

import json
import os
import re
import socket
from collections import defaultdict
from typing import Any

from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, read
from testbed.payload.inventory.network import iproute, netlink

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


def traffic(records: Records, place: str) -> None:
    """Record queueing disciplines, their classes and filters."""
    (queues,) = iproute.asked(records, place, ["tc", "-j", "-d"], [("queue", "qdisc show")])
    lines: list[str] = []
    for item in queues:
        device, kind = item.get("dev"), item.get("kind")
        records.add(
            "queue", f"{place} {device} {kind} {item.get('parent', 'root')}", iproute.without(item, _COUNTERS)
        )
        lines += _below(str(device), str(kind))
    if "block" in json.dumps(queues):
        lines.append("filter show block 1")
    for line in lines:
        for item in programs.run_json(["tc", "-j", "-d", *line.split()]):
            for entry in item:
                if entry.get("options") or entry.get("class"):
                    records.add(line.partition(" ")[0], f"{place} {line}", iproute.without(entry, _COUNTERS))


def _below(device: str, kind: str) -> list[str]:
    """Return the commands that list classes and filters of a queue, but for lists that are empty.

    A batch is no way: tc keeps the device and the parent of a command for the next.
    """
    if kind in ("noqueue", "pfifo_fast", "fq_codel", "mq", "fq"):
        return []
    try:
        link = socket.if_nametoindex(device)
    except OSError:
        return []  # it has gone meanwhile
    if kind in ("clsact", "ingress"):
        sides = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}  # TC_H_MIN_INGRESS, TC_H_MIN_EGRESS
        wanted = sides if kind == "clsact" else {"parent ffff:": 0xFFFF0000}
        return [
            f"filter show dev {device} {side}"
            for side, parent in wanted.items()
            if not netlink.empty(netlink.filters(link, parent))
        ]
    asked = {"class": netlink.classes(link), "filter": netlink.filters(link)}
    return [f"{what} show dev {device}" for what, request in asked.items() if not netlink.empty(request)]


def packet_filter(records: Records, place: str) -> None:
    """Record every table of nftables: its chains with their rules in order, sets, maps, objects."""
    if netlink.empty(netlink.TABLES):
        return
    text = programs.run(["nft", "-j", "-s", "list", "ruleset"])
    rules: dict[str, list[str]] = defaultdict(list)
    for item in json.loads(text).get("nftables", []) if text.strip() else []:
        ((kind, told),) = item.items()
        if kind == "metainfo":
            continue
        told = iproute.without(told, ("handle", "index"))
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


def transforms(records: Records, place: str) -> None:
    """Record policies and states of xfrm, without keys and without numbers that are renewed."""
    policies = "" if netlink.empty(netlink.POLICIES) else programs.run(["ip", "-o", "xfrm", "policy"])
    for text in policies.splitlines():
        policy = re.sub(r"\breqid \d+|\bindex \d+|\bptype \S+", "", text.replace("\\", " "))
        key = re.match(r"\s*src (\S+) dst (\S+).*?\bdir (\w+)", policy)
        words = " ".join(policy.split())
        if "socket" not in words.split():
            records.add("xfrm policy", f"{place} {' '.join(key.groups()) if key else words[:200]}", words)
    states: dict[str, set[str]] = defaultdict(set)
    kept = (
        "" if netlink.empty(netlink.STATES) else programs.run(["ip", "-o", "xfrm", "state", "list", "nokeys"])
    )
    for text in kept.splitlines():
        ends = _STATE.match(text.replace("\\", " "))
        states[" ".join(ends.groups()) if ends else "?"].add(shape(text))
    for between, shapes in states.items():
        records.add("xfrm state", f"{place} {between}", sorted(shapes))
    for value in ("nat_keepalive", "acq_expires"):
        if os.path.exists(f"/proc/sys/net/core/xfrm_{value}"):
            records.add("xfrm setting", f"{place} {value}", read(f"/proc/sys/net/core/xfrm_{value}").strip())


def shape(text: str) -> str:
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


def old_filters(records: Records, place: str) -> None:
    """Record tables of iptables, arptables and IPVS, which nft does not list."""
    for name in ("ip_tables_names", "ip6_tables_names", "arp_tables_names"):
        path = f"/proc/self/net/{name}"
        for table in read(path).split() if os.path.exists(path) else []:
            records.add("old packet filter", f"{place} {name} {table}")
    if os.path.exists("/proc/self/net/ip_vs"):
        for line in read("/proc/self/net/ip_vs").splitlines()[3:]:
            records.add("virtual server", f"{place} {' '.join(line.split()[:4])}")
