"""System-call filters are evaluated as the kernel does (PRC-03)."""

from __future__ import annotations

import pytest

from testbed.hosts.syscall_filter import I386, X86_64, Call, Filter, allows

ALLOW, LOG, KILL, ERROR = 0x7FFF0000, 0x7FFC0000, 0x80000000, 0x00050001
LOAD, EQUAL, GREATER, GREATER_EQUAL, BITS, JUMP, AND, RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x05, 0x54, 0x06
NUMBER, ARCHITECTURE, FIRST_LOW, FIRST_HIGH = 0, 4, 16, 20  # offsets in struct seccomp_data
EVERYTHING: Filter = ((RETURN, 0, 0, ALLOW),)
NO_EXECVE: Filter = (
    (LOAD, 0, 0, ARCHITECTURE),
    (EQUAL, 0, 3, X86_64),
    (LOAD, 0, 0, NUMBER),
    (EQUAL, 1, 0, 59),
    (RETURN, 0, 0, ALLOW),
    (RETURN, 0, 0, KILL),
)
EXECVE, READ = Call("execve", 59), Call("read", 0)


def test_a_call_needs_every_filter() -> None:
    assert allows([EVERYTHING], EXECVE)
    assert allows([NO_EXECVE], READ)
    assert not allows([NO_EXECVE], EXECVE)
    for both in ([EVERYTHING, NO_EXECVE], [NO_EXECVE, EVERYTHING]):
        assert not allows(both, EXECVE)
        assert allows(both, READ)


def test_a_filter_of_one_interface_refuses_another() -> None:
    assert not allows([NO_EXECVE], Call("read of 32 bits", 3, architecture=I386))


@pytest.mark.parametrize(
    ("answer", "allowed"), [(ALLOW, True), (LOG, True), (KILL, False), (ERROR, False), (0, False)]
)
def test_only_two_answers_run_a_call(answer: int, allowed: bool) -> None:
    assert allows([((RETURN, 0, 0, answer),)], READ) is allowed


@pytest.mark.parametrize(
    ("compared", "argument", "allowed"),
    [
        ((EQUAL, 0, 1, 17), 17, True),
        ((EQUAL, 0, 1, 17), 18, False),
        ((GREATER, 0, 1, 17), 18, True),
        ((GREATER, 0, 1, 17), 17, False),
        ((GREATER_EQUAL, 0, 1, 17), 17, True),
        ((GREATER_EQUAL, 0, 1, 17), 16, False),
        ((BITS, 0, 1, 0x10), 0x30, True),
        ((BITS, 0, 1, 0x10), 0x20, False),
    ],
)
def test_arguments_are_compared(compared: tuple[int, int, int, int], argument: int, allowed: bool) -> None:
    program: Filter = ((LOAD, 0, 0, FIRST_LOW), compared, (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, KILL))
    assert allows([program], Call("clone", 56, (argument,))) is allowed


def test_both_halves_of_an_argument_are_there() -> None:
    program: Filter = (
        (LOAD, 0, 0, FIRST_HIGH),
        (AND, 0, 0, 0xF),
        (EQUAL, 0, 1, 2),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, KILL),
    )
    assert allows([program], Call("clone", 56, (0x12 << 32,)))
    assert not allows([program], Call("clone", 56, (0x13 << 32,)))


def test_a_jump_skips_instructions() -> None:
    assert allows([((JUMP, 0, 0, 1), (RETURN, 0, 0, KILL), (RETURN, 0, 0, ALLOW))], READ)


@pytest.mark.parametrize(
    "program",
    [
        (),
        ((LOAD, 0, 0, NUMBER),),
        ((JUMP, 0, 0, 7), (RETURN, 0, 0, ALLOW)),
        ((LOAD, 0, 0, 61), (RETURN, 0, 0, ALLOW)),  # beyond the data
        ((0x80, 0, 0, 0), (RETURN, 0, 0, ALLOW)),
    ],
)
def test_a_filter_that_is_not_understood_is_no_permission(program: Filter) -> None:
    with pytest.raises(ValueError, match=r"not known|does not end"):
        allows([program], READ)
