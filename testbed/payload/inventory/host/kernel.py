"""The kernel: its settings, modules, command line, devices, and what can be loaded into it."""

from __future__ import annotations

import os
import re
import time

from testbed.payload.inventory.base.collect import Records, Unread, read, setting
from testbed.payload.inventory.host.processes import NUMBERS

_SECRETS = ("tcp_fastopen_key", "stable_secret")
_ROUTES = ("route/flush",)
_FILES = {
    "command line": "/proc/cmdline",
    "security modules": "/sys/kernel/security/lsm",
    "swap": "/proc/swaps",
    "version": "/proc/version",
    "huge pages": "/sys/kernel/mm/transparent_hugepage/enabled",
    "clock source": "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "integrity policy": "/sys/kernel/security/ima/policy",
    "hibernation": "/sys/power/resume",
    "console": "/proc/consoles",
    "core dumps": "/proc/sys/kernel/core_pattern",
}
_KEYS = re.compile(r"^\w+ (\S+)\s+\d+\s+\S+ (\w+)\s+(-?\d+)\s+(-?\d+) (\S+)\s+(.*)$")
_LIMITS = (
    "memory.max",
    "memory.high",
    "memory.min",
    "memory.low",
    "memory.swap.max",
    "cpu.max",
    "cpu.weight",
    "pids.max",
    "io.max",
    "io.weight",
    "cpuset.cpus",
    "cgroup.freeze",
    "cgroup.type",
    "cgroup.subtree_control",
)
# Reports of an error in the kernel, at their beginning in its log: where it was found. A soft lockup is none:
# an emulated processor that waits for its turn causes it.
_REPORT = re.compile(
    r"WARNING: CPU: \d+ PID: \d+ at (?P<where>\S+) (?P<function>[^\s+]+)"
    r"|kernel BUG at (?P<bug>\S+?)!"
    r"|(?P<fault>BUG: (?!soft|workqueue)[a-zA-Z' -]+|Oops: [a-zA-Z' -]+|general protection fault)"
)
_LOG = 32_768  # records of the kernel's log that are read
_LOG_SECONDS = 10.0  # that reading them may take
_DEPTH = 12
_COUNTERS = ("full_scans", "general_profit", "pages_", "stable_", "ksm_")


def collect(records: Records) -> None:
    """Record the kernel's state outside of network namespaces."""
    for name, path in _FILES.items():
        _file(records, name, path)
    for folder in (
        "/sys/kernel/mm/ksm",
        "/sys/devices/system/cpu/vulnerabilities",
        *_formats(),
    ):
        for name in _names(folder):
            if name != "register" and not (folder.endswith("ksm") and name.startswith(_COUNTERS)):
                _file(records, f"{folder} {name}", f"{folder}/{name}")
    for folder in _names("/proc/sys"):
        if folder != "net":
            settings(records, f"/proc/sys/{folder}", "first")
    _modules(records)
    reports(records)
    _devices(records)
    _keys(records)
    control_groups(records)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _formats() -> list[str]:
    """Return the folder of formats for interpreters, if it is mounted; a look at it mounts it."""
    mounted = any(" - binfmt_misc " in line for line in read("/proc/self/mountinfo", 2**22).splitlines())
    return ["/proc/sys/fs/binfmt_misc"] if mounted else []


def _file(records: Records, name: str, path: str) -> None:
    try:
        records.add("kernel", name, read(path).strip())
    except Unread as error:
        if os.path.exists(path):
            records.unread("kernel", path, error)


def settings(records: Records, folder: str, place: str) -> None:
    """Record a folder of /proc/sys whole, but for settings that are secrets."""
    for path, folders, files in os.walk(folder):
        if path == "/proc/sys/fs":
            folders[:] = [name for name in folders if name != "binfmt_misc"]  # to look there would mount it
        for name in files:
            own = f"{path}/{name}"
            if name in _SECRETS or own.endswith(_ROUTES):
                continue
            try:
                records.add(
                    "setting", f"{place} {own.removeprefix('/proc/sys/')}", " ".join(setting(own).split())
                )
            except Unread as error:
                records.add("setting", f"{place} {own.removeprefix('/proc/sys/')}", f"unread: {error}")


