"""The hostile agent of DEV-03 at a terminal in place of its port."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.payload.attacks import hostile_agent
from testbed.payload.attacks.hostile_agent import FALSE, PREFIX, TRUE, Liar, port, words


class Peer:
    """The other side of the port."""

    def __init__(self) -> None:
        self.near, far = os.openpty()
        tty.setraw(self.near)
        tty.setraw(far)
        os.set_blocking(self.near, False)
        self._far = far  # stays open, so that the terminal outlives a port that is closed
        self.path = os.ttyname(far)
        self.waiting = b""

    def say(self, command: str, **arguments: object) -> None:
        os.write(self.near, json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")

    def octets(self, seconds: float = 5.0) -> bytes:
        """Return the next whole line; without one, what has come stays in `waiting`."""
        end = time.monotonic() + seconds
        while b"\n" not in self.waiting and time.monotonic() < end:
            try:
                self.waiting += os.read(self.near, 2**16)
            except BlockingIOError:
                time.sleep(0.005)
        if b"\n" not in self.waiting:
            return b""
        row, _, self.waiting = self.waiting.partition(b"\n")
        return row

    def answer(self) -> Any:
        return json.loads(self.octets().lstrip(b"\xff"))

    def play(self, name: str) -> None:
        self.say("guest-exec", path=f"{PREFIX}{name}/token1")


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    for name in ("_LATE", "_SPACING", "_BLOCKED", "_LASTING", "_CLOSED", "_UNASKED", "_FLOODING"):
        monkeypatch.setattr(hostile_agent, name, 0.3)
    ahead = [0.0]  # seconds, so that its life ends with the test
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0], sleep=time.sleep)
    monkeypatch.setattr(hostile_agent, "time", clock)
    found = Peer()
    liar = Liar(found.path)
    thread = threading.Thread(target=liar.play, args=(time.monotonic() + 1000,))
    thread.start()
    yield found
    ahead[0] = 2000.0
    thread.join(10)
    assert not thread.is_alive()


def test_it_synchronizes_as_an_agent_does(peer: Peer) -> None:
    peer.say("guest-sync-delimited", id=12)
    assert peer.octets() == b'\xff{"return": 12}'
    peer.say("guest-sync", id=13)
    assert peer.answer() == {"return": 13}


def test_a_question_chooses_its_answer_and_what_follows(
    peer: Peer, capfd: pytest.CaptureFixture[str]
) -> None:
    peer.play("words")
    assert peer.answer() == {"return": {"pid": TRUE}}
    peer.say("guest-exec-status", pid=TRUE)
    told = peer.answer()["return"]
    assert base64.b64decode(told["out-data"]).decode() == words("token1")
    assert told["exited"] is True
    peer.play("endless")
    peer.answer()
    peer.say("guest-exec-status", pid=TRUE)
    assert peer.answer()["return"]["exited"] is False
    peer.play("error")
    assert peer.answer()["error"]["desc"] == words("token1")
    shown = capfd.readouterr().out
    assert "<heard words>" in shown
    assert "<done endless>" in shown
    assert "token1" not in shown


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("deep", b'{"return": [[[['),
        ("utf8", b'{"return": {"pid": "\xff\xfe'),
        ("number", b'{"return": {"pid": 9999'),
        ("infinite", b'{"return": {"pid": 1e999}}'),
        ("line", b"\xff\xfe\xc0\x80token1\x1b]0;"),
    ],
)
def test_an_answer_that_is_no_json(peer: Peer, name: str, begins: bytes) -> None:
    peer.play(name)
    assert peer.octets().startswith(begins)


def test_an_answer_has_as_many_objects_as_are_asked_for(peer: Peer) -> None:
    peer.say("guest-exec", path=f"{PREFIX}objects/30000")
    assert peer.answer() == {"return": [{}] * 30000}


def test_a_late_answer_has_another_number(peer: Peer) -> None:
    began = time.monotonic()
    peer.play("late")
    assert peer.answer() == {"return": {"pid": FALSE}}
    assert time.monotonic() - began > 0.25
    peer.play("next")
    assert peer.answer() == {"return": {"pid": TRUE}}


def test_a_slow_answer_never_gets_whole(peer: Peer) -> None:
    peer.play("slow")
    assert peer.octets(0.8) == b""
    assert re.fullmatch(rb'\{"return": \{"pid": \0token10*', peer.waiting)


def test_a_flood_is_one_line_without_end(peer: Peer, capfd: pytest.CaptureFixture[str]) -> None:
    peer.play("flood")
    assert not peer.octets(1.5)
    assert len(peer.waiting) > 2**16
    assert re.search(r"<sent [0-9]{5,}>\n<done flood>", capfd.readouterr().out)


def test_one_attempt_to_synchronize_meets_wrong_numbers(peer: Peer) -> None:
    peer.play("silence")
    assert peer.octets(0.3) == b""
    peer.say("guest-sync", id=5)
    wrong = [peer.answer()["return"] for _ in range(7)]
    assert 5 not in [item for item in wrong if isinstance(item, int)]
    peer.say("guest-sync", id=6)
    assert peer.answer() == {"return": 6}
    peer.say("guest-ping")
    assert peer.answer() == {"return": {}}


def test_a_port_is_opened_once_more_when_nothing_is_asked(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(Liar, "_reopen", lambda liar: opened.append(liar._chosen))
    for name in ("deep", "utf8"):
        peer.play(name)
        peer.octets()
    time.sleep(0.8)
    assert opened == ["utf8"]


def test_a_host_name_is_hostile_whatever_was_chosen(peer: Peer, capfd: pytest.CaptureFixture[str]) -> None:
    peer.play("words")
    peer.answer()
    peer.say("guest-get-host-name")
    assert peer.answer()["return"]["host-name"] == words("token1")
    time.sleep(0.1)
    assert "<done host-name>" in capfd.readouterr().out


def test_the_port_is_found_by_its_name(tmp_path: Path) -> None:
    for number, name in enumerate(("other", hostile_agent.PORT)):
        (tmp_path / f"vport0p{number}").mkdir()
        (tmp_path / f"vport0p{number}/name").write_text(f"{name}\n")
    assert port(str(tmp_path)) == "/dev/vport0p1"
