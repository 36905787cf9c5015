"""Questions to hostile agents, and pings of other guests meanwhile (DEV-03)."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.payload.attacks.hostile_agent import OBJECTS, PREFIX, TRUE
from testbed.verify.agents import questions
from testbed.verify.agents.answers import Pings
from testbed.verify.agents.questions import HostileAgent, pinged, silent

GUEST: Any = SimpleNamespace(domain="red.first", label="red/first", console="/console", node="node", name="f")


class Node:
    """A node whose one guest has an agent that refuses everything, or answers rightly."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.paths: list[str] = []
        self.hypervisor = SimpleNamespace(wait_for_agent=lambda *_: None)
        self.console: list[str] = []

    def agent(self, name: str, command: str, arguments: dict[str, object], timeout: int) -> dict[str, Any]:
        path = str(arguments.get("path", ""))
        chosen = path.removeprefix(PREFIX).partition("/")[0]
        self.asked.append((command, chosen))
        self.paths.append(path)
        for done in (chosen, "host-name" if command == "guest-get-host-name" else "guest-sync"):
            self.console += [f"<heard {done}>", f"<done {done}>"]
        if chosen in ("right", "next"):
            return {"pid": TRUE}
        if command == "guest-ping":
            return {}
        raise InstrumentError(f"the guest agent of {name} does not answer", fact="-", remedy="-")


def _agent(node: Node) -> tuple[HostileAgent, list[tuple[object, ...]]]:
    recorded: list[tuple[object, ...]] = []
    fleet: Any = SimpleNamespace(evidence=SimpleNamespace(record=lambda *args: recorded.append(args)))
    machine = SimpleNamespace(read=lambda _: "\n".join(node.console))
    stranger: Any = SimpleNamespace(node=node, guest=GUEST, machine=machine)
    return HostileAgent(fleet, stranger), recorded


def test_every_question_is_asked_once_and_recorded() -> None:
    node = Node()
    agent, recorded = _agent(node)
    found = list(agent.play())
    names = [answered.name for answered in found]
    assert names == [args[2] for args in recorded]
    assert len(set(names)) == len(names) == 20
    right = {"right", "next", "guest-sync"}
    assert {answered.name for answered in found if answered.error is None} == right
    assert all(answered.seconds < answered.limit for answered in found)
    assert ("guest-get-host-name", "") in node.asked
    assert ("guest-file-open", "file") in node.asked
    agent.require_heard()


def test_an_unforeseen_exception_is_the_outcome_of_a_question() -> None:
    agent, _ = _agent(Node())
    answered = agent._answered("x", partial(int, "no number"), 1.0, None)
    assert isinstance(answered.error, ValueError)


def test_a_guest_that_does_not_report_an_answer_was_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_DONE", 0.0)
    node = Node()
    agent, _ = _agent(node)
    for _ in agent.play():
        pass
    node.console.remove("<done slow>")
    with pytest.raises(InstrumentError, match=r"hostile agent of red\.first was not seen") as told:
        agent.require_heard()
    assert "'<done slow>'" in told.value.fact


def test_an_agent_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_AGAIN", 0.0)
    node = Node()
    agent, _ = _agent(node)

    def silent(name: str, *_: object) -> dict[str, Any]:
        raise InstrumentError(f"the guest agent of {name} does not answer", fact="-", remedy="-")

    monkeypatch.setattr(node, "agent", silent)
    with pytest.raises(InstrumentError, match="does not answer"):
        agent._await_answer()


def test_other_guests_are_pinged_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_CALM", 0.001)
    silent, enough = threading.Event(), threading.Event()

    def agent(name: str, *_: object) -> dict[str, Any]:
        if silent.is_set():
            enough.set()
            raise InstrumentError(f"the guest agent of {name} does not answer", fact="gone", remedy="-")
        return {}

    fleet: Any = SimpleNamespace(lab=SimpleNamespace(nodes={"node": SimpleNamespace(agent=agent)}))
    with pinged(fleet, (GUEST,)) as pings:
        while pings.count.get(GUEST.label, 0) < 5:
            pass
        assert pings.faults(Pings()) == []
        silent.set()
        assert enough.wait(5)
    assert pings.faults(Pings()) == ["red/first does not answer meanwhile: gone"]


def test_the_agent_is_asked_for_enough_objects_and_must_have_given_them() -> None:
    node = Node()
    agent, recorded = _agent(node)
    agent.fill(10 * OBJECTS + 1)
    assert node.paths == [f"{PREFIX}objects/11"]
    assert [args[2] for args in recorded] == ["objects"]


def test_agents_have_time_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_LOOK", 0.001)
    tries = iter([False, False, True])

    def agent(name: str, *_: object) -> dict[str, Any]:
        if not next(tries, False):
            raise InstrumentError(f"the guest agent of {name} does not answer", fact="gone", remedy="-")
        return {}

    fleet: Any = SimpleNamespace(lab=SimpleNamespace(nodes={"node": SimpleNamespace(agent=agent)}))
    assert silent(fleet, (GUEST,)) == []
    monkeypatch.setattr(questions, "_AGAIN", 0.0)
    assert silent(fleet, (GUEST,)) == ["red/first does not answer: gone"]
