"""Checks of worker processes, given what a node shows of them (PRC-03, PRC-04, STO-05)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from checks import test_memory_at_rest, test_worker_sandbox
from testbed.errors import InstrumentError
from testbed.hosts.facts import HostFacts, Thread, Worker
from testbed.verify.fleet import MachineView
from testbed.verify.witnesses import worker_processes
from tests.shapes import lab_of

LAB = lab_of("one-node")
# A filter that allows what a worker needs, by number: read, write, futex and ppoll.
NEEDED_ONLY = (
    *(
        step
        for number in (0, 1, 202, 271)
        for step in ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x7FFF0000))
    ),
    (0x06, 0, 0, 0x80000000),
)
WORKERS = tuple(
    Worker(
        name=guest.domain,
        pid=100 + number,
        label=f"libvirt-{number} (enforce)",
        accounts=(64100 + number,) * 4,
        threads=(Thread(2, 1, 1, 0),),
        mounts=f"mnt:[{number}]",
        devices=("c 1:3 null", "c 10:232 kvm"),
        sockets=(),
        core=("0", "0"),
        filters=(NEEDED_ONLY,),
    )
    for number, guest in enumerate(LAB.guests_on("node"))
)
FILTER = test_worker_sandbox.test_workers_run_under_a_filter
NOTHING_ELSE = test_worker_sandbox.test_workers_have_nothing_but_their_guest
AT_REST = test_memory_at_rest.test_no_memory_reaches_a_disk


def judged(check: Callable[..., None], state: str = "--\n|/bin/false\n--\n--", **changes: Any) -> None:
    """Run a check on a node whose second worker has some other properties."""
    first, second, *others = WORKERS
    found = HostFacts("mnt:[node]", (first, replace(second, **changes), *others))
    fleet: Any = SimpleNamespace(observe_once=lambda *_: found)
    node: Any = SimpleNamespace(name="node", read=lambda _: state)
    check(fleet=fleet, node=node)


@pytest.mark.parametrize("check", [FILTER, NOTHING_ELSE, AT_REST])
def test_a_clean_node_passes(check: Callable[..., None]) -> None:
    judged(check)


@pytest.mark.parametrize(
    ("check", "changes", "told"),
    [
        (FILTER, {"threads": (Thread(2, 1, 1, 0), Thread(0, 0, 1, 0))}, "thread without a filter"),
        (FILTER, {"threads": (Thread(2, 1, 0, 0),)}, "that can gain privileges"),
        (FILTER, {"threads": ()}, "thread without a filter"),
        (
            FILTER,
            {"filters": (((0x06, 0, 0, 0x7FFF0000),),)},
            "allows: execve, fork, vfork, clone of a process",
        ),
        (NOTHING_ELSE, {"threads": (Thread(2, 1, 1, 0x1000),)}, "capabilities: 0x1000"),
        (NOTHING_ELSE, {"mounts": "mnt:[node]"}, "sees the file systems of the node"),
        (NOTHING_ELSE, {"mounts": "mnt:[0]"}, "shares a mount namespace"),
        (NOTHING_ELSE, {"devices": ("c 1:3 null", "b 253:0 breach")}, "does not need: b 253:0 breach"),
        (NOTHING_ELSE, {"devices": ("c 1:3 net/null",)}, "does not need: c 1:3 net/null"),
        (NOTHING_ELSE, {"devices": ("b 8:0 null",)}, "does not need: b 8:0 null"),
        (NOTHING_ELSE, {"sockets": ("tcp 0100007F:11CB 0A",)}, "sockets of a network: tcp"),
        (AT_REST, {"core": ("0", "unlimited")}, "may write core files"),
        (AT_REST, {"state": "/var/x file 4092 0 -2\n--\ncore\n--\n--"}, "the node swaps: /var/x"),
        (AT_REST, {"state": "--\n|/bin/false %p\n--\n--"}, "handed to a program: |/bin/false %p"),
        (AT_REST, {"state": "--\n|/usr/bin/tee /x\n--\n--"}, "handed to a program: |/usr/bin/tee"),
        (
            AT_REST,
            {"state": "--\ncore\n--\n/var/lib/libvirt/qemu/save/a.save\n--"},
            "memory of guests: /var/lib",
        ),
    ],
)
def test_what_opens_a_wall_fails(check: Callable[..., None], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(AssertionError) as caught:
        judged(check, **changes)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        (FILTER, {"filters": (), "unread": "Operation not permitted"}),
        (FILTER, {"filters": ()}),
        (FILTER, {"filters": (((0x80, 0, 0, 0),),)}),  # an unknown instruction
        (FILTER, {"filters": (((0x06, 0, 0, 0x80000000),),)}),  # under which nothing runs
        (AT_REST, {"state": "core"}),
    ],
)
def test_what_is_not_seen_is_inconclusive(check: Callable[..., None], changes: dict[str, Any]) -> None:
    with pytest.raises(InstrumentError):
        judged(check, **changes)


class _Node:
    name = "node"

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def read(self, command: str, *, stdin: bytes, timeout: float) -> str:
        assert command == "python3 -"
        assert timeout > 0
        assert stdin.decode().endswith(f"print(json.dumps(collect({worker_processes._REQUEST!r})))\n")
        return json.dumps(self.answer)

    python = MachineView.python


def _fleet() -> Any:
    return SimpleNamespace(topology=LAB, observe_once=lambda _, look: look())


def test_the_nodes_answer_is_read_strictly() -> None:
    good = {
        "mounts": "mnt:[1]",
        "workers": [
            {
                "name": guest.domain, "pid": 7, "label": "", "accounts": [7], "threads": [[2, 1, 1, 0]],
                "mounts": "mnt:[2]", "devices": [],
                "sockets": [], "core": ["0", "0"], "filters": [[[6, 0, 0, 0]]],
            }
            for guest in LAB.guests_on("node")
        ],
    }  # fmt: skip
    node: Any = _Node(good)
    found = worker_processes.observed(_fleet(), node)
    assert found.workers[0].threads == (Thread(2, 1, 1, 0),)
    assert found.workers[0].filters == (((6, 0, 0, 0),),)
    for bad in ([], {"mounts": "m"}, {**good, "workers": [{**good["workers"][0], "pid": "x"}]}):  # type: ignore[index]
        with pytest.raises(InstrumentError, match="cannot be read"):
            worker_processes.observed(_fleet(), _Node(bad))  # type: ignore[arg-type]
    missing: Any = _Node({**good, "workers": good["workers"][1:]})  # type: ignore[index]
    with pytest.raises(InstrumentError, match="1 guests on node have no worker"):
        worker_processes.observed(_fleet(), missing)
