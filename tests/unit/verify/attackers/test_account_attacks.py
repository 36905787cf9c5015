"""What accounts of a node reach, given how attempts ended on a real node (BND-02)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.verify.attackers import accounts

WORKERS = {"red.web": 64142, "blue.web": 64132}
PATHS = {"/pools/red/web.qcow2": 64142, "/dev/pts/0": 64142, "/run/libvirt/libvirt-sock": 0}
ATTEMPTS = [
    "use the hypervisor",
    *(f"{way} {path}" for path in ("/dev/mem", "/dev/vhost-net", *[*PATHS][:2]) for way in ("read", "write")),
    "connect to /run/libvirt/libvirt-sock",
    *(
        f"{way} {guest}"
        for guest in WORKERS
        for way in ("read the memory of", "copy the memory of", "trace", "take a descriptor of")
    ),
]
SHARED = ("use the hypervisor", "read /dev/vhost-net", "write /dev/vhost-net")


def _account(uid: int, *done: str, other: str = "EACCES") -> dict[str, Any]:
    return {"uid": uid, "outcomes": dict.fromkeys(ATTEMPTS, other) | dict.fromkeys(done, "done")}


def _answer() -> dict[str, Any]:
    """Return the answer of a node whose walls are closed."""
    own = [f"{way} {path}" for path in [*PATHS][:2] for way in ("read", "write")]
    return {
        "root": _account(0, other="done"),
        "nobody": _account(65534),
        "libvirt-qemu": _account(64055, *SHARED),
        "worker42": _account(64142, *SHARED, *own),
        "worker32": _account(64132, *SHARED),
        "worker00": _account(64100, *SHARED),
    }


def _judged(answer: object) -> list[str]:
    return accounts.judged(answer, WORKERS, PATHS)


def _with(account: str, attempt: str, outcome: str = "done") -> dict[str, Any]:
    answer = _answer()
    answer[account]["outcomes"][attempt] = outcome
    return answer


def test_closed_walls_are_no_fault() -> None:
    assert _judged(_answer()) == []


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_each_attempt_of_an_ordinary_account_that_succeeds_is_a_fault(attempt: str) -> None:
    assert _judged(_with("nobody", attempt)) == [f"nobody can {attempt}"]


@pytest.mark.parametrize(
    "attempt", [name for name in ATTEMPTS if name.endswith((".web", "red/web.qcow2", "sock"))]
)
def test_a_worker_reaches_no_memory_and_nothing_of_another_guest(attempt: str) -> None:
    assert _judged(_with("worker32", attempt)) == [f"worker32 can {attempt}"]


def test_not_even_the_account_of_a_worker_reaches_its_memory() -> None:
    assert _judged(_with("worker42", "copy the memory of red.web")) == [
        "worker42 can copy the memory of red.web"
    ]


def test_an_idle_worker_owns_nothing() -> None:
    assert accounts.judged(_with("worker00", "read /dev/pts/0"), WORKERS, {**PATHS, "/dev/pts/0": 64100})


def test_a_second_root_is_a_fault() -> None:
    assert _judged({**_answer(), "toor": _account(0)}) == ["toor is root"]


def test_what_root_cannot_reach_either_is_not_there() -> None:
    answer = _with("root", "read /dev/mem", "ENOENT")
    answer["nobody"]["outcomes"]["read /dev/mem"] = "ENOENT"
    assert _judged(answer) == []


def _without(*names: str) -> dict[str, Any]:
    return {name: account for name, account in _answer().items() if name not in names}


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"root": {"uid": 0}},
        _without("root"),
        _without("worker32"),
        _without("nobody", "libvirt-qemu"),
        {**_answer(), "nobody": {"uid": 65534, "outcomes": {}}},
        *(_with("root", name, "EPERM") for name in ATTEMPTS if name.endswith(".web") or name == SHARED[0]),
    ],
)
def test_attempts_that_would_not_have_shown_an_open_wall_are_not_judged(answer: object) -> None:
    with pytest.raises(UnseenError):
        _judged(deepcopy(answer))
