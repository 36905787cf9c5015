"""Breaches by programs that bpf(2) loads into a machine's kernel, and attaches to control groups."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from checks.support.breaches import shell_breach
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach

# Commands, structures and numbers of linux/bpf.h: a program that allows every connection (r0 = 1; exit).
_BPF = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def ask(command, attributes):
    text = ctypes.create_string_buffer(attributes, 144)
    result = libc.syscall({"x86_64": 321, "aarch64": 280}[os.uname().machine], command, text, 144)
    if result < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return result, text.raw
def at(text):
    return ctypes.addressof(text)
def attached(place):
    numbers = ctypes.create_string_buffer(256)
    found = ask(16, struct.pack("IIIIQI", group, place, 0, 0, at(numbers), 64))[1]
    found = struct.unpack_from("%dI" % struct.unpack_from("I", found, 24), numbers)
    return [ask(13, struct.pack("III", number, 0, 0))[0] for number in found]
def devices():
    told, maps = ctypes.create_string_buffer(232), ctypes.create_string_buffer(4)
    struct.pack_into("I", told, 52, 1)
    struct.pack_into("Q", told, 56, at(maps))
    ask(15, struct.pack("IIQ", attached(6)[0], 232, at(told)))
    return ask(14, struct.pack("III", *struct.unpack("I", maps.raw[:4]), 0, 0))[0]
verb, pin = sys.argv[1], ctypes.create_string_buffer(b"/sys/fs/bpf/breach")
path = sys.argv[2]
if path.isdigit():
    path = open("/proc/%s/cgroup" % path).read().strip().partition("::")[2]
    path = "/sys/fs/cgroup" + path[:path.index("/libvirt") + 8]
group = os.open(path, os.O_RDONLY)
disk = ctypes.create_string_buffer(struct.pack("II", 0, 254), 8)
value = ctypes.create_string_buffer(b"\\2\\0\\6\\0", 4)
if verb == "connect":
    code = ctypes.create_string_buffer(struct.pack("BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0), 16)
    free = ctypes.create_string_buffer(b"GPL")
    own = ask(5, struct.pack("IIQQ44xI", 18, 2, at(code), at(free), 10))[0]
    ask(8, struct.pack("IIII", group, own, 10, 2))
elif verb == "disconnect":
    for own in attached(10):
        ask(9, struct.pack("IIII", group, own, 10, 0))
elif verb == "connected":
    sys.exit(not attached(10))
elif verb == "remove":
    own = attached(6)[0]
    ask(6, struct.pack("QII", at(pin), own, 0))
    ask(9, struct.pack("IIII", group, own, 6, 0))
elif verb == "return":
    if os.path.exists(pin.value):
        if not attached(6):
            ask(8, struct.pack("IIII", group, ask(7, struct.pack("QII", at(pin), 0, 0))[0], 6, 0))
        os.unlink(pin.value)
elif verb == "removed":
    sys.exit(bool(attached(6)))
elif verb == "allow":
    ask(2, struct.pack("IIQQQ", devices(), 0, at(disk), at(value), 0))
elif verb == "forbid":
    try:
        ask(3, struct.pack("IIQ", devices(), 0, at(disk)))
    except OSError as error:
        if error.errno != 2:
            raise
elif verb == "allowed":
    ask(1, struct.pack("IIQQ", devices(), 0, at(disk), at(value)))
"""


def bpf_breach(
    name: str, group: Callable[[BreachContext], str], opens: str, closes: str, shows: str
) -> Breach:
    """Return a breach by a program of the kernel.

    Args:
        group: folder of a control group, or the process id of a worker, as the word of a shell.
        opens: what is done there: ``connect`` a program to outgoing connections, ``remove`` the filter of
            a worker's devices, ``allow`` it the node's disk.
        closes: its opposite.
        shows: succeeds exactly while the breach is open.
    """

    def run(verb: str) -> Callable[[BreachContext], str]:
        return lambda context: f"python3 -I -S -c {shlex.quote(_BPF)} {verb} {group(context)}"

    return shell_breach(name, opens=run(opens), closes=run(closes), shows=run(shows))
