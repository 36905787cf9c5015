"""Connections to OVN's northbound database: closing one ends no other one.

One connection serves several threads.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock
from uuid import UUID

import pytest

from testbed.drivers.network import northbound as ovn
from testbed.drivers.network.dhcp_rows import DhcpRows
from testbed.drivers.network.dhcp_rows import _labels as ovn_labels
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
    """Rows of DHCP settings; another thread looks up a switch's settings while one is read."""

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
    found._dhcp, found._lab = DhcpRows(found._api, 5), "lab"
    return found


def test_a_switch_has_dhcp_settings_also_while_another_thread_reads_the_table() -> None:
    rows = _Rows(["t1/app"])
    northbound = _northbound(rows)
    assert northbound._dhcp.find("t1/app", FOUR) == UUID(int=0)
    rows.data[UUID(int=1)] = SimpleNamespace(external_ids={FOUR: "t2/app"})
    seen: list[UUID | None] = []
    # The first reading is of the row that was found last; the second one is the first of the whole table.
    rows.meanwhile = [lambda: None, lambda: seen.append(northbound._dhcp.find("t1/app", FOUR))]
    assert northbound._dhcp.find("t2/app", FOUR) == UUID(int=1)
    assert seen == [UUID(int=0)]
    assert {pair: len(found) for pair, found in northbound._dhcp._rows.items()} == {
        (FOUR, "t1/app"): 1,
        (FOUR, "t2/app"): 1,
    }


def test_a_port_waits_for_the_dhcp_settings_of_its_switch() -> None:
    """The server may answer a transaction before it sends the change."""
    rows = _Rows([])
    northbound = _northbound(rows)
    northbound._dhcp.timeout = 5

    def arrives() -> None:
        rows.data[UUID(int=7)] = SimpleNamespace(external_ids={FOUR: "t/app"})

    rows.meanwhile = [lambda: None, lambda: None, arrives]
    northbound.set_port("t/a/app", "t/app", "p", "02:00:00:00:00:01 10.0.0.5", Limits(0, 0, 0), fresh=True)
    northbound._api.lsp_set_dhcpv4_options.assert_called_once_with("p", UUID(int=7))


def test_no_port_is_made_whose_switch_has_no_dhcp_settings() -> None:
    northbound = _northbound(_Rows([]))
    northbound._dhcp.timeout = 0
    with pytest.raises(ProvisioningError, match="no DHCP settings"):
        northbound.set_port("t/a/app", "t/app", "p", "", Limits(0, 0, 0), fresh=True)
    assert not northbound._api.transaction.called


def test_a_port_with_ipv6_is_not_made_without_dhcpv6() -> None:
    northbound = _northbound(_Rows(["t/app"]))
    northbound._dhcp.timeout = 0
    with pytest.raises(ProvisioningError, match="no DHCP settings"):
        northbound.set_port(
            "t/a/app", "t/app", "p", "02:00:00:00:00:01 10.0.0.5 fd00::5", Limits(0, 0, 0), fresh=True
        )
    assert not northbound._api.transaction.called


def test_a_row_that_the_library_replaces_has_no_labels_meanwhile() -> None:
    """The library empties the list of a row before it removes the row."""

    class Emptied(dict[UUID, Any]):
        def get(self, *_: object) -> Any:
            raise IndexError

    assert ovn_labels(Emptied(), UUID(int=1)) == {}
