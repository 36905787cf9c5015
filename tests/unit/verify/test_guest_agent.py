"""Answers of guests are hostile: every kind of nonsense soon ends as an InstrumentError."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import libvirt
import pytest

from testbed.drivers.hypervisor.connection import _ask_agent
from testbed.drivers.places.node import Node
from testbed.drivers.places.volume_keys import VolumeKeys
from testbed.drivers.ssh.client import Host
from testbed.errors import InstrumentError
from testbed.model.environment import Accelerator, Environment
from testbed.model.resolve import resolve
from testbed.topology_file.loader import read
from testbed.verify import fleet as fleet_module
from testbed.verify import guest_agent
from testbed.verify.fleet import Fleet
from testbed.verify.guest_agent import Files, pause, run_in_guest

LAB = resolve(read(Path(__file__).parents[3] / "topologies/one-node.yaml").spec)
GUEST = LAB.guests[0]


class Puppet:
    """An agent with fixed answers."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, object]]] = []

    def agent(self, name: str, command: str, arguments: dict[str, object], timeout: int) -> dict[str, Any]:
        self.requests.append((command, arguments))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def test_output_and_status_come_back() -> None:
    puppet = Puppet(
        {"pid": 7},
        {"exited": False},
        {"exited": True, "exitcode": 3, "out-data": _text(b"hello"), "err-data": _text(b"!")},
    )
    done = run_in_guest(puppet, GUEST, ["/bin/x", "a b"], b"input", 5)
    assert (done.status, done.stdout, done.stderr) == (3, b"hello", b"!")
    command, arguments = puppet.requests[0]
    assert command == "guest-exec"
    assert arguments["arg"] == ["a b"]
    assert base64.b64decode(str(arguments["input-data"])) == b"input"


@pytest.mark.parametrize(
    "answers",
    [
        [{"pid": "seven"}],
        [{}],
        [{"pid": 7}, {"exited": True, "exitcode": "zero"}],
        [{"pid": 7}, {"exited": True, "exitcode": 0, "out-data": ["list"]}],
        [{"pid": 7}, {"exited": True, "exitcode": 0, "out-data": "not base64!"}],
        [{"pid": 7}, {"exited": True, "exitcode": 0, "out-data": "A" * (3 * 2**20)}],
        [{"pid": 7}, {"exited": "maybe"}],
    ],
)
def test_nonsense_is_an_instrument_error(answers: list[dict[str, Any]]) -> None:
    with pytest.raises(InstrumentError):
        run_in_guest(Puppet(*answers), GUEST, ["/bin/true"], b"", 0.3)


@pytest.mark.parametrize("cost", [0.001, 0.05, 0.3])
def test_questions_take_a_quarter_of_a_nodes_time_and_are_never_far_apart(cost: float) -> None:
    assert pause(0, cost) >= min(3 * cost, 1.0)
    assert pause(0, cost) <= max(3 * cost, 0.05)
    assert pause(2, cost) >= 0.5
    assert pause(60, cost) == 1.0


HANDLE: dict[str, Any] = {"value": 1000}


@pytest.mark.parametrize(
    "answers",
    [
        [{"value": "1000"}],
        [{}],
        [HANDLE, {"buf-b64": ["list"], "eof": True}],
        [HANDLE, {"buf-b64": "not base64!", "eof": True}],
        [HANDLE, {"buf-b64": _text(b"x" * 2**20), "count": 2**20, "eof": "never"}],
    ],
)
def test_a_file_of_nonsense_is_an_instrument_error(answers: list[dict[str, Any]]) -> None:
    """One that never ends is given up when it is longer than anything of ours."""
    with pytest.raises(InstrumentError):
        Files(Puppet(*answers), GUEST).read("/run/x")


def test_a_file_ends_where_nothing_comes_any_more() -> None:
    """The agent's own report of the end does not matter."""
    puppet = Puppet(
        HANDLE, {"buf-b64": _text(b"ab"), "eof": False}, {"buf-b64": "", "count": 5, "eof": False}, {}
    )
    assert Files(puppet, GUEST).read("/run/x") == b"ab"
    assert puppet.requests[-1] == ("guest-file-close", {"handle": 1000})


