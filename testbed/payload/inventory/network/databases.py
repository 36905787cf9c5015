"""Databases of OVSDB, whole: Open vSwitch's and OVN's; rows have names, not random ids."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from testbed.payload.inventory.base.collect import Records, Unread
from testbed.payload.inventory.network import rpc

SERVERS = {
    "switch": "/run/openvswitch/db.sock",
    "northbound": "/run/ovn/ovnnb_db.sock",
    "southbound": "/run/ovn/ovnsb_db.sock",
}
CONTROLS = {
    "switch": "/run/openvswitch/ovsdb-server.*.ctl",
    "northbound": "/run/ovn/ovnnb_db.ctl",
    "southbound": "/run/ovn/ovnsb_db.ctl",
}
_NAMES = ("name", "logical_port", "chassis_name", "target", "type", "ip", "address", "mac")
Row = dict[str, Any]
_SECRET = re.compile(r"(?i)psk|password|secret|passphrase")


def collect(records: Records, name: str, path: str) -> list[str]:
    """Record every table, row and column of the databases that a server has; return its bridges.

    Raises:
        Unread: the server does not answer.

    """
    bridges: list[str] = []
    with rpc.Server(path) as server:
        for database in server.ask("list_dbs"):
            if database != "_Server":
                tables = _tables(server, str(database))
                record(records, name, tables)
                bridges += [str(row.get("name")) for row in tables.get("Bridge", ())]
    return sorted(bridges)


def _tables(server: rpc.Server, database: str) -> dict[str, list[Row]]:
    """Return the rows of each table, as they are at one moment."""
    schema = sorted(server.ask("get_schema", database)["tables"].items())
    selects = [
        {"op": "select", "table": title, "where": [], "columns": ["_uuid", *table["columns"]]}
        for title, table in schema
    ]
    answers = server.ask("transact", database, *selects)
    if len(answers) < len(schema) or any("rows" not in (answer or {}) for answer in answers):
        raise Unread(f"{database}: {str(answers[-1:])[:200]}")
    return {title: answer["rows"] for (title, _), answer in zip(schema, answers, strict=False)}


def record(records: Records, name: str, tables: Mapping[str, list[Row]]) -> None:
    """Record the rows of tables in OVSDB's notation (RFC 7047, 5.1)."""
    rows: dict[str, tuple[str, Row]] = {}
    for title, found in tables.items():
        for row in found:
            columns = dict(row)
            rows[_own_id(columns.pop("_uuid", None))] = (title, columns)
    labels = _labels(rows)
    for identity, (title, columns) in rows.items():
        told = {column: _plain(value, labels, column) for column, value in columns.items()}
        records.add(f"{name} {title}", labels[identity].partition(" ")[2], told)


def _own_id(value: Any) -> str:
    return str(value[1]) if isinstance(value, list) and len(value) == 2 else str(value)


def _labels(rows: Mapping[str, tuple[str, Row]]) -> dict[str, str]:
    """Return a name for each row: its own where it has one, else a digest of what it says."""
    labels = {}
    sizes = Counter(title for title, _ in rows.values())
    for identity, (title, columns) in rows.items():
        if sizes[title] == 1 and not columns.get("name"):
            labels[identity] = f"{title} (the only row)"
            continue
        own = next(
            (columns[name] for name in _NAMES if isinstance(columns.get(name), str) and columns[name]), ""
        )
        if own and title not in ("Logical_Flow", "ACL", "QoS", "Multicast_Group", "DHCP_Options"):
            labels[identity] = f"{title} {own}"
    for identity, (title, columns) in rows.items():
        if identity not in labels:
            text = json.dumps(
                {name: _plain(value, labels, name) for name, value in columns.items()}, sort_keys=True
            )
            labels[identity] = f"{title} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return labels


def _plain(value: Any, labels: Mapping[str, str], column: str = "") -> Any:
    """Return a value of OVSDB's notation (RFC 7047, 5.1) as JSON, with names for ids."""
    if not isinstance(value, list) or len(value) != 2:
        return "(masked)" if isinstance(value, str) and _SECRET.search(column) else value
    kind, inner = value
    if kind == "uuid":
        return labels.get(str(inner), f"a row that is named by what it says: {column}")
    if kind == "set":
        return sorted((_plain(item, labels, column) for item in inner), key=str)
    if kind == "map":
        return {str(_plain(key, labels)): _plain(item, labels, str(key)) for key, item in inner}
    return value


def servers(records: Records, name: str, path: str) -> None:
    """Record from where a server takes connections, and as what."""
    try:
        with rpc.Server(path) as server:
            printed = str(server.ask("ovsdb-server/list-remotes"))
    except Unread as error:
        records.unread("database remote", name, error)
        return
    for line in printed.splitlines():
        records.add("database remote", f"{name} {line.strip()}")


def present() -> dict[str, str]:
    """Return the sockets of the servers that are there, by the name of what they serve."""
    return {name: path for name, path in SERVERS.items() if os.path.exists(path)}
