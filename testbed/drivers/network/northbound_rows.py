"""Converts rows of OVN's northbound database into properties of switches and ports.

This module is pure. No row hides another one: names of switches, external ids and matches of rules need not
be unique. Of several rows with the same label, one keeps it and the others get a label of their own. No
topology asks for those: so they are drift, and `up` removes them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from testbed.plan.ovn_acls import Acl
from testbed.plan.ovn_northbound import FOUR, MARK, SIX, TRACKED, Row, Tables

OWN_OPTIONS = ("subnet", "ipv6_prefix", "requested-tnl-key")
KBIT = 1000
OF_SWITCHES = ("Logical_Switch", "ACL", "DHCP_Options")
OF_PORTS = ("Logical_Switch", "Logical_Switch_Port", "DHCP_Options", "QoS")


def sent_by(port: str) -> str:
    """Return the OVN match for packets that a port sends."""
    return f'inport == "{port}"'


def row_of(label: str) -> str:
    """Return the name or id by which the database finds the switch with a label."""
    return label.partition(" ")[2] or label


def switches(lab: str, tables: Tables) -> dict[str, dict[str, Any]]:
    """Return label and live properties of every switch of a lab."""
    rules = {row["_uuid"]: row for row in tables["ACL"]}
    dhcp: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in tables["DHCP_Options"]:
        for pair in row["external_ids"].items():
            dhcp[pair].append({"cidr": row["cidr"], **row["options"]})
    return {
        label: {
            "network": " ".join(
                row["other_config"][key] for key in ("subnet", "ipv6_prefix") if key in row["other_config"]
            ),
            "tunnel_key": int(row["other_config"].get("requested-tnl-key", 0)),
            "dhcp": _settings(dhcp[FOUR, row["name"]]),
            "dhcp6": _settings(dhcp[SIX, row["name"]]),
            "names": len(row["dns_records"]),
            "acls": [str(rule) for rule in sorted(_acl(rules[key]) for key in row["acls"] if key in rules)],
            "options": sorted(
                f"{key}={value}" for key, value in row["other_config"].items() if key not in OWN_OPTIONS
            ),
        }
        for label, row in _switches(lab, tables)
    }


def _switches(lab: str, tables: Tables) -> list[tuple[str, Row]]:
    own = [row for row in tables["Logical_Switch"] if _owned(lab, row)]
    return _told_apart(
        own, lambda row: str(row["name"]), lambda row: (-len(row["ports"]), str(row["_uuid"])), "_uuid"
    )


def _acl(row: Row) -> Acl:
    return Acl(row["direction"], row["priority"], row["match"], row["action"])


def _settings(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return range and options of all rows of DHCP settings, with the number of rows if above one."""
    found = sorted(f"{name}={value}" for options in rows for name, value in options.items())
    return [*found, f"in {len(rows)} rows"] if len(rows) > 1 else found


def ports(lab: str, tables: Tables) -> dict[str, dict[str, Any]]:
    """Return label and live properties of every port of a lab."""
    rates: dict[str, list[int]] = defaultdict(list)
    for row in tables["QoS"]:
        rates[row["match"]].append(row["bandwidth"].get("rate", 0) * KBIT)
    dhcp = {str(row["_uuid"]): row["external_ids"] for row in tables["DHCP_Options"]}
    owners = _owners(lab, tables)
    own = [row for row in tables["Logical_Switch_Port"] if _owned(lab, row)]
    labelled = _told_apart(own, _resource, lambda row: (not _up(row), str(row["name"])), "name")
    return {
        label: {
            "port": row["name"],
            "switch": " and ".join(owners.get(row["_uuid"], [])),
            "addresses": " ".join(row["addresses"]),
            "security": sorted(row["port_security"]),
            "dhcp": dhcp.get(str(row["dhcpv4_options"]), {}).get(FOUR, ""),
            "dhcp6": dhcp.get(str(row["dhcpv6_options"]), {}).get(SIX, ""),
            "connections": int(row["options"].get(TRACKED, 0)),
            "bandwidth": _rate(rates[sent_by(row["name"])]),
            "up": _up(row),
        }
        for label, row in labelled
    }


def _owned(lab: str, row: Row) -> bool:
    return bool(row["external_ids"].get(MARK) == lab)


def _resource(row: Row) -> str:
    return str(row["external_ids"].get("resource", row["name"]))


def _up(row: Row) -> bool:
    return row["up"] == [True] if isinstance(row["up"], list) else bool(row["up"])


def _rate(rates: Sequence[int]) -> int | str:
    """Return a port's rate limit (bits per second, 0: none), or a text about several limits."""
    return f"{len(rates)} limits: {', '.join(map(str, rates))}" if len(rates) > 1 else sum(rates)


def _owners(lab: str, tables: Tables) -> dict[UUID, list[str]]:
    """Return the labels of the switches of each port; the text names foreign ones as such."""
    labels = {row["_uuid"]: label for label, row in _switches(lab, tables)}
    found: dict[UUID, list[str]] = defaultdict(list)
    for row in tables["Logical_Switch"]:
        for port in row["ports"]:
            found[port].append(labels.get(row["_uuid"], f"{row['name']}, which is not this lab's"))
    return found


def _told_apart(
    rows: Iterable[Row], label: Callable[[Row], str], order: Callable[[Row], Any], name: str
) -> list[tuple[str, Row]]:  # fmt: skip
    """Return rows with unique labels.

    Of several rows with one label, the first in the order keeps it. The others get a column's value appended.
    """
    seen: set[str] = set()
    found = []
    for row in sorted(rows, key=order):
        own = label(row)
        found.append((f"{own} {row[name]}" if own in seen else own, row))
        seen.add(own)
    return found
