"""The controller as a place: OVN's northbound database, and the controller's own settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed.drivers.host.private_files import write_secret
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.network.northbound import Northbound
from testbed.drivers.places import clock, settings_io
from testbed.drivers.ssh.client import BOOT, Host
from testbed.errors import ProvisioningError
from testbed.model.topology import Plane, Topology
from testbed.plan import ovn_northbound as northbound
from testbed.plan.diff import Action, Verb
from testbed.plan.host_config.settings import settings
from testbed.plan.ovn_acls import acls
from testbed.plan.resources import Key, Kind, Properties

_SOCKET = "/run/ovn/ovnnb_db.sock"  # of the northbound database, on the controller
_SERVICES = ("ovn-ovsdb-server-nb", "ovn-ovsdb-server-sb", "ovn-northd")


class Controller:
    """The controller."""

    def __init__(self, topology: Topology, workspace: Workspace, host: Host, slowness: float) -> None:
        self.topology = topology
        self.name = topology.controller.name
        self.host = host
        self._workspace = workspace
        self._slowness = slowness
        self._northbound: Northbound | None = None
        self._limits = {nic.port: guest.limits for guest in topology.guests for nic in guest.nics}

    def in_topology(self, topology: Topology) -> Controller:
        """Return the same controller, over the same login, as a place of another topology of its lab."""
        return Controller(topology, self._workspace, self.host, self._slowness)

    @property
    def northbound(self) -> Northbound:
        """The northbound database; connected on first use."""
        if self._northbound is None:
            self._northbound = self._connect()
        return self._northbound

    def _connect(self, socket: Path | None = None) -> Northbound:
        folder = self._workspace.pki
        return Northbound(
            str(self.topology.controller.address(Plane.MANAGEMENT)),
            self.topology.name,
            key=folder / "client.pem",
            certificate=folder / "client.crt",
            authority=folder / "tls-ca.crt",
            timeout=int(20 * self._slowness),
            socket=socket,
        )

    @contextmanager
    def _looked_into(self, found: dict[Key, Properties]) -> Iterator[Northbound]:
        """Yield a connection to the northbound database, for reading.

        If a setting differs from the plan, it may have cut our TLS connection. Then a connection over ssh to
        the database's UNIX socket is used.

        Args:
            found: live settings of the controller.

        """
        wanted = {
            Key(self.name, Kind.SETTING, item.name): {"value": item.value}
            for item in settings(self.topology, self.topology.controller)
        }
        if found == wanted:
            yield self.northbound
            return
        path = self._workspace.machine(self.name) / "northbound.sock"
        self.host.bridge(path, _SOCKET)
        northbound = self._connect(path)
        try:
            yield northbound
        finally:
            northbound.close()

    def wait(self) -> None:
        """Wait until the controller accepts our login, and commands of earlier sessions have ended.

        Raises:
            ProvisioningError: the login is not accepted in time, or a command runs on.

        """
        self.host.wait(BOOT * self._slowness)
        self.host.await_orphans()

    def recover(self) -> list[str]:
        """Set the clock, start OVN's stopped services and return a note for each change.

        Raises:
            ProvisioningError: a service does not start.

        """
        told, stopped = clock.sync_clock(self.host), self._stopped()
        if stopped:
            self.host.must(f"systemctl reset-failed {' '.join(stopped)}; systemctl start {' '.join(stopped)}")
        return [*([told] if told else []), *(f"restarted {name}, which did not run" for name in stopped)]

    def _stopped(self) -> list[str]:
        text = self.host.sudo(f"systemctl is-active {' '.join(_SERVICES)}").text
        answers = text.split()
        if len(answers) != len(_SERVICES):
            fact = f"{len(answers)} answers for {len(_SERVICES)} services: {text[:80]!r}"
            raise ProvisioningError(
                f"{self.name} does not tell which services run", fact=fact, remedy="run `testbed status`"
            )
        return [
            name for name, answer in zip(_SERVICES, answers, strict=True) if answer in ("inactive", "failed")
        ]

    def observe(self) -> dict[Key, Properties]:
        """Return the switches and ports of this lab, and the controller's settings.

        Raises:
            ProvisioningError: OVN's central services do not run, or cannot be read.

        """
        stopped = self._stopped()
        if stopped:
            fact, remedy = (
                f"stopped on {self.name}: {', '.join(stopped)}",
                "run `testbed up`, which starts them again",
            )
            raise ProvisioningError("OVN's switches cannot be observed", fact=fact, remedy=remedy)
        found, _ = settings_io.observe(
            self.host, self.name, settings(self.topology, self.topology.controller)
        )
        with self._looked_into(found) as database:
            for label, properties in database.switches().items():
                found[Key(self.name, Kind.SWITCH, label)] = properties
            for label, properties in database.ports().items():
                found[Key(self.name, Kind.PORT, label)] = properties
            strays = northbound.strays(database.tables(), self.topology.name)
        found[Key(self.name, Kind.DATABASE, northbound.NAME)] = dict(northbound.told(strays))
        return found

    def perform(self, action: Action) -> None:
        """Carry out one action."""
        key = action.key
        if key.kind is Kind.SETTING:
            settings_io.repair_setting(self.host, settings(self.topology, self.topology.controller), key.name)
        elif key.kind is Kind.DATABASE:
            tables = self.northbound.tables()
            self.northbound.remove(northbound.strays(tables, self.topology.name), tables)
        elif key.kind is Kind.SWITCH and action.resource is None:
            self.northbound.delete_switch(key.name)
        elif key.kind is Kind.SWITCH:
            tenant, _, name = key.name.partition("/")
            network = self.topology.tenant(tenant).network(name)
            self.northbound.set_switch(network, acls(self.topology.tenant(tenant), network))
        elif key.kind is Kind.PORT and action.resource is None:
            found = self.northbound.ports().get(key.name)
            if found is not None:
                self.northbound.delete_port(found["port"])
        elif key.kind is Kind.PORT and action.resource is not None:
            wanted = action.resource.properties
            switch, port, addresses = (str(wanted[name]) for name in ("switch", "port", "addresses"))
            self.northbound.set_port(
                key.name, switch, port, addresses, self._limits[port], fresh=action.verb is Verb.CREATE
            )
        else:
            raise ProvisioningError(
                f"cannot {action}", fact="no such kind of resource here", remedy="report this as a bug"
            )

    def close(self) -> None:
        """Close the connections; they are opened again on the next use."""
        self.close_northbound()
        self.host.close()

    def close_northbound(self) -> None:
        """Close the connection to the northbound database; it is opened again on the next use."""
        if self._northbound is not None:
            self._northbound.close()
            self._northbound = None


def write_client(workspace: Workspace, key: bytes, certificate: bytes) -> None:
    """Store the TLS key and certificate with which we log in to OVN's northbound database."""
    write_secret(workspace.pki / "client.pem", key)
    write_secret(workspace.pki / "client.crt", certificate)
