"""Wrong credentials: each is offered, each is answered, and what is no answer is no refusal (ACC-02)."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest

from checks import test_management_access
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.pki import Authority, write_secret
from testbed.drivers.ssh import client
from testbed.drivers.ssh.client import USER, Credential, attempts
from testbed.errors import InstrumentError
from testbed.verify.attackers import credentials
from testbed.verify.attackers.credentials import EXPIRED, impostors, logins, plant, uproot
from testbed.verify.cleanup import Leavings


class _Server(paramiko.ServerInterface):
    """Refuses every key, and ends the connection in place of an answer to the last try that it allows, as
    sshd does.
    """

    def __init__(self, end: Callable[[], None], tries: int, late: float) -> None:
        self.end, self.tries, self.late, self.asked = end, tries, late, 0

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.asked += 1
        time.sleep(self.late)
        if self.asked == self.tries:
            self.end()
        return paramiko.AUTH_FAILED


@pytest.fixture
def keys(tmp_path: Path) -> list[Credential]:
    found = []
    for number in range(4):
        identity = Authority(tmp_path / "pki").user(["node-admin"], now=datetime.now(UTC))
        write_secret(tmp_path / f"key{number}", identity.private_key)
        found.append(Credential(f"key {number}", USER, tmp_path / f"key{number}"))
    return found


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Let connections come to a server that allows so many tries."""
    opened: list[Any] = []

    def start(tries: int, late: float = 0.0) -> None:
        def connect(*_: object) -> socket.socket:
            near, far = socket.socketpair()
            transport = paramiko.Transport(far)
            transport.add_server_key(paramiko.ECDSAKey.generate())
            opened.append(transport)
            server = _Server(transport.close, tries, late)
            threading.Thread(target=lambda: _start(transport, server), daemon=True).start()
            return near

        monkeypatch.setattr(client.socket, "create_connection", connect)

    yield start
    for transport in opened:
        transport.close()


def _start(transport: paramiko.Transport, server: _Server) -> None:
    with suppress(paramiko.SSHException, EOFError):
        transport.start_server(server=server)


def test_the_end_of_a_connection_is_no_refusal(serve: Callable[..., None], keys: list[Credential]) -> None:
    """What was offered last, and what was not offered any more, is not among the answers."""
    serve(tries=3)
    assert attempts("-", keys) == {"key 0": "refused", "key 1": "refused"}


def test_silence_is_no_refusal(serve: Callable[..., None], keys: list[Credential]) -> None:
    serve(tries=9, late=3.0)
    with pytest.raises(InstrumentError, match="no answer to a login"):
        attempts("-", keys, timeout=1.5)


def test_every_credential_is_answered(serve: Callable[..., None], keys: list[Credential], tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """However few tries a connection has, as long as one of them is answered."""
    real = credentials.attempts

    def tried(address: str, some: list[Credential]) -> dict[str, str]:
        return {some[0].name: "accepted"} if some[0].name == "the right credential" else real(address, some)

    monkeypatch.setattr(credentials, "attempts", tried)
    for tries in (2, 3, 6):
        serve(tries=tries)
        fleet, machine = _fleet(tmp_path)
        assert logins(fleet, machine, keys) == {f"key {number}": "refused" for number in range(4)}


def _fleet(folder: Path) -> tuple[Any, Any]:
    workspace = Workspace(folder, "lab")
    (workspace.folder / "ssh").mkdir(parents=True, exist_ok=True)
    write_secret(workspace.folder / "ssh/admin", b"-")
    evidence = SimpleNamespace(record=lambda *_: None)
    clock = SimpleNamespace(error=0.0)
    machine = SimpleNamespace(
        name="node", address="-", read=lambda _: str(time.time() + clock.error), clock=clock
    )
    return SimpleNamespace(
        lab=SimpleNamespace(workspace=workspace), evidence=evidence, leavings=Leavings()
    ), machine


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, dict[str, Any]]:
    """A machine, and what it answers: to each name something else than ``refused``; or drops so many
    connections first.
    """
    told: dict[str, Any] = {"answers": {"the right credential": "accepted"}, "offered": [], "drop": 0}

    def tried(_: str, some: list[Credential]) -> dict[str, str]:
        if told["drop"]:
            told["drop"] -= 1
            raise InstrumentError("no answer", fact="shut out", remedy="-")
        told["offered"].append([item.name for item in some])
        return {item.name: told["answers"].get(item.name, "refused") for item in some}

    monkeypatch.setattr(credentials, "attempts", tried)
    monkeypatch.setattr(
        credentials, "time", SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=lambda _: None)
    )
    return (*_fleet(tmp_path), told)


