"""Examines the outer machine: all findings in one pass, each with its remedy."""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed import timeouts
from testbed.drivers.host import memory, process
from testbed.drivers.host.accounts import closed_way, privileged
from testbed.drivers.host.folders import PRIVATE, SOCKET, hidden, longest_lab
from testbed.drivers.host.ownership import distrust, remedy_of_distrust
from testbed.drivers.hypervisor.connection import library_version
from testbed.errors import MachineError
from testbed.topology_file.quantities import GIB, format_size

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
_LAB = 20  # characters of the longest name that a topology may give a lab
_TOOL = Path(__file__).parents[2]
_ROOT = Path("/")
_SYS_ADMIN = 21  # CAP_SYS_ADMIN's bit
_SYSCTLS = (  # name, value that forbids, value that permits
    ("user.max_user_namespaces", "0", "15000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),  # Debian
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),  # Ubuntu
)
_ANY_CAUSE = (
    "permit user namespaces (sysctl kernel.unprivileged_userns_clone=1, on Ubuntu also "
    "kernel.apparmor_restrict_unprivileged_userns=0) and give the user subordinate ids "
    "(apt install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER)"
)
_TUN = Path("/dev/net/tun")


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one examination."""

    name: str
    ok: bool
    fact: str
    remedy: str = ""


def examine(cache: Path, state: Path) -> list[Finding]:
    """Examine all requirements of the tool on this machine."""
    looks: list[Callable[[], Finding]] = [_qemu, _libvirt, _driver, _account, _tun, _namespaces, _memory]
    trust = [_trust(cache, shared=True), _trust(state, shared=False)]
    space = [_space(folder) for folder in (cache, state)]
    places = [_place("images", cache), _place("labs", state), _place("the tool", _TOOL), _room(state)]
    writing = [_writing(cache, baked=_baked(cache)), _writing(state, baked=False)]
    return [
        *_programs(),
        *(look() for look in looks),
        *places,
        *trust,
        *writing,
        *_ways(cache, state),
        *space,
        _kvm(),
    ]


def require(cache: Path, state: Path) -> None:
    """Refuse a machine that cannot run a lab.

    Raises:
        MachineError: a requirement is not met; the error names all of these.

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
        text = process.run(
            [path, "--version"], what="cannot run QEMU", timeout=timeouts.VERSION, error=MachineError
        )
    except MachineError as error:
        return Finding("QEMU version", False, error.fact[:300], "install QEMU 7.2 or later again")
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
        process.run(
            argv, what="namespaces are not permitted", timeout=timeouts.NAMESPACES_TRIED, error=MachineError
        )
    except MachineError as error:
        return Finding("namespaces", False, error.fact[:300], "; ".join(_remedies(error.fact)) or _ANY_CAUSE)
    return Finding("namespaces", True, "permitted")


def _remedies(fact: str) -> Iterator[str]:
    """Yield the remedy of each cause that is seen here, and of no other."""
    if os.geteuid() == 0:
        if not _capable():
            yield (
                "this root has no CAP_SYS_ADMIN, as in a container: start the container with --privileged, "
                "or run the tool on the host or in a virtual machine"
            )
    else:
        yield from _remedies_of_user()
    if _setting(_ROOT / "sys/fs/selinux/enforce") == "1":
        yield (
            "SELinux is enforcing: `ausearch -m AVC -ts recent` shows whether it refused, and which rule "
            "would permit it"
        )
    if "mount /proc" in fact or "/proc failed" in fact:
        yield (
            "parts of /proc are masked: give the container all of it "
            "(Docker: --security-opt systempaths=unconfined; Podman: unmask=ALL)"
        )


def _remedies_of_user() -> Iterator[str]:
    for name, closed, opened in _SYSCTLS:
        if _setting(_ROOT / "proc/sys" / name.replace(".", "/")) == closed:
            yield f"sudo sysctl {name}={opened}"
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    for kind in ("uid", "gid"):
        rows = _setting(_ROOT / f"etc/sub{kind}").splitlines()
        if not any(row.split(":")[0] in (user, str(os.geteuid())) for row in rows):
            yield f"give {user} subordinate ids: sudo usermod --add-sub{kind}s 100000-165535 {user}"


def _capable() -> bool:
    """Return whether we have CAP_SYS_ADMIN."""
    rows = _setting(_ROOT / "proc/self/status").splitlines()
    return any(row.startswith("CapEff:") and int(row.split()[1], 16) >> _SYS_ADMIN & 1 for row in rows)


