"""The program that reads a guest's devices: bounded, and without a trace where nothing is to be read."""

from __future__ import annotations

import base64
import socket
from pathlib import Path

import pytest

from testbed.payload import guest_devices


def _file(folder: Path, key: str, name: str, data: bytes) -> None:
    (folder / key).mkdir(parents=True)
    (folder / key / "name").write_text(f"{name}\n")
    (folder / key / "raw").write_bytes(data)


def test_a_file_that_was_given_to_qemu_is_read_further_than_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each octet of a nested guest's fw_cfg device costs milliseconds."""
    monkeypatch.setattr(guest_devices, "_FW_CFG", str(tmp_path))
    _file(tmp_path, "32", "etc/acpi/tables", b"a" * 10_000)
    _file(tmp_path, "33", "opt/given", b"b" * 10_000)
    found = {
        name: len(base64.b64decode(text)) for name, text in guest_devices._firmware_configuration().items()
    }
    assert found == {"etc/acpi/tables": 64, "opt/given": 4096}


class _Sockets:
    """vsock without a transport but the loopback one: contexts 1 and 2 lead to the guest itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, reached: tuple[int, ...]) -> None:
        monkeypatch.setattr(socket, "socket", lambda *_: _Socket(self))
        self.reached = reached
        self.waiting: dict[int, list[int]] = {}
        self.next = 1_000_000


class _Socket:
    def __init__(self, world: _Sockets) -> None:
        self._world, self._port, self.mine = world, 0, 0

    def __enter__(self) -> _Socket:
        return self

    def __exit__(self, *_: object) -> None: ...

    def bind(self, place: tuple[int, int]) -> None:
        self._port = place[1]
        self._world.waiting[self._port] = []

    def listen(self) -> None: ...

    def setblocking(self, _: object) -> None: ...

    def settimeout(self, _: float) -> None: ...

    def close(self) -> None: ...

    def connect(self, place: tuple[int, int]) -> None:
        context, port = place
        if context in self._world.reached:
            return
        if context not in (1, 2):
            raise OSError(19, "no device")
        self._world.next += 1
        self.mine = self._world.next
        self._world.waiting[port].append(self.mine)

    def getsockname(self) -> tuple[int, int]:
        return 0, self.mine

    def accept(self) -> tuple[_Socket, tuple[int, int]]:
        if not self._world.waiting[self._port]:
            raise BlockingIOError
        return _Socket(self._world), (1, self._world.waiting[self._port].pop(0))


@pytest.mark.parametrize(
    ("reached", "outcomes"),
    [
        ((), {"own": [[1, 22], [2, 22]], "ENODEV": [[3, 22]]}),
        ((2,), {"own": [[1, 22]], "reached": [[2, 22]], "ENODEV": [[3, 22]]}),
        ((3,), {"own": [[1, 22], [2, 22]], "reached": [[3, 22]]}),
    ],
)
def test_a_connection_that_does_not_come_back_has_reached_another_place(
    reached: tuple[int, ...], outcomes: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _Sockets(monkeypatch, reached)
    assert guest_devices._vsock([2, 3], [22]) == {"outcomes": outcomes}


def test_a_kernel_without_vsock_refuses_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(97, "no such family")

    monkeypatch.setattr(socket, "socket", refuse)
    assert guest_devices._vsock([2], [22]) == {"refused": "EAFNOSUPPORT"}
