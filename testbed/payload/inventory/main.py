"""Reads a whole machine in one pass, as root, and prints its records, compressed.

Its argument is JSON: ``since`` (seconds since 1970: files that have changed later are recorded), ``key``
(hexadecimal, for digests of files that only some accounts may read), ``only`` (collectors), ``roots``
(folders, instead of all file systems), ``whole`` (whether old folders and programs are recorded too) and
``plain`` (whether it prints text).
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import zlib
from collections import defaultdict
from functools import partial

from testbed.payload.inventory.base.collect import Collector, Records, Unread, side_by_side
from testbed.payload.inventory.host import (
    accounts,
    confinement,
    files,
    guests,
    kernel,
    kernel_code,
    namespaces,
    processes,
    units,
)
from testbed.payload.inventory.network import links, sockets, switch

FORMAT = 3
SECONDS = 90.0  # that a collector may take
WHOLE = 150.0  # that all may take


def collectors(
    request: dict[str, object], found: list[processes.Process], spaces: namespaces.Spaces
) -> dict[str, Collector]:
    """Return the collectors by name."""
    holders: dict[str, set[str]] = defaultdict(set)
    for process in found:
        for inode in process.sockets:
            holders[inode].add(process.label)
    named: dict[str, Collector] = {
        "files": partial(_files, request=request),  # the longest first
        "accounts": accounts.collect,
        "guests": guests.collect,
        "kernel": kernel.collect,
        "code": kernel_code.collect,
        "namespaces": spaces.collect,
        "processes": partial(_processes, found=found, spaces=spaces),
        "profiles": confinement.collect,
        "switch": switch.collect,
        "units": units.collect,
    }
    for mark, name in spaces.of("net").items():
        path = spaces.paths.get(mark, "")
        own = os.readlink("/proc/self/ns/net") == mark
        named[f"network {name}"] = partial(
            links.collect, place=name, path="" if own else path, holders=holders
        )
    only = request.get("only")
    return {name: run for name, run in named.items() if not isinstance(only, list) or name.split()[0] in only}


def _files(records: Records, request: dict[str, object]) -> None:
    since = request.get("since")
    start = float(since) if isinstance(since, int | float) else files.made()
    records.add("image", "made", int(start))
    roots = request.get("roots")
    key, whole = bytes.fromhex(str(request.get("key", ""))), bool(request.get("whole"))
    files.Walk(records, start, key, whole=whole).run(
        list(map(str, roots)) if isinstance(roots, list) else None
    )


def _processes(records: Records, found: list[processes.Process], spaces: namespaces.Spaces) -> None:
    tables = []
    for mark in spaces.of("net"):
        if mark in spaces.pids:
            tables.append(sockets.table(f"/proc/{spaces.pids[mark]}/net"))
    processes.collect(records, found, sockets.described(tables), spaces.names)


def inventory(request: dict[str, object]) -> list[str]:
    """Return the records of this machine, one a line, behind a line with their number."""
    started, records = time.monotonic(), Records()
    try:
        found = processes.scan()
    except (OSError, Unread) as error:
        records.unread("process", "", error)
        found = []
    side_by_side(collectors(request, found, namespaces.Spaces(found)), records, SECONDS, WHOLE)
    lines = records.sorted()
    head = {"format": FORMAT, "records": len(lines), "seconds": round(time.monotonic() - started, 2)}
    return [json.dumps(head), *lines]


def main(request: dict[str, object]) -> int:
    """Print the records."""
    gc.disable()  # there is no garbage worth a search in a program that ends soon
    text = "".join(f"{line}\n" for line in inventory(request)).encode()
    sys.stdout.buffer.write(text if request.get("plain") else zlib.compress(text, 3))
    sys.stdout.buffer.flush()
    return 0
