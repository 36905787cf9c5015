"""Open vSwitch as it runs: flows of every table, groups, meters, ports and the datapath."""

from __future__ import annotations

import re

from testbed.payload.inventory.base import programs
from testbed.payload.inventory.base.collect import Records, Unread
from testbed.payload.inventory.network import databases, rpc

_SWITCH = "/run/openvswitch/ovs-vswitchd.*.ctl"
_VERSION = ("-O", "OpenFlow15")
_COUNTERS = re.compile(
    r"\b(?:duration|n_packets|n_bytes|idle_age|hard_age)=[^,\s]+,?\s?|"
    r"^\s*(?:NXST|OFPST)\w+ .*$|,? ?flags=\[\w*\]$"
)
_COOKIE = re.compile(r"\bcookie=(0x[0-9a-f]+), ?")
_TABLE = re.compile(r"\btable=(\d+), ")
_STATE = re.compile(
    r"\b(?:flow_count|packet_in_count|byte_in_count|duration|bands|hits|misses|lost|cache|masks|flows|total|hit/pkt).*$"
)


def collect(records: Records) -> None:
    """Record the switch of this machine, if there is one."""
    found = databases.present()
    for name, path in found.items():
        try:
            bridges = databases.collect(records, name, path)
        except (Unread, LookupError, TypeError, AttributeError, ValueError) as error:
            records.unread(name, "", error)
            bridges = []
            if name == "switch":
                records.unread("openflow", "", "the names of bridges could not be read")
        databases.servers(records, name, databases.CONTROLS[name])
        for bridge in bridges:
            _bridge(records, bridge)
    if "switch" in found:
        _datapath(records)


def _bridge(records: Records, bridge: str) -> None:
    """Record the flows, groups, meters and ports of a bridge."""
    for what, reader in (
        ("dump-flows", flows),
        ("dump-groups", others),
        ("dump-meters", others),
        ("show", ports),
    ):
        try:
            reader(
                records,
                bridge,
                what,
                programs.run(["ovs-ofctl", *_VERSION, what, bridge, *_unsorted(what)]),
            )
        except Unread as error:
            records.unread("openflow", f"{bridge} {what}", error)


def _datapath(records: Records) -> None:
    """Record what the switch's program says of the kernel's part of it."""
    for what in ("dpctl/show", "dpctl/ct-get-limits", "dpctl/ct-get-maxconns", "dpctl/ct-get-tcp-seq-chk"):
        try:
            with rpc.Server(_SWITCH, 5) as server:
                printed = str(server.ask(what))
        except Unread as error:
            records.unread("datapath", what, error)
            continue
        for line in printed.splitlines():
            text = _STATE.sub("", line.strip())
            if text and not text.startswith("lookups"):
                records.add("datapath", f"{what.partition('/')[2]} {text}")


def _unsorted(what: str) -> tuple[str, ...]:
    return ("--no-stats",) if what == "dump-flows" else ()


def flows(records: Records, bridge: str, _: str, printed: str) -> None:
    """Record flows: table, priority and match are the key, cookie and actions the value."""
    for line in printed.splitlines():
        left, found, actions = _COUNTERS.sub("", line).strip().partition("actions=")
        if not found:
            continue
        cookie, table = _COOKIE.search(left), _TABLE.search(left)
        match = _TABLE.sub("", _COOKIE.sub("", left)).strip().rstrip(",")
        key = f"{bridge} table {table[1] if table else 0} {match}"
        records.add("flow", key, {"cookie": cookie[1] if cookie else "0x0", "actions": actions})


def others(records: Records, bridge: str, what: str, printed: str) -> None:
    """Record groups and meters; the bands of a meter stand on lines of their own below it."""
    found: list[str] = []
    for line in printed.splitlines()[1:]:
        text = _COUNTERS.sub("", line).strip()
        if text.startswith("type=") and found:
            found[-1] += f" {text}"
        elif text:
            found.append(text)
    for text in found:
        records.add(f"flow {what.removeprefix('dump-').rstrip('s')}", f"{bridge} {text}")


def ports(records: Records, bridge: str, _: str, printed: str) -> None:
    """Record ports of a bridge, with their configuration."""
    name = ""
    for line in printed.splitlines():
        found = re.match(r"^\s*(\w+)\(([^)]+)\): addr:(\S+)", line)
        if found:
            name = f"{bridge} {found[2]}"
        elif name and line.strip().startswith("config:"):
            records.add("switch port", name, line.strip())
