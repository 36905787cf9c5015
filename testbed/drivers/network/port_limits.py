"""Limits of a port in OVN's northbound database: QoS rows for bandwidth, an option for connections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from testbed.drivers.network.northbound_rows import KBIT, sent_by
from testbed.model.topology import Limits
from testbed.plan.ovn_northbound import TRACKED

_QOS_PRIORITY = 1000
_Commands = Any  # the library's commands on a connection; it has no types


def limit_port(api: _Commands, switch: str, port: str, limits: Limits, *, fresh: bool = False) -> None:
    """Set a port's limits on bandwidth and tracked connections; 0 removes the limit.

    Unless the port is fresh, other QoS rows about it are removed.
    """
    rule = (switch, "from-lport", _QOS_PRIORITY, sent_by(port))
    rates = {"rate": limits.bandwidth // KBIT, "burst": limits.burst // KBIT}
    with api.transaction(check_error=True) as change:
        change.add(api.db_set("Logical_Switch_Port", port, ("options", {TRACKED: str(limits.connections)})))
        change.extend(() if fresh else _other_limits(api, *rule))
        change.add(api.qos_add(*rule, **rates, may_exist=True) if limits.bandwidth else api.qos_del(*rule))


def remove_limit(api: _Commands, switch: str, port: str) -> None:
    """Remove a port's limit on bandwidth."""
    api.qos_del(switch, "from-lport", _QOS_PRIORITY, sent_by(port)).execute(check_error=True)


def _other_limits(api: _Commands, switch: str, direction: str, priority: int, match: str) -> Iterator[Any]:
    """Yield the commands that remove all QoS rows with a match but the first correct one."""
    columns = ["_uuid", "direction", "priority", "match"]
    rows = api.db_list("QoS", columns=columns).execute(check_error=True)
    alike = {row["_uuid"]: (row["direction"], row["priority"]) for row in rows if row["match"] == match}
    kept = False
    if alike:
        for owner in api.db_list("Logical_Switch", columns=["_uuid", "name", "qos_rules"]).execute(
            check_error=True
        ):
            for uuid in filter(alike.__contains__, owner["qos_rules"]):
                own = owner["name"] == switch and alike[uuid] == (direction, priority)
                if kept or not own:
                    yield api.db_remove("Logical_Switch", owner["_uuid"], "qos_rules", uuid)
                kept = kept or own