def _modules(records: Records) -> None:
    for line in read("/proc/modules", 2**20).splitlines() if os.path.exists("/proc/modules") else []:
        words = line.split()
        taints = [word for word in words[6:] if word.startswith("(")]
        records.add("module", words[0], {"state": words[4], "taints": taints})
    for name in _names("/sys/module"):
        for parameter in _names(f"/sys/module/{name}/parameters"):
            try:
                value = setting(f"/sys/module/{name}/parameters/{parameter}").strip()
            except Unread as error:
                value = f"unread: {error}"
            records.add("module parameter", f"{name} {parameter}", value)


def reports(records: Records, log: str = "/dev/kmsg") -> None:
    """Record where the kernel found errors in itself since its start; each place once.

    Reading does not change the log: each reader has a position of its own.
    """
    places = set()
    try:
        opened = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        records.unread("kernel report", log, error.strerror)
        return
    end = time.monotonic() + _LOG_SECONDS
    try:
        for _ in range(_LOG):
            try:
                line = os.read(opened, 8192)
            except BrokenPipeError:  # newer records have taken the place of the next one
                continue
            except BlockingIOError:
                break
            if not line or time.monotonic() > end:
                break
            found = _REPORT.match(line.partition(b";")[2].decode(errors="replace"))
            if found:
                places.add(" ".join(filter(None, found.groups())).strip())
    except OSError as error:
        records.unread("kernel report", log, error.strerror)
    finally:
        os.close(opened)
    for place in sorted(places):
        records.add("kernel report", place)


def _devices(records: Records) -> None:
    for bus in ("pci", "usb", "virtio"):
        for name in _names(f"/sys/bus/{bus}/devices"):
            folder = f"/sys/bus/{bus}/devices/{name}"
            told = {
                key: _line(f"{folder}/{key}")
                for key in ("vendor", "device", "class", "driver_override", "idVendor", "idProduct")
            }
            driver = (
                os.path.basename(os.path.realpath(f"{folder}/driver"))
                if os.path.exists(f"{folder}/driver")
                else ""
            )
            records.add(
                "device",
                f"{bus} {name}",
                {**{key: value for key, value in told.items() if value}, "driver": driver},
            )
    for name in _names("/sys/block"):
        folder = f"/sys/block/{name}"
        told = {
            key: _line(f"{folder}/{key}") for key in ("ro", "size", "loop/backing_file", "dm/name", "dm/uuid")
        }
        below = sorted(_names(f"{folder}/slaves"))
        if told["size"] != "0":
            records.add(
                "block device", name, {**{key: value for key, value in told.items() if value}, "upon": below}
            )


def _line(path: str) -> str:
    try:
        return setting(path).strip()
    except Unread:
        return ""


def _keys(records: Records) -> None:
    """Record the kernel's keyrings and public keys by type and description."""
    for line in read("/proc/keys").splitlines() if os.path.exists("/proc/keys") else []:
        words = line.split(None, 8)
        if len(words) > 8 and words[7] in ("keyring", "asymmetri", "asymmetric"):
            name = re.sub(r"_(?:ses|uid_ses|uid|tid|pid)\b\.?\S*", "_N", words[8])
            if not name.startswith("_"):
                records.add("kernel key", f"{words[7]} {name}")


def control_groups(records: Records, root: str = "/sys/fs/cgroup") -> None:
    """Record the limits of every control group that are not the default."""
    for path, folders, files in os.walk(root):
        if path.count("/") > _DEPTH:
            folders.clear()
        told = {name: _line(f"{path}/{name}") for name in _LIMITS if name in files}
        told = {
            name: value
            for name, value in told.items()
            if value not in ("", "max", "0", "100", "default 100", "max 100000", "domain")
        }
        if told:
            records.add("control group", NUMBERS.sub("N", path.removeprefix(root) or "/"), told)
