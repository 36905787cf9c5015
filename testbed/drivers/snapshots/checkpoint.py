"""Checkpoints: a whole running lab, saved with its tenants (docs/decisions/0018).

A checkpoint is a folder of the image cache that only its owner may read, since it holds the lab's keys. It
contains the lab's authorities, and for each machine its memory, domain and overlays. A checkpoint is used
only with the emulator, machine type, accelerator, images and topology that made it; otherwise the reason is
reported.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from testbed import timeouts
from testbed.drivers.host import content_store as caches
from testbed.drivers.host import process
from testbed.drivers.host.accounts import Account
from testbed.drivers.host.content_store import CHECKPOINT, altered, crowded, entries, file_digest, remove_tree
from testbed.drivers.host.private_files import OWNER, copy_secret, copy_secrets, make_folder, write_secret
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.hypervisor.connection import Hypervisor, library_version
from testbed.drivers.images.cache import Image
from testbed.drivers.snapshots.machine_memory import differences, processor
from testbed.engine.place import Progress
from testbed.errors import ProvisioningError, UsageError
from testbed.model import numbers
from testbed.model.environment import Accelerator, Environment
from testbed.model.numbers import Numbers
from testbed.model.topology import Machine, Topology

FORMAT = 2
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
_PREFIX, _MANIFEST = "checkpoint-", CHECKPOINT
_NEEDED = 2**30  # bytes of free space for each machine
_LARGEST = 2**24  # octets of a file of numbers
_SAVE = timeouts.MEMORY_SAVE
_MEMORY, _DOMAIN, _NUMBERS = "memory", "domain.xml", "numbers.json"


@dataclass(frozen=True, slots=True)
class CheckpointMachine:
    """One machine of a checkpoint.

    Args:
        folder: folder of its files.
        digests: SHA-256 (hexadecimal) of its files and of the qcow2 files under its overlays, by path.

    """

    folder: Path
    digests: Mapping[Path, str]

    @property
    def xml(self) -> str:
        """XML of its domain."""
        return (self.folder / _DOMAIN).read_text()

    @property
    def memory(self) -> Path:
        """File of its memory."""
        return self.folder / _MEMORY

    def verify(self) -> None:
        """Compare every file with its recorded digest.

        Raises:
            ProvisioningError: a file is missing or has changed.

        """
        if fact := altered(self.digests):
            remedy = "remove it with `testbed checkpoint rm`; the lab starts without it"
            raise ProvisioningError("a checkpoint is not what was saved", fact=fact, remedy=remedy)

    def unpack(self, folder: Path, account: Account) -> None:
        """Copy the machine's disks and console to its folder, for an emulator's account.

        Args:
            folder: folder of the machine in the lab.
            account: account of the emulators, which will own the files.

        """
        for path in self.folder.iterdir():
            if path.name not in (_MEMORY, _DOMAIN):
                copy_secret(path, folder / path.name)
                if path.name != "host_key.pub":
                    account.give(folder / path.name)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved lab.

    Args:
        saved: time (ISO 8601).
        made: the inputs that it depends on, see `CheckpointStore.made`.
        digests: SHA-256 (hexadecimal) of each file, by machine and path; relative paths are below the folder
            of the machine.

    """

    name: str
    lab: str
    saved: str
    made: dict[str, str]
    digests: dict[str, dict[str, str]]
    folder: Path

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def topology_file(self) -> Path:
        """The topology file that the lab was made from."""
        return self.folder / "topology.yaml"

    @property
    def numbers(self) -> Numbers:
        """The numbers that the lab had given to its names.

        Raises:
            ProvisioningError: they cannot be read.

        """
        return read_numbers(self.folder / _NUMBERS, "remove the checkpoint with `testbed checkpoint rm`")

    def machine(self, name: str) -> CheckpointMachine:
        """Return one of its machines."""
        folder = self.folder / "m" / name
        return CheckpointMachine(
            folder, {folder / path: digest for path, digest in self.digests[name].items()}
        )

    def unpack(self, workspace: Workspace) -> None:
        """Copy authorities and host keys into the folder of a lab that is down.

        The files of each machine are copied when it starts.
        """
        if os.path.lexists(workspace.pki):
            remove_tree(workspace.pki)
        copy_secrets(self.folder / "pki", workspace.pki)
        for name in self.digests:
            workspace.make(workspace.machine(name))
            copy_secret(self.folder / "m" / name / "host_key.pub", workspace.machine(name) / "host_key.pub")


