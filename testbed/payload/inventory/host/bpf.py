"""Programs that were loaded into the kernel through bpf(2), and where they are attached.

The kernel numbers programs, links and maps; root walks over the numbers (bpf(2), linux/bpf.h). A program's
tag is the kernel's own digest of its instructions.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Call = Callable[[int, "ctypes.Array[ctypes.c_char]"], int]

_NUMBERS = {"x86_64": 321, "aarch64": 280}  # of the system call
_ATTRIBUTES = 144  # octets of union bpf_attr that are handed over
_MOST = 4096  # objects of a kind that are read
_ENTRIES = 256  # entries of a map that are read
_LOOKUP, _NEXT_KEY, _PROGRAM, _MAP, _INFO, _QUERY = 1, 4, 13, 14, 15, 16
_NEXT_PROGRAM, _LINK, _NEXT_LINK = 11, 30, 31
_PROGRAM_INFO, _MAP_INFO, _LINK_INFO = 232, 88, 64  # octets
_MAPS, _NAME, _TAG = 52, 64, 8  # offsets in struct bpf_prog_info
_AT_ONCE = 64  # programs at one place, and maps of one program
_TYPES = (
    "unspecified", "socket filter", "kprobe", "sched_cls", "sched_act", "tracepoint", "xdp", "perf_event",
    "cgroup_skb", "cgroup_sock", "lwt_in", "lwt_out", "lwt_xmit", "sock_ops", "sk_skb", "cgroup_device",
    "sk_msg", "raw_tracepoint", "cgroup_sock_addr", "lwt_seg6local", "lirc_mode2", "sk_reuseport",
    "flow_dissector", "cgroup_sysctl", "raw_tracepoint_writable", "cgroup_sockopt", "tracing", "struct_ops",
    "ext", "lsm", "sk_lookup", "syscall", "netfilter",
)  # fmt: skip
_LINKS = (
    "unspecified", "raw_tracepoint", "tracing", "cgroup", "iter", "netns", "xdp", "perf_event",
    "kprobe_multi", "struct_ops", "netfilter", "tcx", "uprobe_multi", "netkit", "sockmap",
)  # fmt: skip
# Where programs of a type are attached to control groups: enum bpf_attach_type.
PLACES: dict[str, dict[int, str]] = {
    "cgroup_skb": {0: "ingress", 1: "egress"},
    "cgroup_sock": {2: "sock_create", 12: "post_bind4", 13: "post_bind6", 34: "sock_release"},
    "sock_ops": {3: "sock_ops"},
    "cgroup_device": {6: "device"},
    "cgroup_sock_addr": {
        8: "bind4", 9: "bind6", 10: "connect4", 11: "connect6", 14: "sendmsg4", 15: "sendmsg6",
        19: "recvmsg4", 20: "recvmsg6", 29: "getpeername4", 30: "getpeername6", 31: "getsockname4",
        32: "getsockname6", 49: "connect_unix", 50: "sendmsg_unix", 51: "recvmsg_unix",
        52: "getpeername_unix", 53: "getsockname_unix",
    },
    "cgroup_sysctl": {18: "sysctl"},
    "cgroup_sockopt": {21: "getsockopt", 22: "setsockopt"},
}  # fmt: skip
_DEVICES = struct.Struct("II")  # minor and major number: key of the map of a device program of libvirt
_ALL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Program:
    """A program in the kernel.

    Args:
        tag: the kernel's digest of its instructions (hexadecimal).
        maps: numbers of its maps.

    """

    type: str
    name: str
    tag: str
    maps: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join(filter(None, (self.type, self.name, self.tag)))


def system_call() -> Call:
    """Return the system call of this machine.

    Raises:
        OSError: nothing is known about the machine's processor.
    """
    number = _NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"no number of bpf(2) is known for {os.uname().machine}")
    libc = ctypes.CDLL(None, use_errno=True)

    def call(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
        result = int(libc.syscall(number, command, attributes, len(attributes)))
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    return call


class Kernel:
    """Objects of the kernel that bpf(2) shows; each method raises `OSError` if the kernel refuses it."""

    def __init__(self, call: Call | None = None) -> None:
        self._call = call or system_call()

    def programs(self) -> dict[int, Program]:
        """Return all programs that are loaded, by number."""
        found = {}
        for number in self._numbers(_NEXT_PROGRAM):
            maps = ctypes.create_string_buffer(4 * _AT_ONCE)
            told = self._told(_PROGRAM, number, _PROGRAM_INFO, maps)
            if told is not None:
                (type_,), (count,) = struct.unpack_from("I", told), struct.unpack_from("I", told, _MAPS)
                found[number] = Program(
                    _word(_TYPES, type_),
                    told[_NAME : _NAME + 16].partition(b"\0")[0].decode("ascii", "backslashreplace"),
                    told[_TAG : _TAG + 8].hex(),
                    struct.unpack_from(f"{min(count, _AT_ONCE)}I", maps.raw),
                )
        return found

    def links(self) -> list[tuple[str, int]]:
        """Return type and program of all links; a program is attached as long as its link exists."""
        found = []
        for number in self._numbers(_NEXT_LINK):
            told = self._told(_LINK, number, _LINK_INFO)
            if told is not None:
                type_, _, program = struct.unpack_from("III", told)
                found.append((_word(_LINKS, type_), program))
        return found

    def attached(self, folder: int, place: int) -> tuple[int, tuple[int, ...]]:
        """Return how programs are attached to a control group (flags), and their numbers in order.

        Args:
            folder: descriptor of the control group.
            place: number of the type of attachment.
        """
        numbers = ctypes.create_string_buffer(4 * _AT_ONCE)
        told = self._ask(
            _QUERY, struct.pack("IIIIQI", folder, place, 0, 0, ctypes.addressof(numbers), _AT_ONCE)
        )[1]
        (flags,), (count,) = struct.unpack_from("I", told, 12), struct.unpack_from("I", told, 24)
        return flags, struct.unpack_from(f"{min(count, _AT_ONCE)}I", numbers.raw)

    def devices(self, number: int) -> list[str]:
        """Return the entries of a map that names devices: major and minor number, and the value (octets)."""
        told = self._told(_MAP, number, _MAP_INFO)
        if told is None:
            return []
        keys, values = struct.unpack_from("II", told, 8)
        if keys != _DEVICES.size:
            return [f"a map with keys of {keys} octets"]
        file = self._open(_MAP, number)
        try:
            return sorted(self._entries(file, values))
        finally:
            os.close(file)

    def _entries(self, file: int, size: int) -> Iterator[str]:
        key, value = ctypes.create_string_buffer(_DEVICES.size), ctypes.create_string_buffer(size)
        last = 0
        for _ in range(_ENTRIES):
            try:
                self._ask(_NEXT_KEY, struct.pack("IIQQ", file, 0, last, ctypes.addressof(key)))
                last = ctypes.addressof(key)
                self._ask(_LOOKUP, struct.pack("IIQQ", file, 0, last, ctypes.addressof(value)))
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            minor, major = _DEVICES.unpack(key.raw)
            yield f"{major}:{'*' if minor == _ALL else minor} {value.raw.hex()}"
        yield "and more"

    def _numbers(self, command: int) -> Iterator[int]:
        number = 0
        for _ in range(_MOST):
            try:
                number = struct.unpack_from("I", self._ask(command, struct.pack("II", number, 0))[1], 4)[0]
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            yield number
        raise OSError(errno.E2BIG, f"there are more than {_MOST}")

    def _open(self, command: int, number: int) -> int:
        return self._ask(command, struct.pack("III", number, 0, 0))[0]

    def _told(
        self, command: int, number: int, size: int, maps: ctypes.Array[ctypes.c_char] | None = None
    ) -> bytes | None:
        """Return what the kernel says about an object, or None if it has gone meanwhile."""
        try:
            file = self._open(command, number)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        try:
            told = ctypes.create_string_buffer(size)
            if maps is not None:
                struct.pack_into("I", told, _MAPS, _AT_ONCE)
                struct.pack_into("Q", told, _MAPS + 4, ctypes.addressof(maps))
            self._ask(_INFO, struct.pack("IIQ", file, size, ctypes.addressof(told)))
            return told.raw
        finally:
            os.close(file)

    def _ask(self, command: int, attributes: bytes) -> tuple[int, bytes]:
        buffer = ctypes.create_string_buffer(attributes, _ATTRIBUTES)
        return self._call(command, buffer), buffer.raw


def _word(words: tuple[str, ...], number: int) -> str:
    return words[number] if number < len(words) else str(number)
