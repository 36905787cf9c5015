"""Connections to OVN's northbound database: one that is closed ends no other one, and one serves several
threads.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock
from uuid import UUID

import pytest

from testbed.drivers.network import northbound as ovn
from testbed.drivers.network.northbound import Northbound
from testbed.errors import ProvisioningError
from testbed.model.topology import Limits
from testbed.plan.ovn_northbound import FOUR


def _connection() -> Any:
    own = MagicMock()
    own.is_running = True
    return own


def test_each_connection_is_used_and_closed_by_itself() -> None:
    """The library keeps one connection for a class of its objects."""
    first, second = _connection(), _connection()
    one, other = ovn._api_of(first), ovn._api_of(second)
    assert (one.ovsdb_connection, other.ovsdb_connection) == (first, second)
    other.ovsdb_connection.stop()
    assert second.stop.called
    assert not first.stop.called


class _Rows:
    """Rows of DHCP settings; while one is read, another thread looks for the settings of a switch that was
    found before.
    """

    def __init__(self, switches: list[str]) -> None:
        self.data = {
            UUID(int=number): SimpleNamespace(external_ids={FOUR: name})
            for number, name in enumerate(switches)
        }
        self.meanwhile: list[Any] = []  # called one by one, before each reading of a row

    def get(self, row: UUID | None) -> Any:
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return self.data.get(cast(UUID, row))


def _northbound(rows: _Rows) -> Northbound:
    found = Northbound.__new__(Northbound)
    found._api = MagicMock()
    found._api.tables = {"DHCP_Options": SimpleNamespace(rows=rows)}
    found._dhcp_rows = {}
    return found


def test_a_switch_has_dhcp_settings_also_while_another_thread_reads_the_table() -> None:
    rows = _Rows(["t1/app"])
    northbound = _northbound(rows)
    assert northbound._dhcp("t1/app", FOUR) == UUID(int=0)
    rows.data[UUID(int=1)] = SimpleNamespace(external_ids={FOUR: "t2/app"})
    seen: list[UUID | None] = []
    # The first reading is of the row that was found last; the second one is the first of the whole table.
    rows.meanwhile = [lambda: None, lambda: seen.append(northbound._dhcp("t1/app", FOUR))]
    assert northbound._dhcp("t2/app", FOUR) == UUID(int=1)
    assert seen == [UUID(int=0)]
    assert {pair: len(found) for pair, found in northbound._dhcp_rows.items()} == {
        (FOUR, "t1/app"): 1,
        (FOUR, "t2/app"): 1,
    }


def test_no_port_is_made_whose_switch_has_no_dhcp_settings() -> None:
    northbound = _northbound(_Rows([]))
    with pytest.raises(ProvisioningError, match="no DHCP settings"):
        northbound.set_port("t/a/app", "t/app", "p", "", Limits(0, 0, 0), fresh=True)
    assert not northbound._api.transaction.called
