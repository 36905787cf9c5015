"""Code in the kernel beside its image and modules: programs of bpf(2), probes, patches; what forbids more.

Modules are recorded with the kernel's settings (`testbed.payload.inventory.host.kernel`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping

from testbed.payload.inventory.base.collect import Records, Unread, read
from testbed.payload.inventory.host import bpf
from testbed.payload.inventory.host.processes import NUMBERS

DOMAIN = "kernel code"
_GROUPS, _TRACES = "/sys/fs/cgroup", "/sys/kernel/tracing"
_TAINT = "/proc/sys/kernel/tainted"
_NO_TAINT = 1 << 9 | 1 << 14  # the kernel has warned, or an emulated processor waited: no foreign code
_STATE = {
    "lockdown": "/sys/kernel/security/lockdown",
    "signed modules only": "/sys/module/module/parameters/sig_enforce",
    "no new kernel": "/proc/sys/kernel/kexec_load_disabled",
    "new kernel": "/sys/kernel/kexec_loaded",
    "crash kernel": "/sys/kernel/kexec_crash_loaded",
    "tracer": f"{_TRACES}/current_tracer",
    "function filter": f"{_TRACES}/set_ftrace_filter",
}
# Files with one entry a line: number of the words that name it. What follows are addresses and counters.
_LISTS = {
    "traced function": (f"{_TRACES}/enabled_functions", slice(0, 1)),
    "trace event": (f"{_TRACES}/set_event", slice(0, 1)),
    "dynamic event": (f"{_TRACES}/dynamic_events", slice(0, None)),
    "probe of a program": (f"{_TRACES}/uprobe_events", slice(0, None)),
    "kernel probe": ("/sys/kernel/debug/kprobes/list", slice(1, 3)),
}
_FOLDERS = {"trace instance": f"{_TRACES}/instances", "live patch": "/sys/kernel/livepatch"}
_Attachment = tuple[str, str, str, tuple[int, ...]]  # control group, place, flags, numbers of programs
_LINES = 400  # of a list
_DEPTH = 12
_FLAGS = {0: "alone", 1: "override", 2: "multi"}  # BPF_F_ALLOW_*, linux/bpf.h
_OF_GUESTS = "/machine.slice/"  # libvirt has a program for each guest in the group "libvirt"
_DEVICE = 6  # BPF_CGROUP_DEVICE, linux/bpf.h


def collect(records: Records) -> None:
    """Record all of it."""
    state(records)
    tainted = _text(records, _TAINT)
    if tainted is not None:
        records.add(DOMAIN, "taint", int(tainted) & ~_NO_TAINT)
    try:
        programs(records, bpf.Kernel())
    except OSError as error:
        records.unread(DOMAIN, "bpf", error.strerror)


def state(
    records: Records,
    files: Mapping[str, str] = _STATE,
    lists: Mapping[str, tuple[str, slice]] = _LISTS,
    folders: Mapping[str, str] = _FOLDERS,
) -> None:
    """Record what forbids new code, and probes, traces and patches; without a file there is none."""
    for name, path in files.items():
        text = _text(records, path)
        if text is not None:
            records.add(DOMAIN, name, text.strip())
    for name, (path, words) in lists.items():
        lines = (_text(records, path) or "").splitlines()
        found = Counter(" ".join(line.split()[words]) for line in lines if line[:1].strip("\t"))
        for entry, number in sorted(found.items())[:_LINES]:
            records.add(DOMAIN, f"{name} {entry}", {"number": number})
        if len(found) > _LINES:
            records.unread(DOMAIN, path, f"it has {len(found)} entries")
    for name, path in folders.items():
        try:
            for entry in sorted(os.listdir(path))[:_LINES]:
                records.add(DOMAIN, f"{name} {entry}")
        except FileNotFoundError:
            continue
        except OSError as error:
            records.unread(DOMAIN, path, error.strerror)


def _text(records: Records, path: str) -> str | None:
    """Return the text of a file; None if there is none."""
    if not os.path.exists(path):
        return None
    try:
        return read(path)
    except Unread as error:
        records.unread(DOMAIN, path, error)
        return None


def programs(records: Records, kernel: bpf.Kernel, root: str = _GROUPS) -> None:
    """Record programs by the control group that they are attached to, the others by themselves, and links.

    Raises:
        OSError: the kernel does not show them.
    """
    loaded = kernel.programs()
    placed = set()
    for group, place, flags, numbers in _attached(kernel, {item.type for item in loaded.values()}, root):
        placed |= {*numbers}
        here = [loaded[number] for number in numbers if number in loaded]
        told: dict[str, object] = {"flags": flags, "programs": [str(program) for program in here]}
        maps = [number for program in here if program.type == "cgroup_device" for number in program.maps]
        if maps:
            told["devices"] = [entry for number in maps for entry in kernel.devices(number)]
        records.add(DOMAIN, f"bpf at {group} {place}", told)
    for program, number in _counted(str(item) for number, item in loaded.items() if number not in placed):
        records.add(DOMAIN, f"bpf {program}", {"number": number})
    links = (f"{type_} of {loaded.get(program, 'no program')}" for type_, program in kernel.links())
    for link, number in _counted(links):
        records.add(DOMAIN, f"bpf link {link}", {"number": number})


def _counted(words: Iterator[str]) -> list[tuple[str, int]]:
    return sorted(Counter(words).items())


def _attached(kernel: bpf.Kernel, types: set[str], root: str) -> Iterator[_Attachment]:
    """Return all attachments; a guest's filter of devices is one in any case."""
    places = {
        number: name for type_ in sorted(types) for number, name in bpf.PLACES.get(type_, {}).items()
    } | {_DEVICE: "device"}
    for path, folders, _ in os.walk(root):
        if path.count("/") > _DEPTH:
            folders.clear()
        try:
            group = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # it has gone meanwhile
        try:
            name = NUMBERS.sub("N", path.removeprefix(root) or "/")
            for number, place in places.items():
                flags, programs = kernel.attached(group, number)
                of_guest = number == _DEVICE and name.startswith(_OF_GUESTS) and name.endswith("/libvirt")
                if programs or of_guest:
                    yield name, place, _FLAGS.get(flags, str(flags)), programs
        finally:
            os.close(group)
