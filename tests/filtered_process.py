"""A process under a system-call filter, for tests of programs that read filters and wear them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

REFUSED, KILLED = 0x00050001, 0x80000000  # SECCOMP_RET_ERRNO with EPERM, SECCOMP_RET_KILL_PROCESS
# A filter of four instructions: load the number of the call, compare, and two answers (linux/filter.h).
# PR_SET_NO_NEW_PRIVS is 38, PR_SET_SECCOMP 22.
_PROGRAM = """
import ctypes, os, struct, sys
{first}
libc = ctypes.CDLL(None)
code = b"".join(struct.pack("=HBBI", *line) for line in (
    (0x20, 0, 0, 0), (0x15, 0, 1, {call}), (0x06, 0, 0, {answer}), (0x06, 0, 0, 0x7fff0000)))
room = ctypes.create_string_buffer(code, len(code))
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(4, ctypes.addressof(room))), 0, 0) == 0
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def filtered(call: int, answer: int, first: str = "") -> Iterator[int]:
    """Run a process whose filter gives one system call another answer; yield its id.

    Args:
        call: number of the system call.
        first: statements in Python before the filter is installed.
    """
    program = _PROGRAM.format(first=first, call=call, answer=answer)
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process.pid
    process.communicate()
