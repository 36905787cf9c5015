"""A node as a place: tenants' pools, volumes and guests, and the root partition's settings."""

from __future__ import annotations

import shlex
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import ascii_lowercase
from typing import Any
from urllib.parse import quote

from testbed import timeouts
from testbed.deadline import ProgressDeadline
from testbed.drivers.hypervisor.connection import Domain, Hypervisor
from testbed.drivers.places import clock, image_import, luks_volumes, settings_io
from testbed.drivers.places.guest_start import GuestStarter
from testbed.drivers.places.volume_keys import VolumeKeys
from testbed.drivers.snapshots import guest_memory
from testbed.drivers.ssh.client import BOOT, Host
from testbed.errors import InstrumentError, ProvisioningError
from testbed.model.environment import Environment
from testbed.model.topology import ENCRYPTED, IMAGES, POOLS, Guest, Image, Machine, Topology, file_length
from testbed.plan import compute_limits, policing
from testbed.plan.diff import Action, Verb
from testbed.plan.host_config.settings import FILTERS, GUEST_RECORDS, SOCKETS, settings
from testbed.plan.libvirt_xml.limits import PERIOD, quota
from testbed.plan.libvirt_xml.machine import parsed, waits
from testbed.plan.resources import Key, Kind, Properties
from testbed.topology_file.validation import ROOT_DISK

_GUEST = timeouts.GUEST_BOOT
_PING = int(timeouts.GUEST_PING)
_SIDE_BY_SIDE = 4
_TIMED_OUT = 124  # status of timeout(1)
_FILES = f"find {POOLS} -mindepth 2 -maxdepth 2 -printf '%m %U %n %s %P\\0'"  # names may contain newlines
_FOLDERS = f"cd {POOLS} && getfacl -pn -- */"


