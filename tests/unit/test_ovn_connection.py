"""Connections to OVN's northbound database: one that is closed ends no other one."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

from testbed.drivers import ovn


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
