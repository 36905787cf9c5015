"""Finds everything on a machine that names a guest, or belongs to its worker's account.

It runs as root on a node or the controller: one file, standard library only.
"""

from __future__ import annotations

import os
import stat
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TREES = ("/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/var", "/dev")
_GROUPS = "/sys/fs/cgroup"
_LINKS = "/sys/class/net"
_TEXTS = {
    "profile": "/sys/kernel/security/apparmor/profiles",
    "mount": "/proc/1/mountinfo",
}
_IPC = ("shm", "sem", "msg")
_KEYS = "/proc/key-users"
_LARGEST = 2 << 20  # octets of a file whose content is read
_TEXT, _MOST = 300, 500  # characters of an entry, and entries
_PATIENCE = 60  # seconds that a command may take

Entry = tuple[str, str]


def collect(request: dict[str, object]) -> dict[str, object]:
    """Return each place that names the guest or belongs to the account.

    Args:
        request: ``names``: texts that name the guest and nothing else; ``account``: user id of its worker;
            ``records``: beginnings of paths that are left out; ``commands``: argument lists by name, whose
            output is searched.
    """
    names = [str(name).encode() for name in request["names"]]  # type: ignore[attr-defined]
    account = int(str(request["account"]))
    records = tuple(map(str, request["records"]))  # type: ignore[call-overload]
    found = {
        *_files(names, account, records),
        *_groups(names),
        *_processes(names, account),
        *_interfaces(names),
        *_lines(names),
        *_kernel_objects(account),
        *_printed(names, request["commands"]),  # type: ignore[arg-type]
    }
    return {"found": sorted(found)[:_MOST]}


def _named(names: list[bytes], text: bytes) -> bool:
    return any(name in text for name in names)


def _files(names: list[bytes], account: int, records: tuple[str, ...]) -> Iterator[Entry]:
    """Yield files by name, by owner, by the target of a link and by content."""
    pending = [tree for tree in _TREES if not os.path.islink(tree)]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                facts = entry.stat(follow_symlinks=False)
                target = os.readlink(entry.path) if stat.S_ISLNK(facts.st_mode) else ""
            except OSError:
                continue
            path = os.fsencode(entry.path)
            if entry.path.startswith(records):
                continue
            if stat.S_ISDIR(facts.st_mode):
                pending.append(entry.path)
            if _named(names, path + b"\0" + os.fsencode(target)):
                yield "file", _shown(path)
            elif facts.st_uid == account:
                yield "file", _shown(path + b" of its account")
            elif (
                stat.S_ISREG(facts.st_mode) and facts.st_size <= _LARGEST and _named(names, _read(entry.path))
            ):
                yield "content", _shown(path)


def _groups(names: list[bytes]) -> Iterator[Entry]:
    for folder, _, _ in os.walk(os.fsencode(_GROUPS)):
        if _named(names, folder):
            yield "group", _shown(folder)


def _processes(names: list[bytes], account: int) -> Iterator[Entry]:
    """Yield processes by any of their four accounts, control group and command line; this one is left out."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        status = _read(f"/proc/{entry}/status").splitlines()
        owners = next((line.split()[1:] for line in status if line.startswith(b"Uid:")), [])
        line, group = _read(f"/proc/{entry}/cmdline"), _read(f"/proc/{entry}/cgroup")
        if str(account).encode() in owners or _named(names, line + b"\0" + group):
            yield "process", _shown(line.replace(b"\0", b" ") or status[0])


def _interfaces(names: list[bytes]) -> Iterator[Entry]:
    for name in os.listdir(_LINKS):
        address = _read(f"{_LINKS}/{name}/address").strip()
        if _named(names, name.encode() + b" " + address):
            yield "interface", _shown(name.encode() + b" " + address)


def _lines(names: list[bytes]) -> Iterator[Entry]:
    for kind, path in _TEXTS.items():
        for line in _read(path).splitlines():
            if _named(names, line):
                yield kind, _shown(line)


def _kernel_objects(account: int) -> Iterator[Entry]:
    """Yield the account's objects of System V IPC and its keys (proc(5), keyrings(7))."""
    for kind in _IPC:
        head, *rows = _read(f"/proc/sysvipc/{kind}").decode().splitlines() or [""]
        columns = head.split()
        for row in rows:
            fields = dict(zip(columns, row.split(), strict=False))
            if str(account) in (fields.get("uid"), fields.get("cuid")):
                yield kind, _shown(row.encode())
    for row in _read(_KEYS).decode().splitlines():
        if row.split(":", 1)[0].strip() == str(account):
            yield "key", _shown(row.encode())


def _printed(names: list[bytes], commands: dict[str, list[str]]) -> Iterator[Entry]:
    """Yield the lines that commands print.

    Raises:
        CalledProcessError, TimeoutExpired: a command failed, so that nothing was seen.
    """
    for kind, command in commands.items():
        done = subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE)
        for line in done.stdout.splitlines():
            if _named(names, line):
                yield kind, _shown(line)


def _read(path: str) -> bytes:
    """Return a file; empty if it cannot be read or has gone."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _shown(text: bytes) -> str:
    return text.decode(errors="replace")[:_TEXT]