class Node:
    """One node."""

    def __init__(
        self,
        topology: Topology,
        machine: Machine,
        host: Host,
        socket: Path,
        environment: Environment,
        keys: VolumeKeys,
        images: Path = Path(),
    ) -> None:
        self.topology = topology
        self.machine = machine
        self.name = machine.name
        self.host = host
        self.keys = keys
        self._images = images  # copies of the images of the topology
        self._blank: set[str] = set()  # root disks copied for saved memory, not started yet
        self._socket, self._uri = socket, f"qemu+unix:///system?socket={quote(str(socket))}"
        self._environment, self._slowness = environment, environment.slowness
        # Guests that start at the same time share the node's CPUs.
        sharing = max(1.0, len(topology.guests_on(machine.name)) / environment.vcpus(machine.vcpus))
        patience = _GUEST * environment.slowness * (1 + (sharing - 1) / 2)
        self._starter = GuestStarter(topology, host, lambda: self.hypervisor, self._renew, patience)
        self._hypervisor: Hypervisor | None = None
        self._lock = threading.Lock()

    def in_topology(self, topology: Topology) -> Node:
        """Return the same node, over the same login, as a place of another topology of its lab."""
        socket = self._socket.with_name(f"other-{self._socket.name}")
        return Node(topology, self.machine, self.host, socket, self._environment, self.keys, self._images)

    @property
    def retried(self) -> list[str]:
        """Labels of guests whose first start failed, in this process."""
        return self._starter.retried

    @property
    def hypervisor(self) -> Hypervisor:
        """The node's libvirt, over the ssh connection; opened on first use."""
        with self._lock:
            if self._hypervisor is None:
                self.host.bridge(self._socket, SOCKETS[0])
                self._hypervisor = Hypervisor(self._uri, cut=self.host.cut)
            return self._hypervisor

    def reconnect(self) -> None:
        """Reopen the connection to the node's libvirt, which does not survive a boot of the node."""
        with self._lock:
            if self._hypervisor is not None:
                self._hypervisor.close()
                self._hypervisor = Hypervisor(self._uri, cut=self.host.cut)

    def agent(self, name: str, command: str, arguments: dict[str, object], timeout: int) -> dict[str, Any]:
        """Send a command to a guest's agent over the present connection: see `Hypervisor.agent`.

        Long-lived clients of an agent keep this method. A `Hypervisor` does not survive a boot of the node.
        """
        return self.hypervisor.agent(name, command, arguments, timeout)

    def wait(self) -> None:
        """Wait until the node accepts our login, and the boot and commands of earlier sessions have ended.

        Raises:
            ProvisioningError: the node does not accept our login in time, or a command runs on.

        """
        self.host.wait(BOOT * self._slowness)
        self._await_boot()
        self.host.await_orphans()

    def _await_boot(self) -> None:
        """Wait until systemd has no more jobs; a node with jobs that do not end is observed all the same."""

        def jobs() -> str:
            return self.host.sudo("systemctl list-jobs --no-legend --plain | sort", timeout=60).text

        deadline = ProgressDeadline(BOOT * self._slowness, jobs)
        while not deadline.over():
            seconds = int(deadline.pause) + 1
            asked = f"timeout {seconds} systemctl is-system-running --wait"
            if self.host.sudo(asked, timeout=seconds + 60).status != _TIMED_OUT:
                return

    def recover(self) -> tuple[str, ...]:
        """Set the clocks of a node and its guests after a pause; return a note if one was set.

        The node's services are not started here: they are among its settings.
        """
        told = clock.sync_clock(self.host)
        if told:
            for guest in self.topology.guests_on(self.name):
                self._starter.set_clock(guest)
        return (told,) if told else ()

    def pause_guests(self) -> None:
        """Pause all guests of the lab on the node.

        Raises:
            InstrumentError, ProvisioningError: libvirt cannot be asked, or refuses.

        """
        for domain, _, _ in self.hypervisor.owned(self.topology.name):
            if domain.state == "running":
                self.hypervisor.suspend(domain.name)

    def resume_guests(self) -> None:
        """Resume all paused guests of the lab on the node; raises like `pause_guests`."""
        for domain, _, _ in self.hypervisor.owned(self.topology.name):
            if domain.state == "paused":
                self.hypervisor.resume(domain.name)

    def observe(self) -> dict[Key, Properties]:
        """Return this lab's resources on the node, and the root partition's settings."""
        found, printed = settings_io.observe(
            self.host,
            self.name,
            settings(self.topology, self.machine),
            (_FILES, _FOLDERS, FILTERS, policing.TRACKING, compute_limits.GROUPS),
        )
        files, folders, filters, tracking, groups = printed
        found.update(self._pools(folders))
        found.update(self._volumes(files))
        found.update(luks_volumes.observed(self.name, self.hypervisor, self.keys, self.topology))
        found.update(policing.observed(self.name, self.topology.guests_on(self.name), filters, tracking))
        guests = list(self.hypervisor.owned(self.topology.name))
        with ThreadPoolExecutor(max_workers=_SIDE_BY_SIDE) as pool:
            states = list(pool.map(lambda guest: self._state(guest[0]), guests))
            throttles = list(pool.map(lambda guest: self.throttles(guest[0].name), guests))
        workers = compute_limits.of_workers(groups)
        for (domain, label, _), disks in zip(guests, throttles, strict=True):
            key = Key(self.name, Kind.COMPUTE, label)
            found[key] = compute_limits.observed(workers, disks, domain.name)
        for (domain, label, properties), state in zip(guests, states, strict=True):
            found[Key(self.name, Kind.GUEST, label)] = {**properties, **_live(domain), "state": state}  # type: ignore[dict-item]
        return found

    def throttles(self, domain: str) -> list[compute_limits.DiskThrottle]:
        """Return the limits of the disks of a guest, from its QEMU; none if that does not tell."""
        try:
            return compute_limits.throttles(self.hypervisor.ask_monitor(domain, "query-block", {}))
        except (InstrumentError, ValueError):
            return []

    def _state(self, domain: Domain) -> str:
        """Return a guest's state: libvirt's, "waiting" or "silent".

        A guest is "waiting" if its start from saved memory was interrupted: it has no identity. It is
        "silent" if it runs and its agent does not answer: checks cannot observe it.
        """
        if waits(domain.xml):
            return "waiting"
        if domain.state == "running":
            try:
                self.hypervisor.agent(domain.name, "guest-ping", {}, _PING)
            except InstrumentError:
                return "silent"
        return domain.state

    def console(self, guest: Guest, octets: int) -> bytes:
        """Return the end of a guest's serial console since its start; untrusted.

        Args:
            guest: the guest.
            octets: maximum length.

        Raises:
            InstrumentError: the node does not answer.

        """
        return self.host.sudo(f"tail -c {octets} {guest.console} 2>/dev/null || true").stdout

    def _pools(self, text: str) -> dict[Key, Properties]:
        found: dict[Key, Properties] = {}
        for told in text.split("# file: ")[1:]:
            name, *lines = told.splitlines()
            owner = next(
                (line.removeprefix("# owner: ") for line in lines if line.startswith("# owner: ")), ""
            )
            access = sorted(line for line in lines if line and not line.startswith("#"))
            found[Key(self.name, Kind.POOL, name.rstrip("/"))] = {
                "owner": "root" if owner == "0" else owner,
                "access": access,
            }
        found.pop(Key(self.name, Kind.POOL, "lost+found"), None)
        return found

    def _volumes(self, text: str) -> dict[Key, Properties]:
        found: dict[Key, Properties] = {}
        for told in filter(None, text.split("\0")):
            mode, owner, links, size, path = [*told.split(" ", 4), *[""] * 5][:5]
            if not (path and all(map(str.isdecimal, (mode, owner, links, size)))):
                fact = f"{told[:200]!r} describes no file"
                raise ProvisioningError(
                    f"the volumes of {self.name} cannot be observed", fact=fact, remedy="run `testbed status`"
                )
            if not path.startswith("lost+found"):
                shape: Properties = {
                    "mode": mode,
                    "owner": int(owner),
                    "links": int(links),
                    "size": luks_volumes.capacity(path, int(size)),
                }
                found[Key(self.name, Kind.VOLUME, path)] = shape
        return found

    def perform(self, action: Action) -> None:
        """Carry out one action."""
        key = action.key
        if key.kind is Kind.SETTING:
            settings_io.repair_setting(self.host, settings(self.topology, self.machine), key.name)
        elif key.kind is Kind.POOL:
            self._pool(action)
        elif key.kind is Kind.VOLUME:
            self._volume(action)
        elif key.kind is Kind.VOLUME_KEY:
            luks_volumes.repair(action, self.hypervisor, self.keys)
        elif key.kind is Kind.LIMIT:
            self._limit(action)
        elif key.kind is Kind.COMPUTE:
            self._limit_compute(action)
        elif action.resource is None:
            self._remove(key.name)
        elif action.verb is Verb.RESUME:
            self._starter.resume(self._guest(key.name))
        else:
            self._start(self._guest(key.name), action)

    def _remove(self, label: str) -> None:
        """Stop a guest, and remove what libvirt keeps of it (RES-02)."""
        tenant, _, name = label.partition("/")
        self.hypervisor.destroy(f"{tenant}.{name}")
        settings_io.repair_setting(self.host, settings(self.topology, self.machine), GUEST_RECORDS)

    def define_key(self, tenant: str, *, ephemeral: str = "yes", private: str = "yes") -> None:
        """Define the secret with the key of a tenant's volumes, as it must be or as a breach wants it."""
        luks_volumes.define(
            self.name, tenant, self.hypervisor, self.keys, ephemeral=ephemeral, private=private
        )

    def _limit(self, action: Action) -> None:
        """Set the limits of an interface; the start of its guest has set that of a new one's packets."""
        label, _, network = action.key.name.rpartition("/")
        guest = self._guest(label)
        for nic in (nic for nic in guest.nics if nic.network == network):
            if action.verb is not Verb.CREATE:
                # Setting 0 first forces a change: the switch ignores a value that it has recorded already.
                unlimited, limited = (policing.limit([nic.tap], rate) for rate in (0, guest.limits.packets))
                self.host.must(f"{unlimited} && {limited}")
            self.host.must(policing.settle(nic.port, guest.limits.connections))

    def _limit_compute(self, action: Action) -> None:
        """Set the limits of a running guest again; a new one has them from its start on."""
        if action.verb is Verb.CREATE:
            return
        guest = self._guest(action.key.name)
        own = guest.limits
        self.hypervisor.set_limits(
            guest.domain, memory=guest.most_memory, weight=own.cpu_weight, quota=(quota(guest), PERIOD)
        )
        self.throttle(guest, own.disk_operations, own.disk_bandwidth)
        self.host.must(compute_limits.repair(guest.domain))

    def throttle(self, guest: Guest, operations: int, octets: int) -> None:
        """Limit what all disks of a running guest may do together: operations and bytes per second."""
        for letter in ascii_lowercase[: len(guest.disks)]:
            self.hypervisor.throttle_disk(
                guest.domain, f"vd{letter}", guest.domain, operations=operations, octets=octets
            )

    def _guest(self, label: str) -> Guest:
        return next(guest for guest in self.topology.guests if guest.label == label)

    def _pool(self, action: Action) -> None:
        folder = f"{POOLS}/{action.key.name}"
        if action.resource is None:
            self.host.must(f"rm -rf --one-file-system {shlex.quote(folder)}")
            return
        access = action.resource.properties["access"]
        entries = ",".join(access) if isinstance(access, list) else ""
        self.host.must(f"install -d -o root -g root {folder} && setfacl --set {entries} {folder}")

    def _volume(self, action: Action) -> None:
        pool, _, file = action.key.name.partition("/")
        path = shlex.quote(f"{POOLS}/{pool}/{file}")
        if action.resource is None:
            self._remove_file(f"{POOLS}/{pool}/{file}")
            return
        wanted = action.resource.properties
        owner, size = int(str(wanted["owner"])), int(str(wanted.get("size", 0)))
        if action.verb is Verb.CREATE:
            self._create_volume(pool, file, size, owner)
            return
        if action.verb is Verb.REPLACE:
            self._take_from_guest(pool, file)
            self._remove_file(f"{POOLS}/{pool}/{file}")
            self._create_volume(pool, file, size, owner)
            return
        self.host.must(f"chown {owner}:{owner} {path} && chmod {wanted['mode']} {path}")
        if size and "size" in action.changes:
            self._grow(pool, file, size)

    def _take_from_guest(self, pool: str, file: str) -> None:
        """Stop the guest that has a volume open; it is started again when the volume is another one."""
        for guest in self.topology.guests_on(self.name):
            if f"{POOLS}/{pool}/{file}" in guest.disks:
                self.hypervisor.destroy(guest.domain)

    def _grow(self, pool: str, file: str, size: int) -> None:
        """Make a volume larger, in bytes; the worker of a guest that runs does it."""
        path = f"{POOLS}/{pool}/{file}"
        for guest in self.topology.guests_on(self.name):
            if path in guest.disks and self.hypervisor.runs(guest.domain):
                self.hypervisor.resize_disk(guest.domain, path, size)
                return
        self.host.must(f"truncate -s {file_length(file, size)} {shlex.quote(path)}")

    def _create_volume(self, pool: str, file: str, size: int, owner: int) -> None:
        """Make a new volume.

        The root disk of a guest that can start from saved memory is a copy of the disk saved with it.
        """
        guest = next(
            (
                guest
                for guest in self.topology.guests_on(self.name)
                if (guest.tenant, guest.root_file) == (pool, file)
            ),
            None,
        )
        if guest and self._starter.keeps(guest):
            guest_memory.lay_disk(self.host, guest)
            self._blank.add(guest.root_disk)
        else:
            self._make_volume(pool, file, size, owner)

    def _make_volume(self, pool: str, file: str, size: int, owner: int) -> None:
        """Make a volume of a size (bytes) or, for size 0, a root overlay on the base image.

        libvirt's storage pools are not used: they read the format of each volume, and the files that it
        names, from its content, which a guest writes (STO-02).
        """
        path = f"{POOLS}/{pool}/{file}"
        made = shlex.quote(f"{path}.new")
        key, make = b"", f"truncate -s {size} {made}"
        image = self._image(pool, file)
        if image:
            octets = image_import.stored(self._images, image)
            image_import.make_volume(
                self.host, image, octets, size, f"{path}.new", self.keys.key(self.name, pool)
            )
            make = f"[ $(stat -c %s {made}) = {file_length(file, size)} ]"
        elif file.endswith(ENCRYPTED):
            key, make = self.keys.key(self.name, pool), luks_volumes.make(made, size)
        elif not size:
            make = f"qemu-img create -q -f qcow2 -F raw -b {IMAGES}/guest/root.raw {made} {ROOT_DISK}"
        clear = "true" if image else f"rm -f {made}"
        self.host.must(
            f"{clear} && (umask 077 && {make}) && chown {owner}:{owner} {made} && "
            f"mv {made} {shlex.quote(path)}",
            stdin=key,
        )

    def _image(self, pool: str, file: str) -> Image | None:
        """Return the image that a volume begins with, if it has any."""
        return next(
            (
                volume.image
                for guest in self.topology.guests_on(self.name)
                for volume in guest.volumes
                if (guest.tenant, volume.file) == (pool, file)
            ),
            None,
        )

    def _start(self, guest: Guest, action: Action) -> None:
        assert action.resource is not None
        self.hypervisor.destroy(guest.domain)
        if action.verb is Verb.REPLACE:
            self._remove_file(guest.root_disk)
            self._create_volume(guest.tenant, guest.root_file, 0, guest.uid)
        blank = guest.root_disk in self._blank
        self._blank.discard(guest.root_disk)
        self._starter.start(guest, action.resource.properties, blank=blank)

    def boot(self, guest: Guest, xml: str) -> None:
        """Boot a guest from a domain's XML, in place of the one that runs.

        Raises:
            ProvisioningError: it does not start.

        """
        self.hypervisor.destroy(guest.domain)
        self._starter.boot(guest, xml)

    def _renew(self, guest: Guest) -> None:
        """Replace a guest's root disk by a new one, for a boot."""
        self._remove_file(guest.root_disk)
        self._make_volume(guest.tenant, guest.root_file, 0, guest.uid)

    def _remove_file(self, path: str) -> None:
        self.host.must(luks_volumes.wipe(path))

    def close(self) -> None:
        """Close the connections; they are opened again on the next use."""
        self.close_hypervisor()
        self.host.close()

    def close_hypervisor(self) -> None:
        """Close the connection to the node's libvirt; it is opened again on the next use."""
        if self._hypervisor is not None:
            self._hypervisor.close()
            self._hypervisor = None
        self._socket.unlink(missing_ok=True)


def _live(domain: Domain) -> Properties:
    """Return worker and confinement from the live XML of a domain, not from its metadata."""
    root = parsed(domain.xml)
    labels = {label.get("model"): label for label in root.findall("seclabel")}
    worker = labels["dac"].findtext("label", "") if "dac" in labels else ""
    confinement = (
        "apparmor"
        if labels.get("apparmor") is not None and labels["apparmor"].get("type") == "dynamic"
        else "none"
    )
    return {"worker": worker.partition(":")[0].lstrip("+"), "confinement": confinement}
