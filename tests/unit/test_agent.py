"""What a guest answers is hostile: every kind of nonsense ends as an InstrumentError, soon."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import libvirt
import pytest

from testbed.drivers.hypervisor import _ask_agent
from testbed.errors import InstrumentError
from testbed.model.resolve import resolve
from testbed.spec.load import read
from testbed.verify.agent import run_in_guest

GUEST = resolve(read(Path(__file__).parents[2] / "topologies/one-node.yaml").spec).guests[0]


class Puppet:
    """An agent that answers what it was told to."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, object]]] = []

    def agent(self, name: str, command: str, arguments: dict[str, object], timeout: int) -> dict[str, Any]:
        self.requests.append((command, arguments))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def test_output_and_status_come_back() -> None:
    puppet = Puppet({"pid": 7}, {"exited": False}, {"exited": True, "exitcode": 3, "out-data": _text(b"hello"), "err-data": _text(b"!")})
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


def _unresponsive(text: str) -> libvirt.libvirtError:
    error = libvirt.libvirtError("")
    error.err = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, 0, text, 0, "", None, None, 0, 0)
    return error


def test_an_agent_that_has_not_been_asked_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What libvirt could not even hand over has not been done; what was handed over may have been."""
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