def test_a_pipe_that_does_not_take_all_is_an_instrument_error() -> None:
    with pytest.raises(InstrumentError, match="answers garbage"):
        Files(Puppet(HANDLE, {"count": 3}, {}), GUEST).write("/run/x", b"four")


def test_a_file_that_is_not_there_is_none() -> None:
    """Only that; an agent that does not answer is an error."""

    class Absent(Puppet):
        def agent(
            self, name: str, command: str, arguments: dict[str, object], timeout: int
        ) -> dict[str, Any]:
            raise InstrumentError(f"{name} {command}", fact=str(arguments["path"]), remedy=str(timeout))

    files = Files(Absent({}), GUEST)
    assert files.read("failed to open file: No such file or directory") is None
    assert files.write("failed to open file: No such file or directory", b"") is False
    with pytest.raises(InstrumentError):
        files.read("Permission denied")


def _unresponsive(text: str) -> libvirt.libvirtError:
    error = libvirt.libvirtError("")
    error.err = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, 0, text, 0, "", None, None, 0, 0)
    return error


def test_an_agent_that_has_not_been_asked_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that libvirt could not hand over was not carried out; others may have been."""
    answers: list[Any] = []

    def command(*_: object) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", command)
    late = "guest agent didn't respond to synchronization within '5' seconds"
    answers[:] = [_unresponsive(late), _unresponsive(late), "{}"]
    assert _ask_agent(None, "", 20) == "{}"
    answers[:] = [_unresponsive(late)] * 3
    with pytest.raises(libvirt.libvirtError):
        _ask_agent(None, "", 20)
    answers[:] = [_unresponsive("guest agent didn't respond to command within '20' seconds"), "{}"]
    with pytest.raises(libvirt.libvirtError):
        _ask_agent(None, "", 20)
    assert answers == ["{}"]


def test_a_way_to_a_guest_outlives_a_boot_of_its_node() -> None:
    environment = Environment(Accelerator.TCG, Accelerator.KVM, 4.0, "/usr/bin/qemu-system-x86_64")
    nowhere = Path("/nowhere")
    node: Any = Node(LAB, LAB.nodes[0], cast(Host, None), nowhere, environment, VolumeKeys(nowhere))
    before, after = (
        Puppet(HANDLE, {"buf-b64": _text(word), "eof": True}, {}) for word in (b"before", b"after")
    )
    node._hypervisor = before
    files = Fleet.files_of(cast(Fleet, SimpleNamespace(lab=SimpleNamespace(nodes={GUEST.node: node}))), GUEST)
    assert files.read("/etc/hostname") == b"before"
    node._hypervisor = after
    assert files.read("/etc/hostname") == b"after"


def test_the_output_of_a_program_in_a_guest_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    done = guest_agent.Output(0, b"told", b"")
    monkeypatch.setattr(fleet_module, "run_in_guest", lambda *_: done)
    view: Any = SimpleNamespace(
        lab=SimpleNamespace(nodes={GUEST.node: None}), evidence=SimpleNamespace(record=lambda *_: None)
    )
    assert Fleet.in_guest(view, GUEST, ["true"]) == b"told"
    done = guest_agent.Output(1, b"told", b"wrong")
    with pytest.raises(InstrumentError, match=r"a probe in .* failed"):
        Fleet.in_guest(view, GUEST, ["true"])


def test_an_interrupt_within_libvirt_stays_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A C function that returns after a handler of signals has raised ends with SystemError."""

    def command(*_: object) -> str:
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", command)
    with pytest.raises(KeyboardInterrupt):
        _ask_agent(None, "", 20)


def test_another_error_of_a_c_function_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(*_: object) -> str:
        raise SystemError("null argument to internal routine")

    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", command)
    with pytest.raises(SystemError, match="null argument"):
        _ask_agent(None, "", 20)
