"""Rows of DHCP settings in OVN's northbound database: find them, change them, leave one for each switch."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

from testbed.plan.ovn_northbound import FOUR, SIX

_POLL = 0.02  # seconds between looks at our copy of the database


def _labels(rows: Any, uuid: UUID | None) -> dict[str, str]:  # noqa: ANN401 - the library has no types
    """Return a row's external ids; none while the library's thread changes the row."""
    found: dict[str, str] = {}
    with suppress(IndexError, AssertionError):
        found = getattr(rows.get(uuid), "external_ids", {})
    return found


class DhcpRows:
    """The rows of DHCP settings, by mark (IPv4 or IPv6) and switch.

    Args:
        api: the library's commands on the connection of the database.
        timeout: seconds until a row that a transaction has made must be in our copy of the database.

    """

    def __init__(self, api: Any, timeout: int) -> None:  # noqa: ANN401 - the library has no types
        self._api = api
        self.timeout = timeout
        self._rows: dict[tuple[str, str], list[UUID]] = {}

    def all(self, switch: str, mark: str) -> list[UUID]:
        """Return all rows that a switch had at the last look; more than one only if some are superfluous."""
        return self._rows.get((mark, switch), [])

    def find(self, switch: str, mark: str) -> UUID | None:
        """Return the row of a switch's DHCP settings, or None.

        The row of the last look-up is tried first, since the table is long in large labs.
        """
        rows = self._api.tables["DHCP_Options"].rows
        first = next(iter(self._rows.get((mark, switch), [])), None)
        if _labels(rows, first).get(mark) != switch:
            listed = list(rows.data)  # a copy: the library's thread may add rows meanwhile
            found: dict[tuple[str, str], list[UUID]] = defaultdict(list)
            for row in listed:
                for pair in _labels(rows, row).items():
                    found[pair].append(row)
            self._rows = found  # assigned when complete: several threads make ports
            first = next(iter(found.get((mark, switch), [])), None)
        return first

    def await_row(self, switch: str, mark: str) -> UUID:
        """Return the row of a switch's DHCP settings.

        Our copy of the database may lack a row for some milliseconds: the server's answer to a transaction
        can come before its update, and the library replaces rows while other threads read.

        Raises:
            TimeoutError: the switch has no such row.

        """
        end = time.monotonic() + self.timeout
        while (found := self.find(switch, mark)) is None:
            if time.monotonic() > end:
                msg = f"the switch {switch} has no DHCP settings"
                raise TimeoutError(msg)
            time.sleep(_POLL)
        return found

    def leave_one(self, mark: str, switch: str) -> Iterator[Any]:
        """Yield the commands that leave a switch one row of DHCP settings.

        Ports that refer to one of the removed rows get the row that stays.
        """
        found = self._rows.get((mark, switch), [])
        column = {FOUR: "dhcpv4_options", SIX: "dhcpv6_options"}[mark]
        for other in found[1:]:
            for port in self._api.db_list("Logical_Switch_Port", columns=["_uuid", column]).execute(
                check_error=True
            ):
                if port[column] == other:
                    yield self._api.db_set("Logical_Switch_Port", port["_uuid"], (column, found[0]))
            yield self._api.dhcp_options_del(other)

    def assign(
        self, row: UUID | None, mark: str, switch: str, cidr: str, options: dict[str, str]
    ) -> list[Any]:
        """Return the commands that give a switch these DHCP settings; row None makes a new row.

        OVN answers only requests of ports whose address is in the range `cidr`.
        """
        if row is None:
            ids = {mark: switch}
            return [self._api.db_create_row("DHCP_Options", cidr=cidr, options=options, external_ids=ids)]
        return [
            self._api.db_set("DHCP_Options", row, ("cidr", cidr)),
            self._api.dhcp_options_set_options(row, **options),
        ]
