"""The administrator's certificate is valid whenever a command uses it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    load_ssh_private_key,
    load_ssh_public_identity,
)

from testbed.cli import inspect
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.namespaces import lab_namespaces
from testbed.drivers.pki import USER_LIFETIME, Authority, write_secret
from testbed.drivers.ssh.client import Host
from testbed.drivers.ssh.command_session import Completed
from testbed.errors import InstrumentError
from testbed.lab import admin_login
from testbed.model.resolve import resolve
from testbed.topology_file.loader import read

LAB = resolve(read(Path(__file__).parents[3] / "topologies/one-node.yaml").spec)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A lab whose last command was more than twelve hours ago."""
    found = Workspace(tmp_path, LAB.name)
    found.create()
    _age(found, USER_LIFETIME + timedelta(minutes=1))
    assert _left(found) < 0
    return found


def _age(workspace: Workspace, since: timedelta) -> None:
    old = Authority(workspace.pki).user(["node-admin"], now=datetime.now(UTC) - since)
    write_secret(workspace.folder / "ssh/admin", old.private_key)
    write_secret(workspace.folder / "ssh/admin-cert.pub", old.certificate)


def _certificate(workspace: Workspace) -> SSHCertificate:
    found = load_ssh_public_identity((workspace.folder / "ssh/admin-cert.pub").read_bytes())
    assert isinstance(found, SSHCertificate)
    return found


def _left(workspace: Workspace) -> float:
    return _certificate(workspace).valid_before - datetime.now(UTC).timestamp()


def _require_valid(workspace: Workspace) -> None:
    certificate = _certificate(workspace)
    certificate.verify_cert_signature()
    assert certificate.signature_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() == (
        Authority(workspace.pki).ssh_public_key
    )
    assert _left(workspace) > USER_LIFETIME.total_seconds() - 60
    assert certificate.valid_after <= datetime.now(UTC).timestamp()
    assert certificate.valid_principals == [b"node-admin"]
    own = load_ssh_private_key((workspace.folder / "ssh/admin").read_bytes(), None).public_key()
    assert own == certificate.public_key()


@pytest.fixture
def running(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(inspect, "running_lab", lambda _: (LAB, workspace, None))
    monkeypatch.setattr(lab_namespaces, "enter", lambda _: None)
    return workspace


def test_ssh_logs_in_after_twelve_hours(running: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[list[str]] = []

    def execute(_: str, argv: list[str]) -> None:
        _require_valid(running)
        executed.append(argv)

    monkeypatch.setattr("os.execv", execute)
    inspect.ssh(LAB.name, LAB.nodes[0].name, ["true"])
    assert executed[0][-2:] == ["--", "true"]


def test_logs_are_read_after_twelve_hours(
    running: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sudo(host: Host, command: str) -> Completed:
        _require_valid(running)
        assert command.startswith("journalctl --no-pager --lines=7 '--unit=a b' |")
        return Completed(command, 0, b"Nov 1 qemu: a guest said\n    ::error::told ##vso[x] \x1b[31m\n", b"")

    monkeypatch.setattr(Host, "sudo", sudo)
    inspect.logs(LAB.name, LAB.nodes[0].name, "a b", 7)
    shown = capsys.readouterr().out
    assert "told" in shown
    assert "\x1b" not in shown
    assert "##vso[" not in shown
    assert not any(line.lstrip().startswith("::") for line in shown.split("\n"))


def test_logs_that_cannot_be_read_are_an_error(running: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "sudo", lambda *_: Completed("", 0, b"", b"Failed to parse lines"))
    with pytest.raises(InstrumentError, match="cannot be read"):
        inspect.logs(LAB.name, LAB.nodes[0].name, "", 7)


def test_a_long_command_renews_before_it_logs_in_again(workspace: Workspace) -> None:
    host = Host(admin_login.access(workspace, LAB.nodes[0]))
    workspace.make(workspace.machine(LAB.nodes[0].name))
    key = Authority(workspace.pki).ssh_public_key
    host.access.host_key.write_text(f"{key}\n")
    _refuse(host)
    _require_valid(workspace)
    before = (workspace.folder / "ssh/admin-cert.pub").read_bytes()
    _refuse(host)
    assert (workspace.folder / "ssh/admin-cert.pub").read_bytes() == before
    _age(workspace, USER_LIFETIME * 0.6)
    _refuse(host)
    _require_valid(workspace)


def _refuse(host: Host) -> None:
    """Log in at an address where no server listens."""
    object.__setattr__(host.access, "address", "127.0.0.127")
    with pytest.raises(InstrumentError, match="cannot log in"):
        host.sudo("true")


def test_key_and_certificate_are_a_pair_at_every_moment(workspace: Workspace) -> None:
    """Commands that have no lock renew side by side with a check that logs in."""
    authority, folder = Authority(workspace.pki), workspace.folder / "ssh"
    key = (folder / "admin").read_bytes()
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: admin_login.renew(workspace, authority), range(60)):
            assert (folder / "admin").read_bytes() == key
            assert _certificate(workspace).public_key() == load_ssh_private_key(key, None).public_key()
    _require_valid(workspace)
    assert not list(folder.glob("*.partial"))


def test_a_new_lab_gets_a_key(tmp_path: Path) -> None:
    found = Workspace(tmp_path, "new")
    found.create()
    admin_login.renew(found, Authority(found.pki))
    _require_valid(found)
    assert (found.folder / "ssh/admin").stat().st_mode & 0o077 == 0


def test_a_console_is_shown_line_by_line_and_speaks_to_nobody(
    running: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A CI system would execute some lines that a guest writes."""
    said = b"boot\r\n::error::told\r\n\t ::set-env::\x1b[31m\xff##vso[x]\n"
    machine = running.machine("controller")
    running.make(machine)
    (machine / "console.log").write_bytes(b"x" * 10**7 + b"\n" + said)
    monkeypatch.setattr(inspect, "workspace_of", lambda _: running)
    guest = LAB.guests[0]
    node: Any = SimpleNamespace(console=lambda *_: said)
    opened: Any = SimpleNamespace(nodes={guest.node: node})
    monkeypatch.setattr(inspect, "entered", lambda *_: _given(opened))
    monkeypatch.setattr("testbed.lab.build_inputs.load_inputs", lambda: None)
    monkeypatch.setattr("testbed.lab.session.load_applied", lambda _: LAB)
    for name in ("controller", guest.label):
        inspect.console(LAB.name, name, 4)
        lines = capsys.readouterr().out.split("\n")
        assert "| ::error::told" in lines
        assert not any(line.lstrip().startswith("::") or "\x1b" in line or "##vso[" in line for line in lines)


class _given:  # noqa: N801 - a context
    def __init__(self, value: Any) -> None:
        self.value = value

    def __enter__(self) -> Any:
        return self.value

    def __exit__(self, *_: object) -> None:
        pass
