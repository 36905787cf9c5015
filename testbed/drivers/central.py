"""The controller as a place: OVN's northbound database, and the controller's own settings."""

from __future__ import annotations

from testbed.drivers import batch, clock
from testbed.drivers.ovn import Northbound
from testbed.drivers.pki import write_secret
from testbed.drivers.ssh import BOOT, Host
from testbed.drivers.workspace import Workspace
from testbed.errors import ProvisioningError
from testbed.model.testbed import Plane, Testbed
from testbed.plan import northbound
from testbed.plan.acls import acls
from testbed.plan.diff import Action, Verb
from testbed.plan.resources import Key, Kind, Properties
from testbed.plan.settings import settings

_SERVICES = ("ovn-ovsdb-server-nb", "ovn-ovsdb-server-sb", "ovn-northd")


class Central:
    """The controller."""

    def __init__(self, lab: Testbed, workspace: Workspace, host: Host, slowness: float) -> None:
        self.lab = lab
        self.name = lab.controller.name
        self.host = host
        self._workspace = workspace
        self._slowness = slowness
        self._northbound: Northbound | None = None
        self._limits = {nic.port: guest.limits for guest in lab.guests for nic in guest.nics}

    @property
    def northbound(self) -> Northbound:
        """The northbound database; connected on first use."""
        if self._northbound is None:
            self._northbound = self._connect()
        return self._northbound

    def _connect(self) -> Northbound:
        folder = self._workspace.pki
        return Northbound(
            str(self.lab.controller.address(Plane.MANAGEMENT)),
            self.lab.name,
            key=folder / "client.pem",
            certificate=folder / "client.crt",
            authority=folder / "tls-ca.crt",
            timeout=int(20 * self._slowness),
        )

    def wait(self) -> None:
        """Return when the controller accepts our login."""
        self.host.wait(BOOT * self._slowness)

    def recover(self) -> list[str]:
        """Set the clock if it has stood still, start the parts of OVN's central services that do not run, and tell what was done.

        Raises:
            ProvisioningError: one does not start.

        """
        told, stopped = clock.set_right(self.host), self._stopped()
        if stopped:
            self.host.must(f"systemctl reset-failed {' '.join(stopped)}; systemctl start {' '.join(stopped)}")
        return [*([told] if told else []), *(f"restarted {name}, which did not run" for name in stopped)]

    def _stopped(self) -> list[str]:
        answers = self.host.sudo(f"systemctl is-active {' '.join(_SERVICES)}").text.split()
        return [name for name, answer in zip(_SERVICES, answers, strict=False) if answer in ("inactive", "failed")]

    def observe(self) -> dict[Key, Properties]:
        """Return the switches and ports of this lab, and the controller's settings.

        Raises:
            ProvisioningError: OVN's central services do not run, or cannot be read.

        """
        stopped = self._stopped()
        if stopped:
            fact, remedy = f"stopped on {self.name}: {', '.join(stopped)}", "run `testbed up`, which starts them again"
            raise ProvisioningError("OVN's switches cannot be observed", fact=fact, remedy=remedy)
        found, _ = batch.observe(self.host, self.name, settings(self.lab, self.lab.controller))
        for label, properties in self.northbound.switches().items():
            found[Key(self.name, Kind.SWITCH, label)] = properties
        for label, properties in self.northbound.ports().items():
            found[Key(self.name, Kind.PORT, label)] = properties
        strays = northbound.strays(self.northbound.tables(), self.lab.name)
        found[Key(self.name, Kind.DATABASE, northbound.NAME)] = dict(northbound.told(strays))
        return found

    def perform(self, action: Action) -> None:
        """Carry out one action."""
        key = action.key
        if key.kind is Kind.SETTING:
            batch.repair_setting(self.host, settings(self.lab, self.lab.controller), key.name)
        elif key.kind is Kind.DATABASE:
            tables = self.northbound.tables()
            self.northbound.remove(northbound.strays(tables, self.lab.name), tables)
        elif key.kind is Kind.SWITCH and action.resource is None:
            self.northbound.delete_switch(key.name)
        elif key.kind is Kind.SWITCH:
            tenant, _, name = key.name.partition("/")
            network = self.lab.tenant(tenant).network(name)
            self.northbound.set_switch(network, acls(self.lab.tenant(tenant), network))
        elif key.kind is Kind.PORT and action.resource is None:
            found = self.northbound.ports().get(key.name)
            if found is not None:
                self.northbound.delete_port(found["port"])
        elif key.kind is Kind.PORT and action.resource is not None:
            wanted = action.resource.properties
            switch, port, addresses = (str(wanted[name]) for name in ("switch", "port", "addresses"))
            self.northbound.set_port(key.name, switch, port, addresses, self._limits[port], fresh=action.verb is Verb.CREATE)
        else:
            raise ProvisioningError(f"cannot {action}", fact="no such kind of resource here", remedy="report this as a bug")

    def close(self) -> None:
        """End the connections; they are opened anew on the next use."""
        if self._northbound is not None:
            self._northbound.close()
            self._northbound = None
        self.host.close()


def write_client(workspace: Workspace, key: bytes, certificate: bytes) -> None:
    """Store our own TLS identity, by which OVN's northbound database knows us."""
    write_secret(workspace.pki / "client.pem", key)
    write_secret(workspace.pki / "client.crt", certificate)