def read_numbers(file: Path, remedy: str) -> Numbers:
    """Return the numbers that a file holds; none if there is no file.

    Raises:
        ProvisioningError: it cannot be read.

    """
    try:
        with file.open("rb") as stream:
            return numbers.read(stream.read(_LARGEST).decode())
    except FileNotFoundError:
        return Numbers()
    except (OSError, ValueError, RecursionError) as error:
        what = "the numbers that a lab has given to its names cannot be read"
        raise ProvisioningError(what, fact=f"{file}: {error}", remedy=remedy) from error


def stored(cache: Path) -> list[Checkpoint]:
    """Return every checkpoint of a cache folder, the latest first."""
    found = [Checkpoint(**told, folder=path) for path, told in entries(cache, CHECKPOINT)]
    return sorted(found, key=lambda item: item.saved, reverse=True)


def named(cache: Path, name: str) -> Checkpoint:
    """Return the checkpoint of a name.

    Raises:
        UsageError: no checkpoint has that name; the error lists all names.

    """
    found = {item.name: item for item in stored(cache)}
    if name not in found:
        fact = f"there are: {', '.join(sorted(found)) or 'none'}"
        remedy = "name one of these, or save one with `testbed checkpoint save`"
        raise UsageError(f"there is no checkpoint {name}", fact=fact, remedy=remedy)
    return found[name]


def remove(checkpoint: Checkpoint) -> None:
    """Delete a checkpoint.

    Raises:
        MachineError, UsageError: the cache folder is not ours.

    """
    caches.require(checkpoint.folder.parent)
    remove_tree(checkpoint.folder)


