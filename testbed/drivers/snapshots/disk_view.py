"""What a machine's disk holds, read from outside while the machine runs.

QEMU offers the disk as it was at one moment. A program without rights (`testbed.untrusted.disk_changes`)
compares it with the disk from which the machine started, since the machine may have written anything.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from testbed import timeouts
from testbed.drivers.host import accounts, process
from testbed.drivers.host.content_store import remove_tree
from testbed.drivers.host.folders import within_namespaces
from testbed.drivers.host.private_files import OWNER, make_folder
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.drivers.snapshots.origin import base_of
from testbed.errors import InstrumentError
from testbed.plan.libvirt_xml.machine import backup_xml
from testbed.untrusted import bounded_json

_ANSWER = 16 * 2**20  # octets


@dataclass(frozen=True, slots=True)
class DiskChanges:
    """How a machine's disk differs from the one that it started from.

    Args:
        changed: by path, what is at each inode that is new or differs: type, mode, owner, and ``changed``, in
            seconds since 1970 by the machine's clock; of files also size and digest, of links ``to``.
        altered: paths of files of which the content differs although nothing has changed the inode.
        inodes: number of names on the disk.
        written: when the file system was last written out, as ``changed``.

    """

    changed: Mapping[str, Mapping[str, str | int]]
    altered: tuple[str, ...]
    inodes: int
    written: int


def read_changes(
    hypervisor: Hypervisor, workspace: Workspace, machine: str, domain: str, disk: str, key: str
) -> DiskChanges:
    """Return how a running machine's disk differs from the one that it started from.

    Args:
        hypervisor: libvirt that runs it, with folders of ours.
        workspace: folders of its lab.
        machine: its name.
        domain: name of its domain.
        disk: target of the disk, such as vda.
        key: for digests of files that not every account may read.

    Raises:
        InstrumentError: the disk cannot be read within bounds.
        ProvisioningError: libvirt refuses.

    """
    folder = workspace.machine(machine) / "view"
    remove_tree(*([folder] if folder.exists() else []))  # of a process that was killed
    workspace.make(folder)
    try:
        base = folder / "base.raw"
        _convert("qcow2", str(base_of(folder.parent / f"{disk}.qcow2")), base)
        copy = _copy(hypervisor, workspace, domain, disk, base)
        return _compared(machine, (base, copy), folder, accounts.reader(workspace.account), key)
    finally:
        remove_tree(folder)


def _copy(hypervisor: Hypervisor, workspace: Workspace, domain: str, disk: str, base: Path) -> Path:
    """Copy a disk as it is now to a raw file beside its base, which has its size; return the file's path."""
    offered, copy = base.with_name("offered"), base.with_name("disk.raw")
    make_folder(offered, OWNER)
    scratch, socket = offered / "scratch.qcow2", offered / "socket"
    _image("create", "-q", "-f", "qcow2", str(scratch), str(base.stat().st_size))
    for path in (offered, scratch):
        workspace.account.give(path)
    inside = [str(within_namespaces(path, workspace.folder)) for path in (socket, scratch)]
    with hypervisor.backup(domain, backup_xml(disk, *inside)):
        _convert("raw", f"nbd+unix:///{disk}?socket={inside[0]}", copy)
    return copy


def _convert(form: str, source: str, target: Path) -> None:
    _image("convert", "-f", form, "-O", "raw", source, str(target))


def _image(*words: str) -> None:
    tool, what = process.require("qemu-img", package="qemu-utils"), "a machine's disk cannot be read"
    process.run([tool, *words], what=what, timeout=timeouts.DISK, error=InstrumentError)


def _compared(name: str, disks: tuple[Path, Path], folder: Path, account: int, key: str) -> DiskChanges:
    empty = folder / "empty"
    make_folder(empty, OWNER)
    program = [sys.executable, "-I", "-B", "-m", "testbed.untrusted.disk_changes"]
    argv = [*process.as_root("--net", "--ipc", "--pid", "--fork", "--kill-child"), *program]
    what = f"the file system of {name} cannot be read"
    text = process.run_bounded(
        [*argv, *map(str, disks), str(empty), str(account)],
        what=what,
        timeout=timeouts.DISK,
        limit=_ANSWER,
        error=InstrumentError,
        stdin=key.encode(),
    )
    try:
        return _parsed(bounded_json.read(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        fact, remedy = f"{type(error).__name__}: {error}", "treat the machine as fallen, or rebuild it"
        raise InstrumentError(what, fact=fact, remedy=remedy) from error


def _parsed(found: dict[str, object]) -> DiskChanges:
    """Return the program's answer, of which every value is checked: a hostile disk may have taken it over."""
    changed, altered = found["changed"], found["altered"]
    if not isinstance(changed, dict) or not isinstance(altered, list):
        raise ValueError("it is of another form")
    return DiskChanges(
        {str(path): _inode(told) for path, told in changed.items()},
        tuple(map(str, altered)),
        bounded_json.whole(found["inodes"], 0, bounded_json.WHOLE),
        bounded_json.whole(found["written"], 0, bounded_json.WHOLE),
    )


def _inode(told: dict[str, object]) -> dict[str, str | int]:
    numbers: dict[str, str | int] = {
        name: bounded_json.whole(told[name], 0, bounded_json.WHOLE)
        for name in ("changed", "size")
        if name in told
    }
    if "changed" not in numbers:
        raise ValueError("an inode has no time")
    return {**{name: str(value) for name, value in told.items() if name not in numbers}, **numbers}
