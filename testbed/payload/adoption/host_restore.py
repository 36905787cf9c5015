"""Gives back what a host was: carries out the orders that a comparison with its record led to.

It runs as root on hosts that others have set up. Orders come first on standard input, as one
line of JSON, and then a tar archive with the contents of files under their SHA-256. Each step can be
repeated, and one that cannot be done is named on standard error and leaves the others. It needs Python 3.9.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

_LOCK = "/run/testbed-restore.lock"
_SECONDS = 120.0  # for one program
_PACKAGE_SECONDS = 1500.0  # for the programs that remove and install packages, on an emulated machine
_REMOVED = re.compile(r"^(?:Remv|Purg) (\S+)", re.MULTILINE)
_PAUSE = 0.5  # seconds between two tries to get the lock
_SUFFIX = ".testbed-restore"
_ATTRIBUTES = ("security.capability", "system.posix_acl_access", "system.posix_acl_default")
_FAILED: list[str] = []


class PackageError(Exception):
    """Packages are not what they must be, so that files must not be given back yet."""


def restore(orders: dict[str, Any], contents: IO[bytes]) -> None:
    """Carry out orders.

    Args:
        orders: as `testbed.adoption.compare.Orders`.
        contents: the archive.

    Raises:
        PackageError: packages could not be removed; files were not touched.
    """
    files = _received(contents)
    for unit in orders["stop"]:
        _try("systemctl", "stop", unit)
    for link in orders["links"]:
        _unlink(link)
    _packages(orders["purge"], orders["install"])
    for path in orders["trees"]:
        _try("rm", "-rf", "--one-file-system", "--", path)
    for path in sorted(orders["delete"], reverse=True):
        _guard(path, _delete)
    for item in sorted(orders["write"], key=lambda item: item["path"]):
        _guard(item, lambda found: _write(found, files))
    _try("systemctl", "daemon-reload")
    for unit in orders["restart"]:
        _try("systemctl", "restart", unit)
    for unit in orders["start"]:
        _try("systemctl", "start", unit)
    if orders["tables"]:
        _try("nft", "-f", "-", given=orders["tables"])
    for name, value in orders["sysctls"].items():
        _guard((name, value), _set)
    for module in orders["load"]:
        _try("modprobe", module)
    _unload(orders["unload"])


def _lock(end: float) -> None:
    """Wait until an earlier call has ended, whose connection was lost.

    Raises:
        TimeoutError: it has not, at a time of the monotonic clock.
    """
    while True:
        lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.set_inheritable(lock, True)  # see `_run`
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                return
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError("an earlier restore still runs on the host") from None
        os.close(lock)
        time.sleep(_PAUSE)


def _received(contents: IO[bytes]) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=contents, mode="r|") as archive:
        for member in archive:
            stream = archive.extractfile(member)
            content = stream.read() if stream else b""
            if hashlib.sha256(content).hexdigest() != member.name:
                raise OSError(f"the content {member.name} has changed on its way")
            found[member.name] = content
    return found


def _run(*argv: str, given: str = "", seconds: float = _SECONDS) -> str:
    # The lock is inherited: a program that outlives us holds it.
    done = subprocess.run(
        argv,
        input=given.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
        close_fds=False,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
    )
    text = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise OSError(f"{' '.join(argv)[:200]}: status {done.returncode}: {text.strip()[-500:]}")
    return text


def _try(*argv: str, given: str = "") -> None:
    _guard(argv, lambda words: _run(*words, given=given))


def _guard(item: Any, step: Any) -> None:  # noqa: ANN401 - any argument of a step
    try:
        step(item)
    except (OSError, subprocess.SubprocessError) as error:
        _FAILED.append(str(error))


def _unlink(link: str) -> None:
    """Remove a network interface; that of a datapath goes with its datapath."""
    try:
        _run("ovs-dpctl", "del-dp", link)
    except OSError:
        _try("ip", "link", "delete", "dev", link)


def _packages(purged: list[str], installed: list[str]) -> None:
    """Remove and install packages.

    Raises:
        PackageError: it cannot be done, or would remove packages that were there before.
    """
    apt = ("apt-get", "--yes", "--quiet=2", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300")
    try:
        if purged:
            _run(
                "dpkg", "--configure", "-a", seconds=_PACKAGE_SECONDS
            )  # an earlier call may have been killed
            names = {name.partition(":")[0] for name in purged}
            told = _run(*apt, "--simulate", "purge", *purged, seconds=_PACKAGE_SECONDS)
            others = sorted({name.partition(":")[0] for name in _REMOVED.findall(told)} - names)
            if others:
                raise OSError(f"apt-get would remove as well: {' '.join(others)[:300]}")
            _run(*apt, "purge", *purged, seconds=_PACKAGE_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise PackageError(str(error)) from error
    if installed:
        _guard(installed, lambda names: _run(*apt, "install", *names, seconds=_PACKAGE_SECONDS))


def _path(text: str) -> bytes:
    return text.encode("latin-1")


def _delete(text: str) -> None:
    path = _path(text)
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.rmdir(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return


def _write(item: dict[str, Any], files: dict[str, bytes]) -> None:
    """Give a file, folder or link back, with its mode, owner, times and attributes."""
    path, kind = _path(item["path"]), item["kind"]
    if item["whole"]:
        _clear(path, kind)
        if kind == "d":
            os.makedirs(path, mode=0o700, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            fresh = path + _SUFFIX.encode()
            _delete(fresh.decode("latin-1"))
            if kind == "l":
                os.symlink(_path(item["target"]), fresh)
                os.lchown(fresh, item["owner"], item["group"])
                if item["time"]:
                    os.utime(fresh, ns=(item["time"], item["time"]), follow_symlinks=False)
            else:
                descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(files[item["digest"]])
                    stream.flush()
                    os.fsync(descriptor)
                _dress(fresh, item)
            os.rename(fresh, path)
    if kind != "l":
        _dress(path, item)


def _clear(path: bytes, kind: str) -> None:
    """Remove what has another type and stands in the way; a folder only if it is empty."""
    try:
        folder = stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if folder and kind != "d":
        os.rmdir(path)
    elif kind == "d" and not folder:
        os.unlink(path)


def _dress(path: bytes, item: dict[str, Any]) -> None:
    os.chown(path, item["owner"], item["group"], follow_symlinks=False)
    os.chmod(path, int(item["mode"], 8))
    wanted = dict(word.split("=", 1) for word in item["attributes"].split(",") if word)
    for name in os.listxattr(path, follow_symlinks=False):
        if name in _ATTRIBUTES and name not in wanted:
            os.removexattr(path, name, follow_symlinks=False)
    for name, value in wanted.items():
        os.setxattr(path, name, bytes.fromhex(value), follow_symlinks=False)
    if item["time"]:
        os.utime(path, ns=(item["time"], item["time"]), follow_symlinks=False)


def _set(setting: tuple[str, str]) -> None:
    name, value = setting
    with open(f"/proc/sys/{name}", "w", encoding="utf-8") as stream:
        stream.write(value)


def _unload(modules: list[str]) -> None:
    """Unload modules; those that others use go after them, and one that is in use stays."""
    left = set(modules)
    while left:
        gone = set()
        for name in sorted(left):
            try:
                _run("rmmod", name)
                gone.add(name)
            except (OSError, subprocess.SubprocessError):
                continue
        if not gone:
            break
        left -= gone
    if left:
        _FAILED.append(f"in use, and loaded until the next boot: {' '.join(sorted(left))}")


def main(stream: IO[bytes]) -> int:
    """Carry out the orders on standard input; 0, or 1 if some could not be carried out."""
    orders = json.loads(stream.readline())
    try:
        _lock(time.monotonic() + _PACKAGE_SECONDS)
        restore(orders, stream)
        os.unlink(_LOCK)
    except (OSError, PackageError, subprocess.SubprocessError) as error:
        _FAILED.append(f"stopped: {error}")
    for text in _FAILED:
        sys.stderr.write(f"{text}\n")
    return 1 if _FAILED else 0
