"""What becomes of libvirtd at the limit of its memory (DEV-03)."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.hosts.rules import UnseenError
from testbed.plan.host_config.daemon_limits import MEMORY
from testbed.verify.agents import daemon_memory
from testbed.verify.agents.daemon_memory import BEYOND, faults, look, parsed, require_room, settled

PRINTED = f"""\
pid 700
limit {MEMORY}
VmHWM:	   29140 kB
VmRSS:	   28000 kB
own 3
killed 4
free 900000
worker red.web 892
worker red.db 897
"""
BEFORE = parsed(PRINTED)
KILLED = replace(BEFORE, pid=800, own=4, killed=5)
PASSED = replace(BEFORE, peak=MEMORY + BEYOND)


class Node:
    """A node whose libvirtd looks different each time."""

    name = "node"

    def __init__(self, *texts: str) -> None:
        self._texts = list(texts)

    def read(self, _: str) -> str:
        text = self._texts.pop(0) if len(self._texts) > 1 else self._texts[0]
        if not text:
            raise InstrumentError("a look at node failed", fact="status 1", remedy="-")
        return text

    def run(self, _: str) -> Any:
        return SimpleNamespace(status=0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_memory, "_PAUSE", 0.001)
    monkeypatch.setattr(daemon_memory, "_SETTLING", 0.2)


def test_what_a_node_prints_is_read() -> None:
    assert (BEFORE.pid, BEFORE.limit, BEFORE.peak) == (700, MEMORY, 29140 * 1024)
    assert (BEFORE.own, BEFORE.killed, BEFORE.free) == (3, 4, 900000 * 1024)
    assert BEFORE.workers == {"red.web": "892", "red.db": "897"}
    assert parsed(PRINTED.replace(f"limit {MEMORY}", "limit max")).limit is None


@pytest.mark.parametrize("part", ["pid 700\n", f"limit {MEMORY}\n", "own 3\n", "killed 4\n", "VmHWM"])
def test_a_part_that_is_missing_is_no_answer(part: str) -> None:
    assert part in PRINTED
    with pytest.raises(InstrumentError, match="cannot be"):
        parsed(PRINTED.replace(part, ""))


def test_a_daemon_that_is_ended_at_its_limit_is_bounded() -> None:
    assert faults("libvirtd", BEFORE, KILLED) == []


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        (replace(BEFORE, limit=None), KILLED, "libvirtd has no limit of memory, not 256 MiB"),
        (replace(BEFORE, limit=2**30), KILLED, "libvirtd has a limit of 1024 MiB, not 256 MiB"),
        (BEFORE, PASSED, "libvirtd has taken 352 MiB, and may have 256 MiB"),
        (BEFORE, replace(BEFORE, pid=800), "libvirtd has ended, and not at its limit"),
        (BEFORE, replace(KILLED, killed=6), "the kernel has ended 2 processes, 1 of them among services"),
        (BEFORE, replace(KILLED, workers={"red.web": "892"}), "the worker of red.db has ended"),
        (
            BEFORE,
            replace(KILLED, workers={"red.web": "gone", "red.db": "897"}),
            "the worker of red.web has ended",
        ),
    ],
)
def test_what_is_not_bounded_is_named(before: Any, after: Any, fault: str) -> None:
    assert faults("libvirtd", before, after) == [fault]


def test_a_node_without_workers_shows_nothing() -> None:
    with pytest.raises(UnseenError):
        faults("libvirtd", replace(BEFORE, workers={}), KILLED)


def test_the_attack_needs_room() -> None:
    node: Any = Node(PRINTED)
    require_room(node, look(node))
    with pytest.raises(InstrumentError, match="too little free memory"):
        require_room(node, replace(BEFORE, free=MEMORY + BEYOND))


def test_the_attack_has_an_end_when_the_daemon_answers_again_or_has_passed_its_limit() -> None:
    back = PRINTED.replace("pid 700", "pid 800")
    between: Any = Node(PRINTED, "", back)
    assert settled(between, BEFORE).pid == 800
    grown: Any = Node(PRINTED, PRINTED.replace("29140", str(MEMORY // 1024 + 1)))
    assert settled(grown, BEFORE).peak > MEMORY


@pytest.mark.parametrize(("text", "fact"), [(PRINTED, "28 MiB at most"), ("", "status 1")])
def test_an_attack_that_meets_nothing_is_no_observation(text: str, fact: str) -> None:
    node: Any = Node(text)
    with pytest.raises(InstrumentError, match="met no limit") as caught:
        settled(node, BEFORE)
    assert fact in caught.value.fact
