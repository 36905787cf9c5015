"""Accounts of the outer machine: our own, and those that emulators run as.

docs/reference/outer-machine.md describes them. Each lab has a number of its own, used as uid and as gid. The
number is in no account database. For root's labs it is an id of the machine, for the labs of an ordinary user
an id of the user namespace. A registry outside the state folders maps numbers to labs, so that two labs never
share a number.
"""

from __future__ import annotations

import fcntl
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from testbed.drivers.host.folders import home
from testbed.drivers.host.ownership import require_trust
from testbed.drivers.host.private_files import OWNER, make_folder, write_secret
from testbed.errors import MachineError

# "Unused" in systemd's table (systemd.io/UIDS-GIDS), beyond useradd's subordinate ids and SSSD's usual range.
FREEZER = 2_100_000_000  # of machines whose memory is saved for all labs; they belong to no lab
NUMBERS = range(FREEZER + 1, FREEZER + 2**16)
READER = FREEZER + 2**16  # of the program that reads file systems of machines
WITHIN = range(
    60_001, 65_000
)  # subordinate ids, as a user namespace counts them; containers seldom get that far
_DAEMON = "libvirt-qemu"
_FILE = "account"


@dataclass(frozen=True, slots=True)
class Account:
    """An account that emulators run as."""

    uid: int
    gid: int
    reader: int | None = (
        None  # group that may read what is the account's: ours, where we are not root outside
    )

    def give(self, path: Path) -> None:
        """Let only this account open a file; a symbolic link is not followed."""
        os.chown(path, self.uid, self.gid if self.reader is None else self.reader, follow_symlinks=False)
        if self.reader is not None and not path.is_symlink():
            path.chmod(0o640)

    def admit(self, folder: Path) -> None:
        """Let this account pass through a folder of ours; all others except ours are kept out."""
        os.chown(folder, -1, self.gid, follow_symlinks=False)
        folder.chmod(0o710)


def privileged() -> bool:
    """Return whether uid 0 here is the machine's root."""
    # only the initial user namespace maps all ids to themselves (user_namespaces(7))
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def freezer() -> Account:
    """Return the account of machines whose memory is saved; in a user namespace, our own."""
    return Account(FREEZER, FREEZER) if privileged() else ourselves()


def reader(lab: Account) -> int:
    """Return the number of the account that reads a machine's file system on the outer machine.

    Args:
        lab: the account of the lab's emulators, which reads it where we are not root outside.

    """
    return READER if privileged() else lab.uid


def ourselves() -> Account:
    """Return our own account."""
    return Account(os.geteuid(), os.getegid())


def daemon() -> Account:
    """Return the account under which libvirt's daemon runs emulators.

    The name is the one that Debian and Ubuntu use.

    Raises:
        MachineError: the account is missing.

    """
    try:
        found = pwd.getpwnam(_DAEMON)
    except KeyError as error:
        what, remedy = f"the account {_DAEMON} is missing", "run `testbed doctor`, which says how to make it"
        raise MachineError(what, fact="no account has that name", remedy=remedy) from error
    return Account(found.pw_uid, found.pw_gid)


def of_lab(folder: Path) -> Account:
    """Return the account of a lab's emulators; raises like `daemon`.

    Without root, a lab's own account exists only in the user namespace of the lab. Outside it, and for a lab
    without a number, the result is our own account.
    """
    number = _recorded(folder)
    if privileged():
        return Account(number, number) if number in NUMBERS else daemon()
    if number in WITHIN and os.geteuid() == 0 and _mapped(number):
        return Account(number, number, reader=0)
    return ourselves()


def _mapped(number: int) -> bool:
    """Return whether our user namespace maps a number, as uid and as gid."""
    for kind in ("uid", "gid"):
        rows = [
            tuple(map(int, row.split())) for row in Path(f"/proc/self/{kind}_map").read_text().splitlines()
        ]
        if not any(first <= number < first + count for first, _, count in rows):
            return False
    return True


def registry_folder() -> Path:
    """Return the folder of the registry of numbers: root's, or the user's own."""
    return Path("/var/lib/testbed-accounts") if privileged() else home() / ".local/state/testbed-accounts"


def closed_way(*folders: Path) -> str:
    """Return the first folder on the given paths that others cannot pass, with its mode, or ""."""
    for folder in folders:
        for path in (folder, *folder.parents):
            if os.path.isdir(path) and not path.stat().st_mode & 0o001:  # noqa: PTH112 - Path.is_dir fails where we may not look
                return f"{path} has mode {path.stat().st_mode & 0o7777:04o}"
    return ""


def assign(folder: Path, registry: Path) -> None:
    """Record the number of a lab: the one that it has already, or a free one.

    Args:
        folder: folder of the lab.
        registry: folder with one file per number, which holds the path of the lab's folder.

    Raises:
        MachineError: others can change the registry, or all numbers are taken.

    """
    place = folder.resolve()
    with _locked(registry):
        taken = _taken(registry)
        number = next((number for number, found in taken.items() if found == place), None) or _free(taken)
        write_secret(registry / str(number), os.fsencode(place))
        write_secret(folder / _FILE, f"{number}\n".encode())


@contextmanager
def _locked(registry: Path) -> Iterator[None]:
    require_trust(registry)
    make_folder(registry, OWNER)
    descriptor = os.open(registry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _taken(registry: Path) -> dict[int, Path]:
    """Return the labs' folders by number; remove entries that the lab's folder does not confirm."""
    taken = {}
    for entry in registry.iterdir():
        if entry.name.isdecimal():
            place = Path(os.fsdecode(entry.read_bytes()))
            if _recorded(place) == int(entry.name):
                taken[int(entry.name)] = place
            else:
                entry.unlink()
    return taken


def _recorded(folder: Path) -> int:
    """Return the number that is recorded in a lab's folder, or 0."""
    try:
        text = (folder / _FILE).read_text().strip()
    except (OSError, ValueError):
        return 0
    return int(text) if text.isascii() and text.isdecimal() else 0


def _running() -> set[int]:
    """Return the accounts of all running processes."""
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found.add(process.stat().st_uid)
    return found


def _free(taken: dict[int, Path]) -> int:
    known = {entry.pw_uid for entry in pwd.getpwall()} | _running()
    for number in NUMBERS if privileged() else WITHIN:
        if number not in taken and number not in known:
            return number
    fact, remedy = f"{len(taken)} labs have one", "take labs down that are not needed"
    raise MachineError("there is no account left for the lab's emulators", fact=fact, remedy=remedy)