def _setting(file: Path) -> str:
    """Return the text of a file of the kernel or the system; "" if there is none."""
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""


def _memory() -> Finding:
    total, file = memory.bound()
    fact = f"{total // 2**20} MiB" + (f", by the limit of a control group: {file}" if file else "")
    if file:
        version = 1 if file.name == "memory.limit_in_bytes" else 2
        remedy = (
            f"raise that limit of the container or service to {format_size(_MEMORY)} "
            f"(control groups of version {version})"
        )
    else:
        remedy = f"give the machine {format_size(_MEMORY)}"
    return Finding("memory", total >= _MEMORY, fact, remedy)


def _trust(folder: Path, *, shared: bool) -> Finding:
    fact = distrust(folder, shared=shared)
    return Finding(
        f"folder {folder}", not fact, fact or "its owner alone writes into it", remedy_of_distrust(folder)
    )


def _ways(*folders: Path) -> Iterator[Finding]:
    """Yield for each folder whether accounts of emulators can reach it.

    Emulators open their files by path, under accounts of their own. Without root this is no error: emulators
    then run as the user.
    """
    for folder in folders:
        closed, root = closed_way(folder), privileged()
        fact = closed or "accounts of emulators may pass"
        told = fact if root or not closed else f"{closed}: emulators of labs run as you"
        remedy = "let others pass (chmod o+x), or name another folder"
        yield Finding(f"way to {folder}", not (closed and root), told, remedy)


def _baked(cache: Path) -> bool:
    return any(cache.glob("*/manifest.json"))


def _there(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110 - Path.exists may fail


def _place(what: str, folder: Path) -> Finding:
    """Look whether a lab's namespaces hide a folder.

    Emulators and the first process of a lab open files by path, and have a /run and /dev of their own.
    """
    above = hidden(folder)
    fact = f"{folder}: a lab has {above} of its own, which hides it" if above else str(folder)
    remedy = f"name a folder that is not below {', '.join(PRIVATE)} (TESTBED_STATE_DIR, TESTBED_CACHE_DIR)"
    return Finding(f"place of {what}", not above, fact, remedy)


def _room(state: Path) -> Finding:
    most = longest_lab(state)
    if most <= 0:
        fact = f"sockets of any lab below {state} would have paths of more than {SOCKET} octets"
    else:
        fact = f"{len(os.fsencode(state))} octets" + (
            f": names of labs have at most {most} characters there" if most < _LAB else ""
        )
    return Finding(
        "length of the state folder's path",
        most > 0,
        fact,
        "name one with a shorter path (TESTBED_STATE_DIR)",
    )


def _writing(folder: Path, *, baked: bool) -> Finding:
    """Look whether we may write into a folder, or make it.

    Root is refused as well where a file system is read-only.
    """
    there = _there(folder)
    if not there.is_dir():
        return Finding(
            f"writing into {folder}",
            False,
            f"{there} is not a folder",
            "name another folder, or move that file away",
        )
    ok = os.access(there, os.W_OK | os.X_OK)
    fact = (
        "possible"
        if ok
        else f"{there} is read-only"
        if os.statvfs(there).f_flag & os.ST_RDONLY
        else f"{there} is not writable for us"
    )
    if not ok and baked:
        fact, ok = f"{fact}; its images are baked, and are used as they are", True
    remedy = (
        f"let uid {os.geteuid()} write into {there}, or name another folder "
        "(TESTBED_STATE_DIR, TESTBED_CACHE_DIR)"
    )
    return Finding(f"writing into {folder}", ok, fact, remedy)


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(_there(folder)).free
    needed = 2 * GIB if _baked(folder) else _DISK
    remedy = (
        f"free {format_size(needed)}, or set TESTBED_CACHE_DIR or TESTBED_STATE_DIR to a folder with space"
    )
    return Finding(f"space in {folder}", free >= needed, f"{free // 2**20} MiB free", remedy)


def _kvm() -> Finding:
    """Report whether /dev/kvm opens; never an error, since the canary decides if KVM works (D7)."""
    there = os.access("/dev/kvm", os.R_OK | os.W_OK)
    fact = (
        "/dev/kvm opens; `up` boots a canary to see whether it works"
        if there
        else "no /dev/kvm: nodes are emulated"
    )
    return Finding("KVM", True, fact)
