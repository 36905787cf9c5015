"""Guests that come and go by the actions of `up`, as those of a topology do (RES-02, STO-04)."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

from testbed import payload
from testbed.hosts.remnants import RECORDS
from testbed.lab.guest_changes import change_guests
from testbed.model import subjects
from testbed.model.topology import ENCRYPTED, Guest, GuestNic, Topology
from testbed.verify.fleet import Fleet, MachineView

NAME = "departing"  # followed by a dot, which no name of a topology can have
_PROGRAM = Path(payload.__file__).parent / "residues/guest_remnants.py"
_LISTINGS = {
    "node": {
        "switch": ["ovsdb-client", "dump", "unix:/run/openvswitch/db.sock"],
        "flow": ["ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-int"],
        "rule": ["nft", "list", "ruleset"],
        "neighbour": ["ip", "neighbour", "show"],
        "domain": ["virsh", "-q", "list", "--all", "--name", "--uuid"],
    },
    "controller": {
        "northbound": ["ovsdb-client", "dump", "unix:/run/ovn/ovnnb_db.sock"],
        "southbound": ["ovsdb-client", "dump", "unix:/run/ovn/ovnsb_db.sock"],
    },
}


class Passing:
    """A guest on a node, which is not in the topology of the lab.

    Args:
        guest: see `guest_like`.
    """

    def __init__(self, fleet: Fleet, guest: Guest) -> None:
        self._fleet = fleet
        self.node = fleet.machines[guest.node]
        self.guest = guest
        self._with = fleet.topology.with_guest(guest)
        self._there = False

    def arrive(self) -> None:
        """Create the guest and everything that belongs to it, and wait until it runs.

        Raises:
            ProvisioningError: an action fails.
        """
        self._there = True
        change_guests(self._fleet.lab, self.node.name, self._fleet.topology, self._with)

    def grow(self, size: int) -> None:
        """Make the volumes of the running guest larger.

        Args:
            size: of each in bytes.

        Raises:
            ProvisioningError: an action fails.
        """
        volumes = tuple(replace(volume, size=size) for volume in self.guest.volumes)
        before, self.guest = self._with, replace(self.guest, volumes=volumes)
        self._with = self._fleet.topology.with_guest(self.guest)
        change_guests(self._fleet.lab, self.node.name, before, self._with)

    def leave(self) -> None:
        """Remove the guest as `up` does, after it is taken out of the topology; it may have left already.

        Raises:
            ProvisioningError: an action fails.
        """
        if self._there:
            change_guests(self._fleet.lab, self.node.name, self._with, self._fleet.topology)
            self._there = False


class Departing(Passing):
    """The guest, on a node that has guests, and of the tenant of its first guest."""

    def __init__(self, fleet: Fleet, node: str) -> None:
        super().__init__(fleet, guest_like(fleet.topology, fleet.topology.guests_on(node)[0]))
        self.controller = fleet.machines[fleet.topology.controller.name]

    def look(self, machine: MachineView) -> object:
        """Return what names the guest on a machine or belongs to its account: see `testbed.hosts.remnants`.

        Raises:
            InstrumentError: the machine could not be read.
        """
        role = "node" if machine is self.node else "controller"
        request = {
            "names": self._names,
            "account": self.guest.uid,
            "records": RECORDS,
            "commands": _LISTINGS[role],
        }
        return machine.python(_PROGRAM.read_text(), request, function="collect")

    @property
    def _names(self) -> list[str]:
        """What names the guest and no other one."""
        nic = self.guest.nics[0]
        return [self.guest.uuid, self.guest.domain, self.guest.label, nic.tap, nic.mac, nic.port]


def guest_like(topology: Topology, model: Guest) -> Guest:
    """Return a guest that is like one of the topology, with names, account and addresses of its own."""
    worker, uid = subjects.spare_worker(topology, model.node)
    own = uuid.uuid4()
    taken = {nic.address for guest in topology.guests for nic in guest.nics if guest.tenant == model.tenant}
    network = topology.tenant(model.tenant).network(model.nics[0].network)
    address = next(item for item in network.network.hosts() if item not in {*taken, network.server})
    name = f"{NAME}.{own.hex[:4]}"
    nic = GuestNic(
        network.name, f"0e:{own.bytes[:5].hex(':')}", address, str(uuid.uuid4()), f"tap{own.hex[4:12]}"
    )
    return replace(
        model,
        name=name,
        uuid=str(own),
        worker=worker,
        uid=uid,
        nics=(nic,),
        volumes=tuple(replace(volume, file=f"{name}.{volume.name}{ENCRYPTED}") for volume in model.volumes),
    )
