"""What OVN's northbound database must not hold: any row, column or option that does not follow from the
topology (NET-01). Pure.

Deny by default, for a database: what `testbed.plan.resources.central` asks for is compared there, and all
else is one too many (ovn-nb(5)).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]

NAME = "northbound"
REST = "any other table"
MARK = "testbed"  # external id of what is ours, with the lab's name
FOUR, SIX = "switch", "switch6"  # external ids of a switch's DHCP settings, with its label
TRACKED = "ct-zone-limit"
LISTENER = "pssl:6641"
# Controls that each table is about; every table that OVN has is one of these, or is REST.
CONTROLS = {
    "ACL": "NET-01",
    "Address_Set": "NET-01",
    "BFD": "NET-01",
    "Connection": "NET-08",
    "Copp": "NET-12",
    "DHCP_Options": "NET-10",
    "DHCP_Relay": "NET-10",
    "DNS": "NET-10",
    "Forwarding_Group": "NET-01",
    "Gateway_Chassis": "NET-01",
    "HA_Chassis": "NET-01",
    "HA_Chassis_Group": "NET-01",
    "Load_Balancer": "NET-01",
    "Load_Balancer_Group": "NET-01",
    "Logical_Router": "NET-01",
    "Logical_Router_Policy": "NET-01",
    "Logical_Router_Port": "NET-01",
    "Logical_Router_Static_Route": "NET-01",
    "Logical_Switch": "NET-01",
    "Logical_Switch_Port": "NET-01 NET-13",
    "Meter": "NET-12",
    "Meter_Band": "NET-12",
    "Mirror": "NET-11",
    "Mirror_Rule": "NET-11",
    "NAT": "NET-01",
    "NB_Global": "NET-01",
    "Port_Group": "NET-01",
    "QoS": "NET-12",
    "SSL": "NET-08",
    "Static_MAC_Binding": "NET-01",
    REST: "NET-01",
}
# Columns of rows that may be there, which are compared elsewhere or hold no wall; every other column must be
# empty.
_COLUMNS = {
    "Logical_Switch": {"acls", "dns_records", "name", "other_config", "ports", "qos_rules"},
    "Logical_Switch_Port": {
        "addresses",
        "dhcpv4_options",
        "dhcpv6_options",
        "name",
        "options",
        "port_security",
        "up",
    },
    "ACL": {"action", "direction", "match", "priority"},
    "QoS": {"bandwidth", "direction", "match", "priority"},
    "DHCP_Options": {"cidr", "options"},
    "Connection": {"inactivity_probe", "is_connected", "max_backoff", "status", "target"},
    "NB_Global": {
        "connections",
        "name",
        "options",
        *(f"{of}_cfg{time}" for of in ("nb", "sb", "hv") for time in ("", "_timestamp")),
    },
}
_ALWAYS = frozenset({"_uuid", "external_ids"})
# Options that may be there; of NB_Global those that ovn-northd writes itself.
_OPTIONS = {
    "NB_Global": {"mac_prefix", "max_tunid", "northd_internal_version", "svc_monitor_mac"},
    "Logical_Switch_Port": {TRACKED},
}
_LONGEST = 120  # characters


@dataclass(frozen=True, slots=True)
class Stray:
    """Something in the database that does not follow from the topology.

    Args:
        row: its UUID, as the library holds it.
        column: None if the row as a whole is too many.
        option: of the column; None if the column must be empty.
        told: it in words.

    """

    table: str
    row: Any
    column: str | None
    option: str | None
    told: str


def told(strays: Sequence[Stray]) -> dict[str, list[str]]:
    """Return by table, as properties of a resource, what should not be there."""
    found: dict[str, list[str]] = {table: [] for table in CONTROLS}
    for stray in strays:
        found[stray.table if stray.table in CONTROLS else REST].append(stray.told)
    return {table: sorted(items) for table, items in found.items()}


def strays(tables: Tables, lab: str) -> list[Stray]:
    """Return everything that does not follow from a lab's topology, besides what is compared resource by
    resource.
    """
    belongs = _Belongs(tables, lab)
    return [stray for table, rows in tables.items() for row in rows for stray in _of_row(table, row, belongs)]


def references(tables: Tables, gone: Container[Any]) -> Iterator[tuple[str, Any, str, Any]]:
    """Yield where a row that stays refers to one that goes: its table, UUID and column, and the UUID of the
    other.

    Args:
        gone: UUIDs of the rows that go.

    """
    for table, rows in tables.items():
        for row in rows:
            if row["_uuid"] not in gone:
                cells = (
                    (column, key)
                    for column, value in row.items()
                    for key in _several(value)
                    if isinstance(key, UUID)
                )
                yield from (
                    (table, row["_uuid"], column, key)
                    for column, key in cells
                    if column != "_uuid" and key in gone
                )


class _Belongs:
    """Tells whether a row may be there."""

    def __init__(self, tables: Tables, lab: str) -> None:
        switches = [row for row in tables.get("Logical_Switch", ()) if row["external_ids"].get(MARK) == lab]
        ports = {
            row["name"]
            for row in tables.get("Logical_Switch_Port", ())
            if row["external_ids"].get(MARK) == lab
        }
        self._labels = {row["name"] for row in switches}
        self._held = {
            column: {key for row in switches for key in _several(row[column])}
            for column in ("acls", "qos_rules")
        }
        self._limited = {f'inport == "{port}"' for port in ports}
        self._rules: dict[str, Callable[[Row], bool]] = {
            "NB_Global": lambda _: True,
            "Connection": lambda row: row["target"] == LISTENER,
            "Logical_Switch": lambda row: row["external_ids"].get(MARK) == lab,
            "Logical_Switch_Port": lambda row: row["external_ids"].get(MARK) == lab,
            "ACL": lambda row: row["_uuid"] in self._held["acls"],
            "QoS": self._limits,
            "DHCP_Options": lambda row: bool(
                {row["external_ids"].get(FOUR), row["external_ids"].get(SIX)} & self._labels
            ),
        }

    def __call__(self, table: str, row: Row) -> bool:
        return table in self._rules and self._rules[table](row)

    def _limits(self, row: Row) -> bool:
        return (
            row["_uuid"] in self._held["qos_rules"]
            and row["match"] in self._limited
            and row["direction"] == "from-lport"
        )


def _of_row(table: str, row: Row, belongs: _Belongs) -> Iterator[Stray]:
    if not belongs(table, row):
        yield Stray(table, row["_uuid"], None, None, f"{_named(table, row)}{_content(row)}")
        return
    for column in sorted(set(row) - _COLUMNS[table] - _ALWAYS):
        if row[column] not in ([], {}, "", 0, None):
            yield Stray(
                table, row["_uuid"], column, None, f"{_named(table, row)} has {column} {_short(row[column])}"
            )
    options = row.get("options") if table in _OPTIONS else None
    for option in sorted(set(options or ()) - _OPTIONS.get(table, set())):
        text = f"{_named(table, row)} has the option {option}={_short(row['options'][option])}"
        yield Stray(table, row["_uuid"], "options", option, text)


def _named(table: str, row: Row) -> str:
    """Return the table of a row, and what it is called."""
    name = (
        row.get("external_ids", {}).get("resource")
        or row.get("name")
        or row.get("target")
        or row.get("match")
        or ""
    )
    return f"{table} {_short(name)}".strip()


def _content(row: Row) -> str:
    filled = {
        name: row[name]
        for name in (
            "external_ip",
            "logical_ip",
            "networks",
            "ip_prefix",
            "nexthop",
            "action",
            "vips",
            "records",
            "sink",
            "addresses",
            "options",
        )
        if row.get(name)
    }
    return f" ({', '.join(f'{name} {_short(value)}' for name, value in filled.items())})" if filled else ""


def _short(value: object) -> str:
    match value:
        case dict():
            text = ", ".join(f"{name}={item}" for name, item in sorted(value.items()))
        case list():
            text = ", ".join(map(str, value))
        case _:
            text = str(value)
    return text[:_LONGEST]


def _several(value: Any) -> list[Any]:  # noqa: ANN401 - a set with one member is that member
    return list(value) if isinstance(value, list | tuple | set) else [value]
