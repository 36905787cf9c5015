"""Who we are on the outer machine, and the accounts that emulators run as (docs/outer-machine.md).

Each lab has a number of its own, uid and gid in one, that is in no account database: of the machine, or of
the user namespace of an ordinary user's labs. A registry outside the state folders says which lab has which
number, so that two labs never share one.
"""

from __future__ import annotations

import fcntl
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.drivers.host.folders import home
from testbed.drivers.host.ownership import require_trust
from testbed.drivers.host.private_files import OWNER, make_folder, write_secret
from testbed.errors import MachineError

# "Unused" in systemd's table (systemd.io/UIDS-GIDS), beyond useradd's subordinate ids and SSSD's usual range.
FREEZER = 2_100_000_000  # of machines that are nobody's: those whose memory is saved for every lab
NUMBERS = range(FREEZER + 1, FREEZER + 2**16)
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
        """Let the account, and it alone, open a file; a symbolic link is not followed."""
        os.chown(path, self.uid, self.gid if self.reader is None else self.reader, follow_symlinks=False)
        if self.reader is not None and not path.is_symlink():
            path.chmod(0o640)

    def admit(self, folder: Path) -> None:
        """Let the account, and no other but ours, pass through a folder of ours."""
        os.chown(folder, -1, self.gid, follow_symlinks=False)
        folder.chmod(0o710)


def privileged() -> bool:
    """Tell whether uid 0 here is the machine's root."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def freezer() -> Account:
    """Return the account of machines whose memory is saved: in a user namespace, our own."""
    return Account(FREEZER, FREEZER) if privileged() else ourselves()


def ourselves() -> Account:
    """Return our own account."""
    return Account(os.geteuid(), os.getegid())


def daemon() -> Account:
    """Return the account under which libvirt's daemon runs emulators, as Debian and Ubuntu set it up.

    Raises:
        MachineError: there is none.

    """
    try:
        found = pwd.getpwnam(_DAEMON)
    except KeyError as error:
        what, remedy = f"the account {_DAEMON} is missing", "run `testbed doctor`, which says how to make it"
        raise MachineError(what, fact="no account has that name", remedy=remedy) from error
    return Account(found.pw_uid, found.pw_gid)


def of_lab(folder: Path) -> Account:
    """Return the account of a lab's emulators; raises like `daemon`.

    Without root, a lab's own account exists in its user namespace alone; where it has none, it is ours.
    """
    number = _recorded(folder)
    if privileged():
        return Account(number, number) if number in NUMBERS else daemon()
    if number in WITHIN and os.geteuid() == 0 and _mapped(number):
        return Account(number, number, reader=0)
    return ourselves()


def _mapped(number: int) -> bool:
    """Tell whether our user namespace has an id."""
    for kind in ("uid", "gid"):
        rows = [
            tuple(map(int, row.split())) for row in Path(f"/proc/self/{kind}_map").read_text().splitlines()
        ]
        if not any(first <= number < first + count for first, _, count in rows):
            return False
    return True


def registry_folder() -> Path:
    """Return the folder that says which lab has which number: root's, or the user's own."""
    return Path("/var/lib/testbed-accounts") if privileged() else home() / ".local/state/testbed-accounts"


def closed_way(*folders: Path) -> str:
    """Return which folder on the way to others does not let every account pass, or the empty string."""
    for folder in folders:
        for path in (folder, *folder.parents):
            if os.path.isdir(path) and not path.stat().st_mode & 0o001:  # noqa: PTH112 - Path.is_dir fails where we may not look
                return f"{path} has mode {path.stat().st_mode & 0o7777:04o}"
    return ""


def assign(folder: Path, registry: Path) -> None:
    """Give a lab the number that it has already, or one that no other lab has.

    Args:
        folder: the lab's.

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
    """Return which lab has which number; entries of labs that are gone, or have another one, are removed."""
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
    """Return the number that a lab's folder says is the lab's, or 0."""
    try:
        text = (folder / _FILE).read_text().strip()
    except (OSError, ValueError):
        return 0
    return int(text) if text.isascii() and text.isdecimal() else 0


def _free(taken: dict[int, Path]) -> int:
    running = {path.stat().st_uid for path in Path("/proc").glob("[0-9]*") if path.exists()}
    known = {entry.pw_uid for entry in pwd.getpwall()} | running
    for number in NUMBERS if privileged() else WITHIN:
        if number not in taken and number not in known:
            return number
    fact, remedy = f"{len(taken)} labs have one", "take labs down that nobody needs"
    raise MachineError("there is no account left for the lab's emulators", fact=fact, remedy=remedy)
