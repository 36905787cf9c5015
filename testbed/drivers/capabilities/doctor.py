"""What the outer machine lacks: every finding in one pass, each with what to do about it."""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.drivers.host import memory, process
from testbed.drivers.host.accounts import closed_way, privileged
from testbed.drivers.host.ownership import distrust, remedy_of_distrust
from testbed.drivers.hypervisor.connection import library_version
from testbed.errors import MachineError
from testbed.topology_file.schema import GIB, format_size

_PROGRAMS = (
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("zstd", "zstd"),
    ("unshare", "util-linux"),
    ("ip", "iproute2"),
    ("ssh", "openssh-client"),
)
_QEMU = (7, 2)
_LIBVIRT = 9_000_000  # as libvirt counts: 9.0.0
_DISK = 12 * GIB
_MEMORY = 6 * GIB
_TUN = Path("/dev/net/tun")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    name: str
    ok: bool
    fact: str
    remedy: str = ""


def examine(cache: Path, state: Path) -> list[Finding]:
    """Look at everything that the tool needs of this machine."""
    looks: list[Callable[[], Finding]] = [_qemu, _libvirt, _driver, _account, _tun, _namespaces, _memory]
    trust = [_trust(cache, shared=True), _trust(state, shared=False)]
    space = [_space(folder) for folder in (cache, state)]
    return [*_programs(), *(look() for look in looks), *trust, *_ways(cache, state), *space, _kvm()]


def require(cache: Path, state: Path) -> None:
    """Refuse to start on a machine that cannot do it.

    Raises:
        MachineError: it lacks something; the error names everything at once.

    """
    missing = [finding for finding in examine(cache, state) if not finding.ok]
    if missing:
        raise MachineError(
            "this machine cannot run a lab yet",
            fact="; ".join(f"{finding.name}: {finding.fact}" for finding in missing),
            remedy="; ".join(dict.fromkeys(finding.remedy for finding in missing)),
        )


def _programs() -> Iterator[Finding]:
    for program, package in _PROGRAMS:
        found = process.find(program)
        yield Finding(f"program {program}", bool(found), found or "missing", f"apt install {package}")
    if os.geteuid() != 0:
        found = shutil.which("newuidmap")
        yield Finding("program newuidmap", bool(found), found or "missing", "apt install uidmap")


def _qemu() -> Finding:
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        return Finding("QEMU version", False, "QEMU is missing", "apt install qemu-system-x86")
    try:
        text = process.run([path, "--version"], what="cannot run QEMU", timeout=30, error=MachineError)
    except MachineError as error:
        return Finding("QEMU version", False, error.fact[:300], "install QEMU 7.2 or later anew")
    match = re.search(r"version (\d+)\.(\d+)", text)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    return Finding(
        "QEMU version", version >= _QEMU, (text.splitlines() or ["no answer"])[0], "install QEMU 7.2 or later"
    )


def _libvirt() -> Finding:
    number = library_version()
    told = f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
    return Finding("libvirt version", number >= _LIBVIRT, told, "install libvirt 9.0 or later")


def _driver() -> Finding:
    found = sorted(Path("/usr/lib").glob("*/libvirt/connection-driver/libvirt_driver_qemu.so"))
    return Finding(
        "libvirt's QEMU driver", bool(found), str(found[0]) if found else "missing",
        "apt install libvirt-daemon libvirt-daemon-driver-qemu",
    )  # fmt: skip


def _account() -> Finding:
    try:
        fact, ok = f"uid {pwd.getpwnam('libvirt-qemu').pw_uid}", True
    except KeyError:
        fact, ok = "missing", False
    remedy = (
        "useradd --system --user-group --home-dir /var/lib/libvirt --shell /usr/sbin/nologin libvirt-qemu"
    )
    return Finding("account libvirt-qemu", ok, fact, remedy)


def _tun() -> Finding:
    name = f"device {_TUN}"
    if not _TUN.exists():
        return Finding(name, False, "missing", "modprobe tun")
    mode = f"mode {_TUN.stat().st_mode & 0o777:04o}"
    ok = os.access(_TUN, os.R_OK | os.W_OK)
    return Finding(name, ok, mode, f"sudo chmod 0666 {_TUN} (the usual udev rule gives it that mode)")


def _namespaces() -> Finding:
    unshare = shutil.which("unshare")
    if unshare is None:
        return Finding("namespaces", False, "unshare is missing", "apt install util-linux")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]
    argv = [unshare, *user, "--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    try:
        process.run(argv, what="namespaces are not permitted", timeout=20, error=MachineError)
    except MachineError as error:
        remedy = (
            "permit user namespaces (sysctl kernel.unprivileged_userns_clone=1, on Ubuntu also "
            "kernel.apparmor_restrict_unprivileged_userns=0) and give the user subordinate ids "
            "(apt install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER)"
        )
        return Finding("namespaces", False, error.fact[:300], remedy)
    return Finding("namespaces", True, "permitted")


def _memory() -> Finding:
    total = memory.total()
    fact = f"{total // 2**20} MiB"
    return Finding(
        "memory",
        total >= _MEMORY,
        fact,
        f"give the machine, or the control group this runs in, {format_size(_MEMORY)}",
    )


def _trust(folder: Path, *, shared: bool) -> Finding:
    fact = distrust(folder, shared=shared)
    return Finding(
        f"folder {folder}", not fact, fact or "its owner alone writes into it", remedy_of_distrust(folder)
    )


def _ways(*folders: Path) -> Iterator[Finding]:
    """Emulators open their files by path, under accounts of their own; without root they can do without."""
    for folder in folders:
        closed, root = closed_way(folder), privileged()
        fact = closed or "accounts of emulators may pass"
        told = fact if root or not closed else f"{closed}: emulators of labs run as you"
        remedy = "let others pass (chmod o+x), or name another folder"
        yield Finding(f"way to {folder}", not (closed and root), told, remedy)


def _space(folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    needed = 2 * GIB if any(folder.glob("*/manifest.json")) else _DISK
    remedy = (
        f"free {format_size(needed)}, or set TESTBED_CACHE_DIR or TESTBED_STATE_DIR to a folder with space"
    )
    return Finding(f"space in {folder}", free >= needed, f"{free // 2**20} MiB free", remedy)


def _kvm() -> Finding:
    """KVM is not needed; whether it works is for the canary to say (D7)."""
    there = os.access("/dev/kvm", os.R_OK | os.W_OK)
    fact = (
        "/dev/kvm opens; `up` boots a canary to see whether it works"
        if there
        else "no /dev/kvm: nodes are emulated"
    )
    return Finding("KVM", True, fact)
