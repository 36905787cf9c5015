"""Reads, as root of a guest, what its processor says of itself, and tries what it must not be able to do.

It runs in guests: one file, standard library only, and few imports, since these take seconds in a nested
guest. The kernel's modules "cpuid" and "msr" are loaded before (cpuid(4), msr(4)). Numbers of registers are
those of the processors' manuals; Linux names them in arch/x86/include/asm/msr-index.h. Everything that it
returns is bounded.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CPUS = 64  # processors that are looked at
_LEAVES = 64  # leaves of each range
_RANGES = (0x0, 0x40000000, 0x80000000)
_BELOW = {0x7: 3, 0xD: 2}  # leaves with further ones below them, and how many are read
_EFER, _SVME = 0xC0000080, 1 << 12  # the bit without which VMRUN faults (AMD64 manual, volume 2, 15.4)
_SELECT, _COUNTER = 0xC0010000, 0xC0010004  # the first performance counter of AMD's processors
_CYCLES = 0x430076  # counts cycles of the kernel and of programs
_ROUNDS = 20_000


def collect(request: dict[str, dict[str, int]]) -> dict[str, object]:
    """Return CPUID of every processor, and how each attempt ended: "done", or the name of an error.

    Args:
        request: ``read`` and ``write``: registers of the first processor, by the name of the attempt.
    """
    cpus = [name for name in sorted(os.listdir("/dev/cpu")) if name.isdigit()][:_CPUS]
    with open("/dev/cpu/0/msr", "r+b", buffering=0) as registers:
        attempts = _attempts(registers.fileno(), request)
    return {"cpus": {name: _leaves(f"/dev/cpu/{name}/cpuid") for name in cpus}, "attempts": attempts}


def _attempts(registers: int, request: dict[str, dict[str, int]]) -> dict[str, str]:
    def read(register: int) -> Callable[[], object]:
        return lambda: os.pread(registers, 8, register)

    def write(register: int) -> Callable[[], object]:
        return lambda: os.pwrite(registers, (1).to_bytes(8, "little"), register)

    return {
        "control": _outcome(read(_EFER)),
        **{name: _outcome(read(register)) for name, register in request["read"].items()},
        **{name: _outcome(write(register)) for name, register in request["write"].items()},
        "enable SVM": _outcome(lambda: _enable(registers)),
        "count cycles": _outcome(lambda: _count(registers)),
    }


def _leaves(path: str) -> dict[str, list[int]]:
    """Return EAX, EBX, ECX and EDX of each leaf, by "leaf.subleaf", the leaf in hexadecimal."""
    found = {}
    with open(path, "rb", buffering=0) as file:
        for start in _RANGES:
            last = _leaf(file.fileno(), start, 0)[0]
            for leaf in range(start, min(last, start + _LEAVES - 1) + 1):
                for below in range(_BELOW.get(leaf, 1)):
                    found[f"{leaf:x}.{below}"] = _leaf(file.fileno(), leaf, below)
    return found


def _leaf(descriptor: int, leaf: int, below: int) -> list[int]:
    data = os.pread(descriptor, 16, below << 32 | leaf)
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, 16, 4)]


def _enable(registers: int) -> None:
    """Enable VMRUN, and disable it again if that worked."""
    before = os.pread(registers, 8, _EFER)
    value = int.from_bytes(before, "little") | _SVME
    os.pwrite(registers, value.to_bytes(8, "little"), _EFER)
    os.pwrite(registers, before, _EFER)


def _count(registers: int) -> None:
    """Let a counter run over some work.

    Raises:
        OSError: it cannot be set, or stands still (ENODATA).
    """
    os.pwrite(registers, _CYCLES.to_bytes(8, "little"), _SELECT)
    try:
        before = os.pread(registers, 8, _COUNTER)
        sum(range(_ROUNDS))
        if os.pread(registers, 8, _COUNTER) == before:
            raise OSError(errno.ENODATA, "it stands still")
    finally:
        os.pwrite(registers, bytes(8), _SELECT)


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown")
    return "done"
