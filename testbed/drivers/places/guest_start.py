"""Starts a node's guests: from the memory that the node keeps, or by a boot.

A boot that fails is repeated once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from shlex import quote
from typing import Any

from testbed import timeouts
from testbed.deadline import ProgressDeadline
from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.drivers.snapshots import guest_memory
from testbed.drivers.ssh.client import Host
from testbed.errors import InstrumentError, ProvisioningError
from testbed.model.topology import Guest, Topology
from testbed.plan import policing
from testbed.plan.libvirt_xml.guest import SAVED_VOLUME, guest_xml, is_usual
from testbed.plan.resources import Properties
from testbed.untrusted.text import line

_ANSWER = int(timeouts.GUEST_PING)
_LOOK = 0.5  # seconds between looks at whether a guest has its addresses


class GuestStarter:
    """Starts guests on one node.

    Args:
        topology: topology of the lab.
        host: ssh connection to the node.
        hypervisor: returns the node's present libvirt connection.
        renew: makes a new root disk for a guest.
        patience: seconds until a guest must be ready, if it makes no progress.

    """

    def __init__(
        self,
        topology: Topology,
        host: Host,
        hypervisor: Callable[[], Hypervisor],
        renew: Callable[[Guest], None],
        patience: float,
    ) -> None:
        self.retried: list[str] = []
        self._topology = topology
        self._host = host
        self._hypervisor = hypervisor
        self._renew = renew
        self._patience = patience
        self._lock = threading.Lock()
        self._header: bytes | None = None

    def start(self, guest: Guest, properties: Properties, *, blank: bool) -> None:
        """Start a guest and wait until its agent answers and it has its addresses.

        Its packet limits are in force before its first frame.

        Args:
            guest: the guest.
            properties: properties of its resource, for its mark.
            blank: whether its root disk is in the state that belongs to the memory that the node keeps.

        Raises:
            ProvisioningError: the second boot fails as well.

        """
        if not (blank and self._woken(guest, properties)):
            self.boot(guest, guest_xml(self._topology, guest, properties))

    def resume(self, guest: Guest) -> None:
        """Resume a paused guest, wait as for a start, and set its clock.

        Its start was killed, or it is of a checkpoint.

        Raises:
            ProvisioningError: the guest is not ready in time.

        """
        self._let_go(guest)
        try:
            self._wait(guest)
            self.set_clock(guest)
        except InstrumentError as error:
            raise ProvisioningError(error.what, fact=error.fact, remedy=error.remedy) from error

    def set_clock(self, guest: Guest) -> None:
        """Set the clock of a running guest, which stands still while the guest is paused.

        The answer is ignored: after the clock, the agent sets a hardware clock, and a guest has none.
        `Node.observe` reports a guest whose agent does not answer.
        """
        with suppress(InstrumentError):
            self._hypervisor().agent(guest.domain, "guest-set-time", {"time": time.time_ns()}, _ANSWER)

    def keeps(self, guest: Guest) -> bool:
        """Return whether the node keeps memory from which a guest can start."""
        return is_usual(guest) and bool(self._kept())

    def _kept(self) -> bytes:
        """Return the header of the memory that the node keeps, or b""; it is read once."""
        with self._lock:
            if self._header is None:
                self._header = guest_memory.saved_header(self._host)
            return self._header

    def _woken(self, guest: Guest, properties: Properties) -> bool:
        """Start a guest from the memory that the node keeps and return whether this worked.

        After a failure the guest has a new root disk, for a boot.
        """
        try:
            self._wake(
                guest,
                guest_memory.memory_header(
                    self._kept(), guest_xml(self._topology, guest, properties, waiting=True)
                ),
            )
        except (InstrumentError, ProvisioningError):
            self.retried.append(guest.label)
            self._hypervisor().destroy(guest.domain)
            self._renew(guest)
            return False
        return True

    def _wake(self, guest: Guest, head: bytes) -> None:
        hypervisor, path = self._hypervisor(), guest_memory.place_memory(self._host, guest, head)
        ask = partial(hypervisor.agent, guest.domain)
        try:
            hypervisor.restore(path)
        finally:
            self._host.must(f"rm -f {path}")
        self._let_go(guest)
        hypervisor.wait_for_agent(guest.domain, self._deadline(guest, set()))
        for volume in guest.volumes:
            if volume.size != SAVED_VOLUME:
                hypervisor.resize_disk(guest.domain, "vdb", volume.size)
        guest_memory.send_identity(ask, guest)
        self._wait(guest)
        guest_memory.require_identity(ask, guest)
        hypervisor.entitle(guest.domain, "")

    def boot(self, guest: Guest, xml: str) -> None:
        """Boot a guest from a domain's XML; a failed boot is repeated once and recorded in `retried`.

        On a busy machine the start itself fails as well: libvirt waits 5 s for the switch to take a port.

        Raises:
            ProvisioningError: the second boot fails as well.

        """
        for attempt in (1, 2):
            try:
                self._hypervisor().create(xml, paused=True)
                self._let_go(guest)
                self._wait(guest)
            except (InstrumentError, ProvisioningError) as error:
                if attempt == 2:
                    raise ProvisioningError(
                        f"the guest {guest.label} does not start", fact=error.fact,
                        remedy=f"look at `testbed logs LAB {guest.node}`, then run `testbed up` again",
                    ) from error  # fmt: skip
                self.retried.append(guest.label)
                self._hypervisor().destroy(guest.domain)
            else:
                return

    def _let_go(self, guest: Guest) -> None:
        """Set the packet limits of a paused guest, then resume it."""
        self._host.must(policing.limit([nic.tap for nic in guest.nics], guest.limits.packets))
        self._hypervisor().resume(guest.domain)

    def _deadline(self, guest: Guest, missing: set[str]) -> ProgressDeadline:
        """Return a deadline that a guest extends by its console, its disks and its addresses.

        Args:
            missing: addresses that it does not have yet; the set changes meanwhile.

        """

        def signs() -> str:
            reads = self._hypervisor().disk_reads(guest.domain)
            return (
                f"{reads or 'no reads'}, addresses missing: {len(missing)}, console: {self._console(guest)}"
            )

        return ProgressDeadline(self._patience, signs)

    def _console(self, guest: Guest) -> str:
        """Return size and last line of a guest's console."""
        path = quote(guest.console)
        try:
            done = self._host.sudo(f"stat -c %s {path} && tail -qn 1 {path} | tail -c 200")
        except InstrumentError:
            return "unknown"
        return line(done.text) or "nothing"

    def _wait(self, guest: Guest) -> None:
        """Wait until the guest's agent answers and every interface has its addresses.

        Raises:
            InstrumentError: the guest is not ready in time.

        """
        missing = {f"{nic.mac} ipv4" for nic in guest.nics} | {
            f"{nic.mac} ipv6" for nic in guest.nics if nic.address6
        }
        deadline = self._deadline(guest, missing)
        self._hypervisor().wait_for_agent(guest.domain, deadline)
        while missing:
            try:
                answer = self._hypervisor().agent(guest.domain, "guest-network-get-interfaces", {}, 15)
                missing -= addressed(answer.get("value"))
                fact = f"no address on {', '.join(sorted(missing))}"
            except InstrumentError as error:
                fact = error.fact
            if missing and deadline.over():
                what = f"the guest {guest.label} is not ready"
                raise InstrumentError(what, fact=f"{fact} {deadline.reason}", remedy="run `testbed up`")
            if missing:
                time.sleep(_LOOK)


def addressed(interfaces: Any) -> set[str]:  # noqa: ANN401 - a guest's answer may be anything
    """Return MAC address and family of each address that is not link-local.

    Args:
        interfaces: untrusted answer of a guest's agent.

    """
    found = set()
    for item in interfaces if isinstance(interfaces, list) else []:
        addresses = item.get("ip-addresses") if isinstance(item, dict) else None
        for address in addresses if isinstance(addresses, list) else []:
            if isinstance(address, dict) and not str(address.get("ip-address", "")).startswith("fe80:"):
                found.add(f"{item.get('hardware-address', '')} {address.get('ip-address-type', '')}")
    return found
