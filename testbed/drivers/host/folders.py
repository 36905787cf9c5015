"""Paths of the state and cache folders, from variables, without symbolic links."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from testbed.drivers.host.ownership import MARK, require_way
from testbed.errors import MachineError, UsageError

SOCKET = 107  # octets that the path of a UNIX socket may have: sun_path, with an octet of zero at its end
PRIVATE = ("/run", "/dev", "/proc", "/sys")  # a lab's namespaces have other ones, which hide ours
LAB_LINK = Path("/run/lab")  # in a lab's namespaces, a link to the lab's folder


def home() -> Path:
    """Return the user's home folder: HOME if it is a path, else that of the account database.

    Raises:
        UsageError: neither has one.

    """
    named = os.environ.get("HOME", "")
    try:
        found = named if named.startswith("/") else pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        found = ""
    if not found.startswith("/"):
        fact = (
            f"HOME is {'empty' if named == '' else named}, and uid {os.geteuid()} has no entry in the "
            "account database"
        )
        remedy = "set HOME, or TESTBED_STATE_DIR and TESTBED_CACHE_DIR"
        raise UsageError("there is no home folder to keep labs in", fact=fact, remedy=remedy)
    return Path(found)


def folder_of(variable: str, *, of_root: str, xdg: str, below_home: str) -> Path:
    """Return a folder of ours, absolute and without symbolic links.

    Args:
        variable: one that names it.
        of_root: where root has it; XDG's variables are of people, and stay with sudo.
        xdg: variable that names the folder above it; a relative path there is ignored, as XDG's rules say.
        below_home: the folder above it without that variable.

    Raises:
        UsageError: programs that we start could not take the path.
        MachineError: others can change a symbolic link on the way.

    """
    named = os.environ.get(variable, "")
    if named:
        path = _named(variable, named)
    elif os.geteuid() == 0:
        path = Path(of_root)
    else:
        above = os.environ.get(xdg, "")
        path = Path(above, "testbed") if above.startswith("/") else home() / below_home / "testbed"
        if not os.path.lexists(path):
            with suppress(UsageError):  # no home, which nothing needs then
                # of a version that did not know XDG's variables, or of a shell without them
                earlier = home() / below_home / "testbed"
                path = earlier if os.path.lexists(earlier / MARK) else path
    found = Path(os.path.realpath(path))
    if found != path:
        require_way(path)
    _require_plain(variable, found)
    return found


def _named(variable: str, text: str) -> Path:
    """Return the path that a variable names, with ``~`` expanded, as not every shell does."""
    first, _, rest = text.partition("/")
    if first == "~":
        return home() / rest
    if first.startswith("~"):
        try:
            return Path(pwd.getpwnam(first[1:]).pw_dir) / rest
        except KeyError:
            remedy = f"write the whole path, or ./{text} for a folder of that name"
            raise UsageError(
                f"{variable} names no folder", fact=f"there is no account {first[1:]}", remedy=remedy
            ) from None
    try:
        return Path(text).absolute()
    except FileNotFoundError as error:
        fact, remedy = (
            f"{variable} is {text}, and the working folder has been deleted",
            "name an absolute path, or leave that folder",
        )
        raise UsageError("there is no folder to begin at", fact=fact, remedy=remedy) from error


def _require_plain(variable: str, folder: Path) -> None:
    text = str(folder)
    reason = ""
    if not text.isprintable():
        reason = "it has a character that does not show, or is not text"
    elif os.fsencode(text) != text.encode():
        reason = "its octets are no UTF-8 in this locale; LC_ALL=C.UTF-8 helps"
    elif "${" in text or "{{" in text:
        reason = "OpenSSH reads ${ in a path as a variable, Ansible reads {{ so, and neither can quote it"
    if reason:
        remedy = f"name a folder with another path ({variable})"
        raise UsageError(f"{text!a} cannot be a folder of ours", fact=reason, remedy=remedy)


def hidden(folder: Path) -> str:
    """Return the folder of a lab's namespaces that hides a path of ours, or the empty string."""
    return next((above for above in PRIVATE if folder.is_relative_to(above)), "")


def longest_lab(root: Path) -> int:
    """Return the most characters of a lab's name below a state folder; 0 if none fits."""
    return next((size for size in range(SOCKET, 0, -1) if len(_longest(root, "l" * size)) <= SOCKET), 0)


def _longest(root: Path, lab: str, machines: Iterable[str] = ("controller",)) -> bytes:
    """Return the longest path of a lab's sockets: those through which we reach services of its machines.

    Every lab has a controller.
    """
    return os.fsencode(f"{root}/{lab}/m/{max(machines, key=len)}/northbound.sock")


def within_namespaces(path: Path, folder: Path) -> Path:
    """Return the path by which libvirt and QEMU get a file inside the lab's namespaces.

    The path is short and has no special character. libvirt escapes no comma in the path of the monitor with
    which it probes QEMU, and gives QEMU the path of a firmware file as XML text (seen in 9.0). A lab that an
    earlier version has started has no link; the path is returned as it is.

    Args:
        path: path below the lab's folder.
        folder: the lab's folder.

    """
    try:
        return LAB_LINK / path.relative_to(folder) if LAB_LINK.samefile(folder) else path
    except OSError:
        return path


def require_room(root: Path, lab: str, machines: Iterable[str]) -> None:
    """Refuse a lab whose sockets would have longer paths than a UNIX socket can have.

    Args:
        machines: names of its machines.

    Raises:
        MachineError: they would.

    """
    size = len(_longest(root, lab, machines))
    if size > SOCKET:
        most = longest_lab(root)
        fact = f"sockets below it would have paths of {size} octets, and {SOCKET} are possible"
        shorter = (
            f"give the lab a name of at most {most} characters, or name" if 0 < most < len(lab) else "name"
        )
        raise MachineError(
            f"the path of {root / lab} is too long",
            fact=fact,
            remedy=f"{shorter} a state folder with a shorter path (TESTBED_STATE_DIR)",
        )