def _check(fleet: Any, machine: Any) -> None:
    test_management_access.test_wrong_credentials_never_work(fleet=fleet, machine=machine)


def test_all_kinds_are_offered_and_their_keys_are_gone(lab: tuple[Any, Any, dict[str, Any]]) -> None:
    """The certificate of another authority among them; no connection has more failures than sshd answers."""
    fleet, machine, told = lab
    told["drop"] = 3
    _check(fleet, machine)
    names = [name for some in told["offered"] for name in some]
    assert "certificate of another authority" in names
    right = "the right credential"
    wrong = [[name for name in some if name != right] for some in told["offered"]]
    assert len(set(names)) == 10
    assert len(names) - names.count(right) == 9, "each wrong one once"
    assert all(len(some) <= 2 + ("nothing at all" in some) for some in wrong)
    root = {"a password", "root, with an administrator's key"}
    assert all(some[-1] == right or set(some) == root for some in told["offered"]), (
        "a connection ends with a login, or has a penalty"
    )
    assert not (fleet.lab.workspace.folder / "strangers").exists()


@pytest.mark.parametrize("answer", ["accepted", "accepted, and asked for password as well", "something else"])
def test_whatever_is_no_refusal_lets_in(lab: tuple[Any, Any, dict[str, Any]], answer: str) -> None:
    fleet, machine, told = lab
    told["answers"]["certificate of another authority"] = answer
    with pytest.raises(AssertionError, match="certificate of another authority"):
        _check(fleet, machine)


@pytest.mark.parametrize("error", [-4000.0, 4000.0])
def test_a_clock_that_slept_is_no_open_wall(lab: tuple[Any, Any, dict[str, Any]], error: float) -> None:
    """An expired certificate works on a machine that lives in the past; what has no date is judged all the
    same.
    """
    fleet, machine, told = lab
    machine.clock.error = error
    told["answers"][EXPIRED] = "accepted"
    with pytest.raises(InstrumentError, match="the clock of node is wrong"):
        _check(fleet, machine)
    told["answers"]["unknown key"] = "accepted"
    with pytest.raises(AssertionError, match="unknown key"):
        _check(fleet, machine)


def test_with_a_right_clock_an_expired_certificate_must_not_work(
    lab: tuple[Any, Any, dict[str, Any]],
) -> None:
    fleet, machine, told = lab
    machine.clock.error = 60.0
    told["answers"][EXPIRED] = "accepted"
    with pytest.raises(AssertionError, match=EXPIRED):
        _check(fleet, machine)


def test_a_planted_key_is_the_unknown_one_until_it_is_taken_away(
    lab: tuple[Any, Any, dict[str, Any]],
) -> None:
    fleet, _, _ = lab
    public = plant(fleet.lab.workspace)

    def unknown() -> str:
        with impostors(fleet, "node") as found:
            key = next(item.key for item in found if item.name == "unknown key")
            assert key is not None
            return " ".join(("ssh-ed25519", paramiko.Ed25519Key.from_private_key_file(str(key)).get_base64()))

    assert unknown() == " ".join(public.split()[:2])
    uproot(fleet.lab.workspace)
    assert unknown() != " ".join(public.split()[:2])
    assert [path.name for path in fleet.lab.workspace.folder.iterdir() if "key" in path.name] == []


def test_keys_are_gone_after_an_interrupt(lab: tuple[Any, Any, dict[str, Any]]) -> None:
    fleet, _, _ = lab

    def interrupted() -> None:
        with impostors(fleet, "node") as found:
            assert all(item.key.exists() for item in found if item.key)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (fleet.lab.workspace.folder / "strangers").exists()
