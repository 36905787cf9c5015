"""Checkpoints: a whole running lab, saved with its tenants (docs/decisions/0018).

A checkpoint is a folder of the image cache that only its owner may read, since it holds the lab's keys. It
contains the lab's authorities, and for each machine its memory, domain and overlays. A checkpoint is used
only with the emulator, machine type, accelerator, images and topology that made it; otherwise the reason is
reported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from testbed.drivers.host import content_store as caches
from testbed.drivers.host.accounts import Account
from testbed.drivers.host.content_store import CHECKPOINT, altered, entries, remove_tree
from testbed.drivers.host.private_files import copy_secret, copy_secrets
from testbed.drivers.host.workspace import Workspace
from testbed.errors import ProvisioningError, UsageError
from testbed.model import numbers
from testbed.model.numbers import Numbers

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
MANIFEST = CHECKPOINT  # file in the folder of each checkpoint
_LARGEST = 2**24  # octets of a file of numbers
MEMORY, DOMAIN, NUMBERS = "memory", "domain.xml", "numbers.json"


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
        return (self.folder / DOMAIN).read_text()

    @property
    def memory(self) -> Path:
        """File of its memory."""
        return self.folder / MEMORY

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
            if path.name not in (MEMORY, DOMAIN):
                copy_secret(path, folder / path.name)
                if path.name != "host_key.pub":
                    account.give(folder / path.name)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved lab.

    Args:
        saved: time (ISO 8601).
        made: the inputs that it depends on, see `CheckpointStore.made` in `checkpoint_store`.
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
        return read_numbers(self.folder / NUMBERS, "remove the checkpoint with `testbed checkpoint rm`")

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
