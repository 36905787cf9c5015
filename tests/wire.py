"""Two guests, played by network namespaces, and between them a wire that can drop or delay what it is told
to.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from testbed.errors import InstrumentError
from testbed.model.reachability import ReachMatrix
from testbed.model.topology import Guest, Testbed
from testbed.payload.probe import wire as messages
from testbed.verify.guest_agent import Files
from testbed.verify.probe.transport import FOLDER
from tests.local_agent import LocalAgent

_SOL_PACKET, _IGNORE_OUTGOING, _VNET_HEADER, _QDISC_BYPASS = 263, 23, 15, 20
_HEADER = 10  # octets of virtio_net_hdr, which carries checksums that the sender has left to its hardware


class Switch(threading.Thread):
    """Carries frames between two interfaces of this namespace, except those that a wall stops."""

    def __init__(self, names: tuple[str, str]) -> None:
        super().__init__(daemon=True)
        self.wall: Callable[[bytes], bool] = lambda _: False
        self.late: Callable[[bytes], float] = lambda _: 0  # seconds by which a frame is delayed
        self.aside: Callable[[bytes], bool] = lambda _: (
            False
        )  # frames that go past whoever sniffs here (packet(7))
        self.stopped = 0
        self.ending = False
        self.ends = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW) for _ in names]
        for end, name in zip(self.ends, names, strict=True):
            end.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            end.setsockopt(_SOL_PACKET, _VNET_HEADER, 1)
            end.bind((name, 3))

    def run(self) -> None:
        while not self.ending:
            for end in select.select(self.ends, [], [], 0.1)[0]:
                try:
                    frame = end.recv(70000)
                except OSError:  # it has gone down
                    continue
                other = self.ends[1 - self.ends.index(end)]
                if self.wall(frame[_HEADER:]):
                    self.stopped += 1
                elif delay := self.late(frame[_HEADER:]):
                    threading.Timer(delay, self._carry, (other, frame)).start()
                else:
                    self._carry(other, frame)

    def _carry(self, end: socket.socket, frame: bytes) -> None:
        end.setsockopt(_SOL_PACKET, _QDISC_BYPASS, int(self.aside(frame[_HEADER:])))
        with suppress(OSError):  # a full queue loses frames, as a wire does
            end.send(frame)


class Node:
    """The guests' node, played by this namespace: its taps are the near ends of the guests' wires.

    Args:
        names: name of the near end by tap.
        folder: where its probe lives.
    """

    name = "node-a"

    def __init__(self, names: dict[str, str], folder: Path) -> None:
        self.names, self.folder, self.lost = names, folder, 0
        self.program = 0
        self.lie: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer

    def read(self, command: str, *, stdin: bytes = b"", timeout: float = 30, shown: object = None) -> str:
        if "dpctl" in command:
            taps = "".join(f"\n{path}:0" for path in re.findall(r"/sys/\S+", command))
            return f"  lookups: hit:1 missed:2 lost:{self.lost}{taps}"
        if command.startswith("/usr/bin/python3"):
            return self._start(command, stdin)
        own = self._own(command).replace(FOLDER, str(self.folder))
        if "answer" not in command:
            return (
                subprocess.run(
                    ["sh", "-c", own], input=stdin, check=True, capture_output=True, timeout=timeout
                )
                .stdout.decode()
                .strip()
            )
        asked = messages.pack(json.loads(self._own(json.dumps(messages.unpack(stdin.strip()))))) + b"\n"
        done = subprocess.run(
            ["sh", "-c", own], input=asked, capture_output=True, timeout=timeout, check=False
        )
        if done.returncode != 0:
            raise InstrumentError("a look at node-a failed", fact=done.stderr.decode(), remedy="-")
        text = json.dumps(messages.unpack(done.stdout.strip()))
        answer = self.lie(
            json.loads(re.sub("|".join(self.names.values()), lambda name: self._taps[name[0]], text))
        )
        return messages.pack(answer).decode()

    def _start(self, command: str, stdin: bytes) -> str:
        program = zlib.compress(zlib.decompress(stdin).replace(FOLDER.encode(), str(self.folder).encode()))
        own = command.replace("/usr/bin/python3", sys.executable)
        answer = subprocess.run(
            ["sh", "-c", own], input=program, check=True, capture_output=True, timeout=90
        ).stdout
        self.program = json.loads(answer)["pid"]
        return answer.decode()

    def _own(self, text: str) -> str:
        return re.sub("|".join(self.names), lambda tap: self.names[tap[0]], text)

    @property
    def _taps(self) -> dict[str, str]:
        return {own: tap for tap, own in self.names.items()}


class Wire:
    """As much of a fleet as the network probes need: two guests, played by network namespaces."""

    def __init__(self, lab: Testbed, folder: Path) -> None:
        self.testbed, self.matrix, self.folder, self.pids = lab, ReachMatrix.of(lab), folder, dict[str, int]()
        self.programs: dict[str, int] = {}
        self.evidence = SimpleNamespace(record=lambda *_: None)
        self.instruments: dict[str, Any] = {}
        self.kill_before = ""
        self.switch: Switch
        self.node: Node
        self.pythons: dict[str, str] = {}  # what starts the probe in a guest, where it is not Python
        self.lie: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda _, answer: (
            answer
        )  # what a guest makes of its answer

    @property
    def machines(self) -> dict[str, Node]:
        return {self.node.name: self.node}

    def everywhere(self, do: Callable[[Any], object]) -> dict[str, object]:
        return {self.node.name: do(self.node)}

    def run(self, guest: str, *argv: str, stdin: bytes = b"") -> bytes:
        command = ["nsenter", "-t", str(self.pids[guest]), "-n", "-m", *argv]
        return subprocess.run(command, input=stdin, check=True, capture_output=True, timeout=90).stdout

    def files_of(self, guest: Guest) -> Files:
        own = str(self.folder / guest.domain)
        files = Files(LocalAgent(lambda path: path.replace(FOLDER, own)), guest)
        plain = files.write

        def write(path: str, text: bytes) -> bool:
            if (
                self.kill_before
                and messages.unpack(text.strip())["phase"] == self.kill_before
                and guest.name == "db"
            ):
                program = os.pidfd_open(self.programs[guest.label])
                signal.pidfd_send_signal(program, signal.SIGKILL)
                select.select([program], [], [], 10)
            return plain(path, text)

        look = files.read

        def read(path: str) -> bytes | None:
            text = look(path)
            return (
                text
                if text is None or "/answer." not in path
                else messages.pack(self.lie(guest.label, messages.unpack(text.strip())))
            )

        files.write, files.read = write, read  # type: ignore[method-assign]
        return files

    def in_guest(self, guest: Guest, argv: list[str], stdin: bytes = b"", timeout: float = 90) -> bytes:
        """Start the probe; everything else goes through files."""
        assert argv[0] == "/usr/bin/python3"
        python = self.pythons.get(guest.label, sys.executable)
        own = str(self.folder / guest.domain)
        stdin = zlib.compress(zlib.decompress(stdin).replace(FOLDER.encode(), own.encode()))
        answer = self.run(guest.label, python, *argv[1:], stdin=stdin)
        self.programs[guest.label] = json.loads(answer)["pid"]
        return answer
