"""Code in the kernel: what bpf(2) shows, with a kernel that answers as linux/bpf.h says."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from testbed.payload.inventory.base.collect import Records
from testbed.payload.inventory.host import bpf, kernel_code

DEVICE, SYSCTL, LSM = 15, 23, 29  # enum bpf_prog_type
PROGRAM, MAP, LINK = "program", "map", "link"


class FakeKernel:
    """Answers calls of bpf(2); descriptors are those of /dev/null."""

    def __init__(self, groups: dict[str, dict[int, tuple[int, ...]]] | None = None) -> None:
        self.programs = {
            7: (DEVICE, b"", "aa" * 8, (3,)),
            9: (SYSCTL, b"monitor", "bb" * 8, ()),
            12: (LSM, b"restrict", "cc" * 8, ()),
        }
        self.links = {2: (2, 12), 5: (3, 9)}
        self.entries = dict.fromkeys(
            (struct.pack("II", 232, 10), struct.pack("II", 2**32 - 1, 136)), b"\2\0\6\0"
        )
        self.groups = groups or {}
        self._open: dict[int, tuple[str, int]] = {}

    def __call__(self, command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
        first, second = struct.unpack_from("II", attributes)
        if command in (11, 31):
            numbers = sorted(self.programs if command == 11 else self.links)
            following = [number for number in numbers if number > first]
            if not following:
                raise OSError(errno.ENOENT, "")
            struct.pack_into("I", attributes, 4, following[0])
        elif command in (13, 14, 30):
            file = os.open(os.devnull, os.O_RDONLY)
            self._open[file] = ({13: PROGRAM, 14: MAP, 30: LINK}[command], first)
            return file
        elif command == 15:
            self._describe(*self._open[first], struct.unpack_from("Q", attributes, 8)[0])
        elif command == 16:
            name = Path(f"/proc/self/fd/{first}").readlink().name
            numbers = self.groups.get(name, {}).get(second, ())
            struct.pack_into("I", attributes, 12, 2)
            struct.pack_into("I", attributes, 24, len(numbers))
            _write(struct.unpack_from("Q", attributes, 16)[0], struct.pack(f"{len(numbers)}I", *numbers))
        elif command in (1, 4):
            key, to = struct.unpack_from("QQ", attributes, 8)
            keys = sorted(self.entries)
            if command == 1:
                _write(to, self.entries[ctypes.string_at(key, 8)])
            else:
                at = keys.index(ctypes.string_at(key, 8)) + 1 if key else 0
                if at == len(keys):
                    raise OSError(errno.ENOENT, "")
                _write(to, keys[at])
        return 0

    def _describe(self, kind: str, number: int, to: int) -> None:
        if kind == LINK:
            type_, program = self.links[number]
            _write(to, struct.pack("III", type_, number, program))
        elif kind == MAP:
            _write(to, struct.pack("IIII", 1, number, 8, 4))
        else:
            type_, name, tag, maps = self.programs[number]
            target = struct.unpack("Q", ctypes.string_at(to + 56, 8))[0]
            _write(to, struct.pack("II", type_, number) + bytes.fromhex(tag))
            _write(to + 52, struct.pack("I", len(maps)))
            _write(to + 64, name)
            if maps:
                _write(target, struct.pack(f"{len(maps)}I", *maps))


def _write(to: int, octets: bytes) -> None:
    ctypes.memmove(to, octets, len(octets))


def taken(records: Records) -> dict[str, Any]:
    found = [json.loads(line) for line in records.sorted()]
    return {item["key"]: item["value"] for item in found}


def recorded(root: Path, groups: dict[str, dict[int, tuple[int, ...]]]) -> dict[str, Any]:
    records = Records()
    kernel_code.programs(records, bpf.Kernel(FakeKernel(groups)), str(root))
    return taken(records)


def test_programs_are_where_they_are_attached_and_the_others_by_themselves(tmp_path: Path) -> None:
    guest = "machine.slice/machine-qemu\\x2d7\\x2dred.web.scope/libvirt"
    (tmp_path / guest / "emulator").mkdir(parents=True)
    found = recorded(tmp_path, {tmp_path.name: {18: (9,)}, "libvirt": {6: (7,)}})
    assert found == {
        "bpf at / sysctl": {"flags": "multi", "programs": [f"cgroup_sysctl monitor {'bb' * 8}"]},
        "bpf at /machine.slice/machine-qemu\\x2dN\\x2dred.web.scope/libvirt device": {
            "flags": "multi",
            "programs": [f"cgroup_device {'aa' * 8}"],
            "devices": ["10:232 02000600", "136:* 02000600"],
        },
        f"bpf lsm restrict {'cc' * 8}": {"number": 1},
        f"bpf link tracing of lsm restrict {'cc' * 8}": {"number": 1},
        f"bpf link cgroup of cgroup_sysctl monitor {'bb' * 8}": {"number": 1},
    }


def test_a_guest_without_a_filter_of_devices_is_a_record(tmp_path: Path) -> None:
    (tmp_path / "machine.slice/machine-qemu\\x2d7\\x2dred.web.scope/libvirt").mkdir(parents=True)
    found = recorded(tmp_path, {})
    assert found["bpf at /machine.slice/machine-qemu\\x2dN\\x2dred.web.scope/libvirt device"] == {
        "flags": "multi",
        "programs": [],
    }
    assert found[f"bpf cgroup_device {'aa' * 8}"] == {"number": 1}


def test_a_kernel_that_shows_nothing_is_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(bpf, "system_call", lambda: refused)
    records = Records()
    kernel_code.collect(records)
    assert ("unread", "kernel code bpf") in {(domain, key) for domain, key, _ in records.lines}


def test_lists_of_the_kernel_without_addresses_and_counters(tmp_path: Path) -> None:
    texts = {
        "kprobes": "ffffffff8a2  k  vfs_read+0x0    [DISABLED]\nffffffff8a3  r  vfs_read+0x0\n",
        "functions": "bpf_lsm_file_open (1) R   D   M \ttramp: ftrace_regs_caller\n\tdirect-->bpf_1+0x0\n",
        "lockdown": "none [integrity] confidentiality\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "patches/one").mkdir(parents=True)
    records = Records()
    kernel_code.state(
        records,
        {"lockdown": f"{tmp_path}/lockdown", "not there": f"{tmp_path}/none"},
        {
            "kernel probe": (f"{tmp_path}/kprobes", slice(1, 3)),
            "traced function": (f"{tmp_path}/functions", slice(0, 1)),
        },
        {"live patch": f"{tmp_path}/patches", "trace instance": f"{tmp_path}/none"},
    )
    assert taken(records) == {
        "lockdown": "none [integrity] confidentiality",
        "kernel probe k vfs_read+0x0": {"number": 1},
        "kernel probe r vfs_read+0x0": {"number": 1},
        "traced function bpf_lsm_file_open": {"number": 1},
        "live patch one": True,
    }


def test_a_list_that_is_too_long_is_unread(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("".join(f"event{number}\n" for number in range(401)))
    records = Records()
    kernel_code.state(records, {}, {"trace event": (f"{tmp_path}/list", slice(0, 1))}, {})
    assert sum(domain == "unread" for domain, _, _ in records.lines) == 1