def refusal(environment: Environment, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return why nodes cannot be saved while their tenants run, or the empty string.

    With KVM on AMD, saving a machine while it runs nested guests is undefined behaviour (Linux,
    running-nested-guests).
    """
    amd = environment.outer is Accelerator.KVM and "AuthenticAMD" in cpuinfo.read_text()
    return "KVM on AMD's processors cannot save a machine in which guests run" if amd else ""


class CheckpointStore:
    """The checkpoints of a cache folder, for labs on this outer machine.

    Args:
        cache: folder of the cache.
        images: images of the machines, by name.
        environment: environment of the outer machine.

    """

    def __init__(self, cache: Path, images: Mapping[str, Image], environment: Environment) -> None:
        self._cache = cache
        self._images = images
        self._environment = environment

    def made(self, topology: Topology, workspace: Workspace) -> dict[str, str]:
        """Return the inputs that a saved lab depends on, as text by name."""
        return {
            "format": str(FORMAT),
            "topology": topology.digest,
            "folder": str(workspace.folder),
            "emulator": dict(self._environment.versions).get("qemu", "unknown"),
            "libvirt": str(library_version()),
            "accelerator": f"{self._environment.outer}, {self._environment.inner} inside",
            "processor": processor() if self._environment.outer is Accelerator.KVM else "emulated",
            "images": " ".join(self._images[name].digest for name in sorted(self._images)),
        }

    def find(
        self, resolved: Callable[[Numbers], Topology], workspace: Workspace
    ) -> tuple[Checkpoint, Topology] | None:
        """Return the latest checkpoint that a lab can start from, and the topology with its numbers.

        Args:
            resolved: gives the topology's meaning with the numbers that were given before.

        """
        for item in stored(self._cache):
            if item.lab == workspace.lab:
                with suppress(ProvisioningError):  # of numbers that cannot be read
                    topology = resolved(item.numbers)
                    if not self.unusable(item, topology, workspace):
                        return item, topology
        return None

    def unusable(self, checkpoint: Checkpoint, topology: Topology, workspace: Workspace) -> str:
        """Return why a checkpoint cannot be used for a lab, or the empty string."""
        gone = [
            path
            for name in checkpoint.digests
            for path in checkpoint.machine(name).digests
            if not path.exists()
        ]
        return differences(checkpoint.made, self.made(topology, workspace)) or (
            f"{gone[0]} is gone" if gone else ""
        )

    def save(
        self, topology: Topology, workspace: Workspace, hypervisor: Hypervisor, name: str, progress: Progress
    ) -> Checkpoint:
        """Save a running lab; a checkpoint of the same name is replaced.

        All machines are paused while they are saved, and resumed afterwards.

        Raises:
            UsageError: the name is not valid, or another file in the cache has it.
            ProvisioningError: there is not enough space, or a machine cannot be saved; no partial checkpoint
                is left.

        """
        if not NAME.fullmatch(name):
            raise UsageError(
                f"a checkpoint cannot be called {name!r}",
                fact=f"it must match {NAME.pattern}",
                remedy="choose another name",
            )
        caches.claim(self._cache)
        if fact := crowded(self._cache, _NEEDED * len(topology.machines)):
            raise ProvisioningError(
                "there is no room for a checkpoint",
                fact=fact,
                remedy="remove one with `testbed checkpoint rm`",
            )
        target, partial = (
            self._cache / f"{_PREFIX}{name}",
            self._cache / f"{_PREFIX}{name}.partial-{secrets.randbelow(10**12)}",
        )
        if target.exists() and name not in {item.name for item in stored(self._cache)}:
            fact, remedy = f"{target} is something else", "choose another name, or remove that by hand"
            raise UsageError(f"a checkpoint cannot be called {name}", fact=fact, remedy=remedy)
        made, start = self.made(topology, workspace), time.monotonic()
        try:
            with caches.written(partial):
                stood = _write(partial, topology, workspace, hypervisor)
                names = [machine.name for machine in topology.machines]
                with ThreadPoolExecutor(max_workers=2) as pool:
                    digests = dict(
                        zip(names, pool.map(lambda name: _digests(partial / "m" / name), names), strict=True)
                    )
                saved = datetime.now(UTC).isoformat(timespec="seconds")
                manifest = {
                    "name": name,
                    "lab": topology.name,
                    "saved": saved,
                    "made": made,
                    "digests": digests,
                }
                write_secret(partial / _MANIFEST, json.dumps(manifest, indent=1).encode())
                caches.replace(partial, target)
        except OSError as error:
            raise ProvisioningError(
                f"the lab {topology.name} cannot be saved", fact=str(error), remedy="run the command again"
            ) from error
        finally:
            if partial.exists():
                remove_tree(partial)
        progress(
            f"saved {topology.name} as {name} in {time.monotonic() - start:.0f} s; it stood still for "
            f"{stood:.0f} s"
        )
        return named(self._cache, name)


def _write(partial: Path, topology: Topology, workspace: Workspace, hypervisor: Hypervisor) -> float:
    """Write all files of a lab but the manifest; return the seconds for which the lab stood still."""
    copy_secret(workspace.topology_file, partial / "topology.yaml")
    write_secret(partial / _NUMBERS, Numbers.of(topology).text().encode())
    copy_secrets(workspace.pki, partial / "pki")
    start = time.monotonic()
    with _standing_still(hypervisor, topology):
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(
                pool.map(
                    lambda machine: _save(hypervisor, topology, machine, workspace, partial),
                    topology.machines,
                )
            )
        return time.monotonic() - start


@contextmanager
def _standing_still(hypervisor: Hypervisor, topology: Topology) -> Iterator[None]:
    """Pause all machines of a lab during the block; resume each of them also after an error."""
    with ExitStack() as paused:
        for machine in topology.machines:
            domain = machine.domain(topology.name)
            paused.callback(hypervisor.resume, domain)
            hypervisor.suspend(domain)
        yield


def _save(
    hypervisor: Hypervisor, topology: Topology, machine: Machine, workspace: Workspace, partial: Path
) -> None:
    """Write the memory, the domain and copies of the files of a paused machine."""
    folder, domain = partial / "m" / machine.name, machine.domain(topology.name)
    make_folder(folder.parent, OWNER)
    make_folder(folder, OWNER)
    write_secret(folder / _DOMAIN, hypervisor.live_xml(domain).encode())
    hypervisor.monitor(domain).save_memory(folder / _MEMORY, _SAVE)
    for path in workspace.machine(machine.name).iterdir():
        if path.is_file():
            copy_secret(path, folder / path.name)


def _digests(folder: Path) -> dict[str, str]:
    """Return the digests of a machine's files by name, and of qcow2 files under them by path."""
    below = [base for path in folder.glob("*.qcow2") if (base := _backing(path)).suffix == ".qcow2"]
    return {
        path.name if path.parent == folder else str(path): file_digest(path)
        for path in (*sorted(folder.iterdir()), *sorted(below))
    }


def _backing(overlay: Path) -> Path:
    tool = process.require("qemu-img", package="qemu-utils")
    argv = [tool, "info", "-U", "--output=json", str(overlay)]
    told = process.run(argv, what=f"cannot read the disk {overlay}", timeout=timeouts.DISK)
    return Path(json.loads(told)["full-backing-filename"])
