"""A client of OVN's northbound database; no other file imports ovsdbapp (D3)."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from ovs import stream
from ovsdbapp.backend.ovs_idl import connection
from ovsdbapp.exceptions import TimeoutException
from ovsdbapp.schema.ovn_northbound.impl_idl import OvnNbApiIdlImpl

from testbed.drivers.network import northbound_rows
from testbed.drivers.network.dhcp_rows import DhcpRows
from testbed.drivers.network.port_limits import limit_port, remove_limit
from testbed.errors import ProvisioningError
from testbed.model.topology import Limits, TenantNetwork
from testbed.plan.ovn_acls import Acl
from testbed.plan.ovn_northbound import FOUR, MARK, SIX, Stray, Tables, references
from testbed.plan.resources import dhcp6_options, dhcp_options


@contextmanager
def _said(what: str) -> Iterator[None]:
    try:
        yield
    except (TimeoutException, RuntimeError, ValueError, OSError) as error:
        fact = f"{type(error).__name__}: {error}"
        remedy = "look at `testbed logs LAB controller`, then run `testbed up`"
        raise ProvisioningError(what, fact=fact, remedy=remedy) from error


def _idl(remote: str, deadline: float) -> Any:  # noqa: ANN401 - the library has no types
    """Return a replica of the database; try again until its server listens, or the deadline."""
    while True:
        try:
            return connection.OvsdbIdl.from_server(remote, "OVN_Northbound")
        except Exception as error:
            if time.monotonic() > deadline:
                raise TimeoutError(str(error)) from error
            time.sleep(0.5)


def _api_of(own: connection.Connection) -> Any:  # noqa: ANN401 - the library has no types
    """Return the library's commands on a connection of their own.

    The library keeps one connection per class. A second object of the same class would use the connection of
    the first, and would stop it when it is closed. So each object gets a class of its own.
    """
    return type("Api", (OvnNbApiIdlImpl,), {"_ovsdb_connection": None})(own)


class Northbound:
    """One connection to the northbound database, over TLS."""

    def __init__(
        self,
        address: str,
        lab: str,
        *,
        key: Path,
        certificate: Path,
        authority: Path,
        timeout: int,
        socket: Path | None = None,
    ) -> None:
        """Open the connection.

        Args:
            address: address of the controller; TLS on port 6641.
            lab: name of the lab, whose rows are read and written.
            key: file of the client's private key.
            certificate: file of the client's certificate.
            authority: file of the certificate authority of the server.
            timeout: seconds until the database must answer.
            socket: UNIX socket of the database; if given, it is used instead of TLS and the network.

        Raises:
            ProvisioningError: the database does not answer in time.

        """
        logging.getLogger("ovsdbapp").setLevel(logging.CRITICAL)
        stream.Stream.ssl_set_private_key_file(str(key))
        stream.Stream.ssl_set_certificate_file(str(certificate))
        stream.Stream.ssl_set_ca_cert_file(str(authority))
        self._lab = lab
        self._timeout = timeout
        with _said("cannot reach OVN's northbound database"):
            idl = _idl(f"unix:{socket}" if socket else f"ssl:{address}:6641", time.monotonic() + timeout)
            self._api = _api_of(connection.Connection(idl, timeout=timeout))
        self._dhcp = DhcpRows(self._api, timeout)

    def close(self) -> None:
        """End the connection."""
        with _said("cannot leave OVN's northbound database"):
            self._api.ovsdb_connection.stop()

    def _tables(self, names: Iterable[str]) -> Tables:
        return {name: self._api.db_list(name).execute(check_error=True) for name in names}

    def switches(self) -> dict[str, dict[str, Any]]:
        """Return label and live properties of every switch of this lab."""
        with _said("cannot read OVN's switches"):
            return northbound_rows.switches(self._lab, self._tables(northbound_rows.OF_SWITCHES))

    def ports(self) -> dict[str, dict[str, Any]]:
        """Return label and live properties of every port of this lab."""
        with _said("cannot read OVN's ports"):
            return northbound_rows.ports(self._lab, self._tables(northbound_rows.OF_PORTS))

    def tables(self) -> Tables:
        """Return all rows of all tables, with the library's types."""
        with _said("cannot read OVN's northbound database"):
            return {
                name: self._api.db_list(name).execute(check_error=True) for name in sorted(self._api.tables)
            }

    def remove(self, strays: Iterable[Stray], tables: Tables) -> None:
        """Remove rows, columns and options that no topology asked for, in one transaction.

        Args:
            strays: rows, columns and options to remove.
            tables: result of `tables` in which the strays were found.

        """
        strays = list(strays)
        rows = {stray.row: stray.table for stray in strays if stray.column is None}
        roots = {name for name, table in self._api.tables.items() if table.is_root}
        with (
            _said("cannot clear OVN's northbound database"),
            self._api.transaction(check_error=True) as change,
        ):
            for stray in strays:
                if stray.column is not None and stray.option is not None:
                    change.add(self._api.db_remove(stray.table, stray.row, stray.column, stray.option))
                elif stray.column is not None:
                    change.add(self._api.db_clear(stray.table, stray.row, stray.column))
            for table, row, column, key in references(tables, rows):
                change.add(self._api.db_remove(table, row, column, key))
            for row, table in rows.items():
                if table in roots:
                    change.add(self._api.db_destroy(table, row))

    def set_switch(self, network: TenantNetwork, rules: tuple[Acl, ...]) -> None:
        """Make a switch if it is missing, and set its addresses, DHCP and ACLs.

        One transaction changes an existing switch, so that no state in between has fewer rules. Other ACLs
        and duplicates are removed.
        """
        label, six = network.label, network.network6
        options = {
            "subnet": str(network.network),
            "requested-tnl-key": str(network.key),
            **({"ipv6_prefix": str(six)} if six else {}),
        }
        with _said(f"cannot configure the switch {label}"):
            self._api.ls_add(label, may_exist=True).execute(check_error=True)
            present, dhcp = self._rules(label), {mark: self._dhcp.find(label, mark) for mark in (FOUR, SIX)}
            with self._api.transaction(check_error=True) as change:
                change.add(self._api.db_set("Logical_Switch", label, ("external_ids", {MARK: self._lab})))
                change.extend(self._to_options(label, options))
                for row in [
                    row for rule, found in present.items() for row in (found[1:] if rule in rules else found)
                ]:
                    change.add(self._api.db_remove("Logical_Switch", label, "acls", row))
                for rule in set(rules) - present.keys():
                    change.add(
                        self._api.acl_add(label, rule.direction, rule.priority, rule.match, rule.action)
                    )
                change.extend(
                    self._dhcp.assign(dhcp[FOUR], FOUR, label, str(network.network), dhcp_options(network))
                )
                if six:
                    change.extend(self._dhcp.assign(dhcp[SIX], SIX, label, str(six), dhcp6_options(network)))
                elif dhcp[SIX] is not None:
                    change.add(self._api.dhcp_options_del(dhcp[SIX]))
                change.add(self._api.db_clear("Logical_Switch", label, "dns_records"))
                change.extend(
                    command for mark in (FOUR, SIX) for command in self._dhcp.leave_one(mark, label)
                )

    def _options(self, switch: str) -> dict[str, str]:
        found: dict[str, str] = self._api.db_get("Logical_Switch", switch, "other_config").execute(
            check_error=True
        )
        return found

    def _to_options(self, switch: str, options: dict[str, str]) -> Iterator[Any]:
        """Yield the commands that give a switch exactly these options."""
        others = set(self._options(switch)) - set(options)
        if others:
            yield self._api.db_remove("Logical_Switch", switch, "other_config", *others)
        yield self._api.db_set("Logical_Switch", switch, ("other_config", options))

    def _rules(self, switch: str) -> dict[Acl, list[UUID]]:
        """Return the rules of a switch, each with the ids of its rows; duplicates have several."""
        found: dict[Acl, list[UUID]] = defaultdict(list)
        for row in self._api.acl_list(switch).execute(check_error=True):
            found[Acl(row.direction, row.priority, row.match, row.action)].append(row.uuid)
        return found

    def set_port(
        self, label: str, switch: str, port: str, addresses: str, limits: Limits, *, fresh: bool = False
    ) -> None:
        """Make a port on a switch, or correct the existing one.

        Args:
            label: name of the port's resource.
            switch: name of the switch.
            port: name of the port.
            addresses: MAC and IP addresses, also those that port security allows.
            limits: limits of the port.
            fresh: no port has this label yet, on any switch; an existing one is then not looked for.

        """
        with _said(f"cannot configure the port {label}"):
            found = None if fresh else self.ports().get(label)
            if found is not None and (found["switch"] != switch or found["port"] != port):
                self.delete_port(found["port"])
            four = self._dhcp.await_row(switch, FOUR)
            six: UUID | list[UUID] = (
                self._dhcp.await_row(switch, SIX) if ":" in addresses.partition(" ")[2] else []
            )
            with self._api.transaction(check_error=True) as change:
                change.add(self._api.lsp_add(switch, port, may_exist=True))
                change.add(self._api.lsp_set_addresses(port, [addresses]))
                change.add(self._api.lsp_set_port_security(port, [addresses]))
                change.add(
                    self._api.db_set(
                        "Logical_Switch_Port", port, ("external_ids", {MARK: self._lab, "resource": label})
                    )
                )
                change.add(self._api.lsp_set_dhcpv4_options(port, four))
                change.add(self._api.db_set("Logical_Switch_Port", port, ("dhcpv6_options", six)))
                limit_port(self._api, switch, port, limits, fresh=fresh)

    def delete_port(self, port: str) -> None:
        """Remove a port."""
        with _said("cannot remove a port"):
            owner = self._owner(port)
            if owner:
                remove_limit(self._api, owner, port)
            self._api.lsp_del(port, if_exists=True).execute(check_error=True)

    def _owner(self, port: str) -> str:
        """Return the switch that a port is on, or the empty string."""
        return next((str(item["switch"]) for item in self.ports().values() if item["port"] == port), "")

    def delete_switch(self, label: str) -> None:
        """Remove a switch with its DHCP settings."""
        with _said(f"cannot remove the switch {label}"):
            for mark in (FOUR, SIX):
                if self._dhcp.find(label, mark) is not None:
                    for row in self._dhcp.all(label, mark):
                        self._api.dhcp_options_del(row).execute(check_error=True)
            self._api.ls_del(northbound_rows.row_of(label), if_exists=True).execute(check_error=True)

    def sync(self) -> None:
        """Wait until every chassis has applied the database.

        The counter is ``nb_cfg``, as with ``ovn-nbctl --wait=hv``.

        Raises:
            ProvisioningError: a chassis has not applied it within the timeout.

        """
        with _said("cannot ask OVN whether its chassis are up to date"):
            row = self._api.db_list("NB_Global").execute(check_error=True)[0]
            wanted = int(row["nb_cfg"]) + 1
            self._api.db_set("NB_Global", row["_uuid"], ("nb_cfg", wanted)).execute(check_error=True)
            end = time.monotonic() + self._timeout
            while int(self._api.db_list("NB_Global").execute(check_error=True)[0]["hv_cfg"]) < wanted:
                if time.monotonic() > end:
                    msg = f"a chassis does not follow within {self._timeout} s"
                    raise TimeoutError(msg)
                time.sleep(0.2)

    # The methods below open walls on purpose; only breaches use them.

    def set_security(self, port: str, addresses: list[str]) -> None:
        """Set a port's allowed source addresses; an empty list allows all."""
        with _said("cannot change port security"):
            self._api.lsp_set_port_security(port, addresses).execute(check_error=True)
        self.sync()

    def set_addresses(self, port: str, addresses: list[str]) -> None:
        """Set a port's addresses; ``unknown`` delivers frames for unknown MAC addresses to it."""
        with _said("cannot change a port's addresses"):
            self._api.lsp_set_addresses(port, addresses).execute(check_error=True)
        self.sync()

    def set_limits(self, port: str, limits: Limits) -> None:
        """Set a port's limits, such as higher ones than the topology allows."""
        with _said("cannot change a port's limits"):
            limit_port(self._api, self._owner(port), port, limits)
        self.sync()

    def set_option(self, switch: str, name: str, value: str) -> None:
        """Set an option of a switch; an empty value removes it."""
        with _said("cannot change an option of a switch"):
            present = {key: text for key, text in self._options(switch).items() if key != name}
            with self._api.transaction(check_error=True) as change:
                change.extend(self._to_options(switch, present | ({name: value} if value else {})))
        self.sync()

    def change_rules(self, switch: str, gone: Iterable[Acl], new: Iterable[Acl]) -> None:
        """Remove some rules of a switch and add others, in one transaction."""
        with _said("cannot change rules"), self._api.transaction(check_error=True) as change:
            for rule in gone:
                change.add(self._api.acl_del(switch, rule.direction, rule.priority, rule.match))
            for rule in new:
                change.add(
                    self._api.acl_add(
                        switch, rule.direction, rule.priority, rule.match, rule.action, may_exist=True
                    )
                )
        self.sync()
