"""Evaluates a process's system-call filters as the kernel does (PRC-03). Pure.

A filter is a program of classic BPF over the number, the architecture and the arguments of a system call
(seccomp(2)). Of all filters of a process, the most restrictive answer counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

X86_64, I386 = 0xC000003E, 0x40000003  # AUDIT_ARCH of linux/audit.h
X32 = 0x40000000  # bit of the numbers of the x32 interface
_ALLOW, _LOG = 0x7FFF0000, 0x7FFC0000  # answers that run the call
_ACTION = 0xFFFF0000
_STEPS = 4096  # BPF_MAXINSNS: a program has no loop, so that it takes no more steps
# Codes of instructions (linux/bpf_common.h)
_LOAD, _JUMP, _RETURN, _AND = 0x20, 0x05, 0x06, 0x54
_COMPARED = {0x15: "eq", 0x25: "gt", 0x35: "ge", 0x45: "set"}

Instruction = tuple[int, int, int, int]  # code, steps to skip if true, if false, and a value
Filter = tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One system call with its arguments."""

    name: str
    number: int
    arguments: tuple[int, ...] = ()
    architecture: int = X86_64

    @property
    def data(self) -> bytes:
        """The call as struct seccomp_data, whose instruction pointer is 0."""
        arguments = (*self.arguments, *[0] * 6)[:6]
        head = self.number.to_bytes(4, "little") + self.architecture.to_bytes(4, "little")
        return head + bytes(8) + b"".join(value.to_bytes(8, "little") for value in arguments)


def allows(filters: Sequence[Filter], call: Call) -> bool:
    """Return whether a call runs under all of these filters.

    Raises:
        ValueError: a filter has an instruction that is not known here, or does not end.
    """
    return all(_answer(program, call.data) & _ACTION in (_ALLOW, _LOG) for program in filters)


def _answer(program: Filter, data: bytes) -> int:
    """Return what a filter answers to a call."""
    at, accumulator = 0, 0
    for _ in range(_STEPS):
        if at >= len(program):
            break
        code, true, false, value = program[at]
        at += 1
        if code == _RETURN:
            return value
        if code == _LOAD and value + 4 <= len(data):
            accumulator = int.from_bytes(data[value : value + 4], "little")
        elif code == _AND:
            accumulator &= value
        elif code == _JUMP:
            at += value
        elif code in _COMPARED:
            at += true if _holds(_COMPARED[code], accumulator, value) else false
        else:
            raise ValueError(f"instruction {code:#x} with value {value:#x} is not known")
    raise ValueError("the filter does not end")


def _holds(comparison: str, left: int, right: int) -> bool:
    return {"eq": left == right, "gt": left > right, "ge": left >= right, "set": bool(left & right)}[
        comparison
    ]
