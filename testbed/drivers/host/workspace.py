"""The folder of a lab: keys, logs and the lock.

It holds only data that cannot be read from the running lab (D9).
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.drivers.host import accounts, ownership
from testbed.drivers.host.accounts import Account
from testbed.drivers.host.content_store import remove_tree
from testbed.drivers.host.folders import folder_of
from testbed.drivers.host.private_files import OWNER, PASSABLE, make_folder, write_secret
from testbed.drivers.host.run_order import place
from testbed.errors import LockedError, UsageError
from testbed.topology_file.schema import NAME_RULE, is_name

_LOCK = "lock"
_KVM = Path("/dev/kvm")
_SHOWN = 60  # characters of an invalid name that an error shows


def state_root() -> Path:
    """Return the folder that holds every lab's folder (TESTBED_STATE_DIR).

    It raises the errors of `folders.folder_of`.
    """
    return folder_of(
        "TESTBED_STATE_DIR", of_root="/var/lib/testbed", xdg="XDG_STATE_HOME", below_home=".local/state"
    )


def cache_root() -> Path:
    """Return the folder that holds the images (TESTBED_CACHE_DIR).

    It raises the errors of `folders.folder_of`.
    """
    return folder_of(
        "TESTBED_CACHE_DIR", of_root="/var/cache/testbed", xdg="XDG_CACHE_HOME", below_home=".cache"
    )


def require_name(kind: str, text: str) -> None:
    """Refuse a text that is not a valid name; an invalid name never becomes part of a path.

    Args:
        kind: "lab" or "machine", for the error.
        text: the name that the user gave.

    Raises:
        UsageError: the text breaks the rule for names in a topology.

    """
    if not is_name(text):
        shown = ascii(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!a} and more"
        remedy = "run `testbed status` for the names"
        raise UsageError(f"this is no name of a {kind}: {shown}", fact=f"names {NAME_RULE}", remedy=remedy)


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths of one lab.

    Raises:
        UsageError: the lab's name is impossible.

    """

    root: Path
    lab: str

    def __post_init__(self) -> None:
        require_name("lab", self.lab)

    @property
    def folder(self) -> Path:
        """The lab's folder. Short: sockets below it must stay under 108 bytes."""
        return self.root / self.lab

    @property
    def topology_file(self) -> Path:
        """Copy of the topology file that was applied last."""
        return self.folder / "topology.yaml"

    @property
    def numbers(self) -> Path:
        """Numbers that the lab has given to its names (`testbed.model.numbers`)."""
        return self.folder / "numbers.json"

    @property
    def pki(self) -> Path:
        """Folder of the lab's authorities."""
        return self.folder / "pki"

    @property
    def images(self) -> Path:
        """Folder of the copies of images that volumes begin with."""
        return self.folder / "imported"

    @property
    def libvirt(self) -> Path:
        """Root of the embedded libvirt."""
        return self.folder / "v"

    @property
    def ssh_config(self) -> Path:
        """OpenSSH client configuration for the lab's machines."""
        return self.folder / "ssh/config"

    @property
    def runs(self) -> Path:
        """Folder of the check runs."""
        return self.folder / "runs"

    @property
    def connection(self) -> str:
        """The libvirt URI that runs the lab's machines; empty for the built-in libvirt."""
        file = self.folder / "connect"
        return file.read_text() if file.exists() else ""

    def connect(self, uri: str) -> None:
        """Remember the libvirt URI that runs the lab's machines."""
        write_secret(self.folder / "connect", uri.encode())

    @property
    def account(self) -> Account:
        """The account that the lab's emulators run as."""
        return accounts.daemon() if self.connection else accounts.of_lab(self.folder)

    def assign_account(self, cache: Path, *, kvm: bool) -> str:
        """Give the lab an account of its own, or return why its emulators run as the user.

        The result is empty if the lab has its own account.

        Args:
            cache: folder of the images.
            kvm: whether emulators need /dev/kvm.

        Raises:
            MachineError: see `testbed.drivers.host.accounts.assign`.

        """
        reason = "" if accounts.privileged() else accounts.closed_way(self.root, cache)
        if kvm and not accounts.privileged() and _KVM.stat().st_mode & 0o006 != 0o006:
            reason = f"{_KVM} is not open to every account"
        if not reason:
            accounts.assign(self.folder, accounts.registry_folder())
        return reason

    @property
    def log(self) -> Path:
        """Log of the process that holds the lab's enclosure."""
        return self.folder / "holder.log"

    def machine(self, name: str) -> Path:
        """Return the folder of one machine: overlays, identity, console.

        Raises:
            UsageError: no machine can have that name.

        """
        require_name("machine", name)
        return self.folder / "m" / name

    def claim(self) -> None:
        """Make the state folder and the lab's folder with their marks, unless they exist.

        Raises:
            MachineError: other accounts can change the content of the state folder.
            UsageError: one of them exists and is not ours.

        """
        ownership.require_trust(self.root)
        ownership.claim(self.root, ownership.STATE, PASSABLE)
        ownership.claim(self.folder, ownership.lab_mark(self.lab), OWNER)

    def require(self) -> None:
        """Refuse a lab that we have not made.

        Raises:
            MachineError: other accounts can change the content of the state folder.
            UsageError: the state folder or the lab's folder does not carry our mark.

        """
        ownership.require_trust(self.root)
        ownership.require_mark(self.root, ownership.STATE)
        ownership.require_mark(self.folder, ownership.lab_mark(self.lab))

    def create(self) -> None:
        """Make the folders that every lab has, unless they exist."""
        self.claim()
        passed = [self.folder] if self.connection else []  # the daemon's settings decide which account passes
        for folder in (*passed, self.folder / "m", self.libvirt):
            self.make(folder)
        for folder in (self.folder / "ssh", self.runs):
            make_folder(folder, OWNER)

    def make(self, folder: Path) -> None:
        """Make a folder that the emulators' account may pass through, but not list."""
        make_folder(folder, PASSABLE)

    def require_removable(self) -> None:
        """Refuse to remove a lab that is not ours, or that has a mount point in its folder.

        Raises:
            MachineError, UsageError: see `require`; or something is mounted in its folder.

        """
        self.require()
        ownership.require_no_mount(self.folder)

    def remove(self) -> None:
        """Delete all files of the lab except the reports of check runs.

        Without reports the folder goes too. The mark is deleted last, so that an interrupted removal can be
        repeated.

        Raises:
            MachineError, UsageError: see `require_removable`.

        """
        self.require_removable()
        kept = {self.runs.name, _LOCK, ownership.MARK}
        remove_tree(*(path for path in self.folder.iterdir() if path.name not in kept))
        if not (self.runs.exists() and any(self.runs.iterdir())):
            remove_tree(*(path for path in self.folder.iterdir() if path.name != ownership.MARK))
            (self.folder / ownership.MARK).unlink()
            self.folder.rmdir()

    def latest_run(self) -> Path:
        """Return the folder of the latest run, by number and not by clock.

        Raises:
            UsageError: there is none.

        """
        found = sorted((path.parent for path in self.runs.glob("*/result.json")), key=place)
        if not found:
            fact = f"{self.runs} holds no result"
            raise UsageError(
                f"the lab {self.lab} has no check run", fact=fact, remedy=f"run `testbed check {self.lab}`"
            )
        return found[-1]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the lab against other processes during the block.

        Raises:
            LockedError: another process works on it; the error names it.
            MachineError, UsageError: see `require`.

        """
        self.require()
        path = self.folder / _LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise self._in_use(stream.read(500).strip()) from error
            # `remove` may have deleted the file after we opened it: then a lock on it protects nothing
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(descriptor)):
                raise self._in_use("a process that has just removed it")
            stream.truncate(0)
            stream.write(f"process {os.getpid()}: {' '.join(sys.argv)[:400]}\n")
            stream.flush()
            yield

    def _in_use(self, by: str) -> LockedError:
        return LockedError(
            f"the lab {self.lab} is in use",
            fact=f"locked by {by or 'a process that has not named itself yet'}",
            remedy="wait until it ends, or stop it; the lab then resumes with the next `testbed up`",
        )


def labs(root: Path) -> list[str]:
    """Return the names of our labs that have a topology, sorted."""
    names = sorted(path.parent.name for path in root.glob("*/topology.yaml"))
    return [
        name for name in names if is_name(name) and ownership.marked(root / name, ownership.lab_mark(name))
    ]
