"""Checkpoints: a whole lab as it runs, tenants included, to be started again in seconds
(docs/decisions/0018).

A checkpoint is a folder of the image cache that its owner alone may read, since it holds the lab's keys: the
lab's authorities, and of each machine its memory, its domain and its overlays. Nothing is used that another
emulator, machine type, accelerator, image or topology has made; why it is not is told.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

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
from testbed.model.environment import Accelerator, Environment
from testbed.model.topology import Machine, Testbed

FORMAT = 1
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
_PREFIX, _MANIFEST = "checkpoint-", CHECKPOINT
_NEEDED = 2**30  # bytes of free space for each machine
_SAVE = 60.0  # seconds that a machine's memory may take
_MEMORY, _DOMAIN = "memory", "domain.xml"


@dataclass(frozen=True, slots=True)
class Kept:
    """One machine of a checkpoint.

    Args:
        digests: SHA-256 (hexadecimal) of each of its files, and of what its overlays lie on, by path.

    """

    folder: Path
    digests: Mapping[Path, str]

    @property
    def xml(self) -> str:
        """Its domain."""
        return (self.folder / _DOMAIN).read_text()

    @property
    def memory(self) -> Path:
        """File of its memory."""
        return self.folder / _MEMORY

    def verify(self) -> None:
        """Compare every file with its recorded digest.

        Raises:
            ProvisioningError: one is missing or has changed.

        """
        if fact := altered(self.digests):
            remedy = "remove it with `testbed checkpoint rm`; the lab starts without it"
            raise ProvisioningError("a checkpoint is not what was saved", fact=fact, remedy=remedy)

    def unpack(self, folder: Path, account: Account) -> None:
        """Copy the machine's disks and console to where its emulator looks for them, as an account."""
        for path in self.folder.iterdir():
            if path.name not in (_MEMORY, _DOMAIN):
                copy_secret(path, folder / path.name)
                if path.name != "host_key.pub":
                    account.give(folder / path.name)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved lab.

    Args:
        saved: when (ISO 8601).
        made: what it was made with, in words.
        digests: SHA-256 (hexadecimal) of each file; a relative path is below the folder.

    """

    name: str
    lab: str
    saved: str
    made: dict[str, str]
    digests: dict[str, dict[str, str]]
    folder: Path

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def topology(self) -> Path:
        """The topology file that the lab was made from."""
        return self.folder / "topology.yaml"

    def machine(self, name: str) -> Kept:
        """Return one of its machines."""
        folder = self.folder / "m" / name
        return Kept(folder, {folder / path: digest for path, digest in self.digests[name].items()})

    def unpack(self, workspace: Workspace) -> None:
        """Give a lab that is down the authorities and keys that its saved machines know; machines are
        unpacked as they start.
        """
        if os.path.lexists(workspace.pki):
            remove_tree(workspace.pki)
        copy_secrets(self.folder / "pki", workspace.pki)
        for name in self.digests:
            workspace.make(workspace.machine(name))
            copy_secret(self.folder / "m" / name / "host_key.pub", workspace.machine(name) / "host_key.pub")


def stored(cache: Path) -> list[Checkpoint]:
    """Return every checkpoint of a cache folder, the latest first."""
    found = [Checkpoint(**told, folder=path) for path, told in entries(cache, CHECKPOINT)]
    return sorted(found, key=lambda item: item.saved, reverse=True)


def named(cache: Path, name: str) -> Checkpoint:
    """Return the checkpoint of a name.

    Raises:
        UsageError: there is none; the error lists those that there are.

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

    What becomes of a nested guest of AMD's KVM when the machine around it is saved is undefined (Linux,
    running-nested-guests).
    """
    amd = environment.outer is Accelerator.KVM and "AuthenticAMD" in cpuinfo.read_text()
    return "KVM on AMD's processors cannot save a machine in which guests run" if amd else ""


class Store:
    """The checkpoints of a cache folder, for labs on this outer machine.

    Args:
        images: what machines are made from.

    """

    def __init__(self, cache: Path, images: Mapping[str, Image], environment: Environment) -> None:
        self._cache = cache
        self._images = images
        self._environment = environment

    def made(self, lab: Testbed, workspace: Workspace) -> dict[str, str]:
        """Return everything that a saved lab depends on, in words."""
        return {
            "format": str(FORMAT),
            "topology": lab.digest,
            "folder": str(workspace.folder),
            "emulator": dict(self._environment.versions).get("qemu", "unknown"),
            "libvirt": str(library_version()),
            "accelerator": f"{self._environment.outer}, {self._environment.inner} inside",
            "processor": processor() if self._environment.outer is Accelerator.KVM else "emulated",
            "images": " ".join(self._images[name].digest for name in sorted(self._images)),
        }

    def find(self, lab: Testbed, workspace: Workspace) -> Checkpoint | None:
        """Return the latest checkpoint that a lab can start from."""
        return next(
            (
                item
                for item in stored(self._cache)
                if item.lab == lab.name and not self.unusable(item, lab, workspace)
            ),
            None,
        )

    def unusable(self, checkpoint: Checkpoint, lab: Testbed, workspace: Workspace) -> str:
        """Return why a checkpoint cannot be used for a lab, or the empty string."""
        gone = [
            path
            for name in checkpoint.digests
            for path in checkpoint.machine(name).digests
            if not path.exists()
        ]
        return differences(checkpoint.made, self.made(lab, workspace)) or (
            f"{gone[0]} is gone" if gone else ""
        )

    def save(
        self, lab: Testbed, workspace: Workspace, hypervisor: Hypervisor, name: str, progress: Progress
    ) -> Checkpoint:
        """Save a lab, which stands still meanwhile and runs on afterwards; a checkpoint of that name is
        replaced.

        Raises:
            UsageError: the name is impossible, or something else in the cache has it.
            ProvisioningError: there is not enough space, or a machine cannot be saved; nothing half-done
                stays behind.

        """
        if not NAME.fullmatch(name):
            raise UsageError(
                f"a checkpoint cannot be called {name!r}",
                fact=f"it must match {NAME.pattern}",
                remedy="choose another name",
            )
        caches.claim(self._cache)
        if fact := crowded(self._cache, _NEEDED * len(lab.machines)):
            raise ProvisioningError(
                "there is no room for a checkpoint",
                fact=fact,
                remedy="remove one with `testbed checkpoint rm`",
            )
        target, partial = (
            self._cache / f"{_PREFIX}{name}",
            self._cache / f"{_PREFIX}{name}.partial-{os.getpid()}",
        )
        if target.exists() and name not in {item.name for item in stored(self._cache)}:
            fact, remedy = f"{target} is something else", "choose another name, or remove that by hand"
            raise UsageError(f"a checkpoint cannot be called {name}", fact=fact, remedy=remedy)
        made, start = self.made(lab, workspace), time.monotonic()
        try:
            make_folder(partial, OWNER)
            copy_secret(workspace.topology, partial / "topology.yaml")
            copy_secrets(workspace.pki, partial / "pki")
            with _standing_still(hypervisor, lab):
                with ThreadPoolExecutor(max_workers=2) as pool:
                    list(
                        pool.map(
                            lambda machine: _save(hypervisor, lab, machine, workspace, partial), lab.machines
                        )
                    )
                stood = time.monotonic() - start
            names = [machine.name for machine in lab.machines]
            with ThreadPoolExecutor(max_workers=2) as pool:
                digests = dict(
                    zip(names, pool.map(lambda name: _digests(partial / "m" / name), names), strict=True)
                )
            saved = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = {"name": name, "lab": lab.name, "saved": saved, "made": made, "digests": digests}
            write_secret(partial / _MANIFEST, json.dumps(manifest, indent=1).encode())
            if target.exists():
                remove_tree(target)
            partial.rename(target)
        except OSError as error:
            raise ProvisioningError(
                f"the lab {lab.name} cannot be saved", fact=str(error), remedy="run the command again"
            ) from error
        finally:
            if partial.exists():
                remove_tree(partial)
        progress(
            f"saved {lab.name} as {name} in {time.monotonic() - start:.0f} s; it stood still for "
            f"{stood:.0f} s"
        )
        return named(self._cache, name)


@contextmanager
def _standing_still(hypervisor: Hypervisor, lab: Testbed) -> Iterator[None]:
    """Pause every machine of a lab; they run on afterwards, whatever happens."""
    domains = [machine.domain(lab.name) for machine in lab.machines]
    try:
        for domain in domains:
            hypervisor.suspend(domain)
        yield
    finally:
        for domain in domains:
            hypervisor.resume(domain)


def _save(
    hypervisor: Hypervisor, lab: Testbed, machine: Machine, workspace: Workspace, partial: Path
) -> None:
    """Write a paused machine's memory, its domain and copies of its files."""
    folder, domain = partial / "m" / machine.name, machine.domain(lab.name)
    make_folder(folder.parent, OWNER)
    make_folder(folder, OWNER)
    write_secret(folder / _DOMAIN, hypervisor.live_xml(domain).encode())
    hypervisor.monitor(domain).save_memory(folder / _MEMORY, _SAVE)
    for path in workspace.machine(machine.name).iterdir():
        if path.is_file():
            copy_secret(path, folder / path.name)


def _digests(folder: Path) -> dict[str, str]:
    """Return the digests of a machine's files, by name, and of the overlays under its own, by absolute
    path.
    """
    below = [base for path in folder.glob("*.qcow2") if (base := _backing(path)).suffix == ".qcow2"]
    return {
        path.name if path.parent == folder else str(path): file_digest(path)
        for path in (*sorted(folder.iterdir()), *sorted(below))
    }


def _backing(overlay: Path) -> Path:
    tool = process.require("qemu-img", package="qemu-utils")
    argv = [tool, "info", "-U", "--output=json", str(overlay)]
    told = process.run(argv, what=f"cannot read the disk {overlay}", timeout=60)
    return Path(json.loads(told)["full-backing-filename"])
