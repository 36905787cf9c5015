"""An ssh client with one connection per machine; no other file imports paramiko.

A machine's host key must be the one that the lab issued, compared byte for byte. No host key is ever accepted
on first use (D6). Output of commands is limited, and every command has a deadline.
"""

from __future__ import annotations

import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import paramiko

from testbed import timeouts
from testbed.deadline import ProgressDeadline
from testbed.drivers.ssh.command_session import (
    BEGIN,
    PROGRAM,
    Completed,
    Session,
    SessionStream,
    closing_after,
)
from testbed.errors import InstrumentError, ProvisioningError
from testbed.payload.exec_server import ORPHANS

USER = "admin"
BOOT = timeouts.LOGIN
_RETRY = 0.5
_OPENING = timeouts.SESSION
_ORPHANED = timeouts.ORPHANS
# seconds for a bridge's threads to end; Python stops daemon threads when the process ends
_FAREWELL = 5.0
_SILENT = logging.NullHandler()  # without it, paramiko's threads print errors that also come as exceptions


@dataclass(frozen=True, slots=True)
class Access:
    """Address and keys of a machine.

    Args:
        key: file of the administrator's private key; the certificate is next to it as ``-cert.pub``.
        host_key: file with the machine's public key in OpenSSH's one-line format.
        renew: called before each login: the certificate is short-lived, and a command may outlive it.

    """

    name: str
    address: str
    key: Path
    host_key: Path
    renew: Callable[[], None] = lambda: None


class Host:
    """An ssh connection to a machine, as the lab's administrator.

    Several threads may use it at the same time.

    Args:
        access: address and keys of the machine.
        signs: returns a text that differs after each progress of the machine's boot.

    """

    def __init__(self, access: Access, signs: Callable[[], str] = lambda: "") -> None:
        logging.getLogger("paramiko").addHandler(_SILENT)
        self.access = access
        self._signs = signs
        self._lock = threading.Lock()
        self._client: paramiko.SSHClient | None = None
        self._session: Session | None = None
        self._bridges: dict[socket.socket, threading.Thread] = {}
        self._pumps: list[threading.Thread] = []

    @property
    def name(self) -> str:
        """Name of the machine."""
        return self.access.name

    def wait(self, patience: float) -> None:
        """Wait until the machine accepts our login; progress of its boot extends the time.

        Args:
            patience: seconds from now without progress.

        Raises:
            ProvisioningError: the machine does not accept it in time.

        """
        answers: dict[str, None] = {}  # each new one is a stage of the boot: no route, no sshd, no banner
        deadline = ProgressDeadline(patience, lambda: self._progress(len(answers)))
        while True:
            try:
                self._connected()
            except InstrumentError as error:
                answers[error.fact] = None
                if deadline.over():
                    fact = f"no login at {self.access.address} {deadline.reason}; last answer: {error.fact}"
                    remedy = (
                        f"look at its console with `testbed logs LAB {self.name}`, then run `testbed up` "
                        "again"
                    )
                    raise ProvisioningError(
                        f"{self.name} does not answer", fact=fact, remedy=remedy
                    ) from error
                time.sleep(_RETRY)
            else:
                return

    def _progress(self, answers: int) -> str:
        return "; ".join(filter(None, (self._signs(), f"{answers} kinds of answers to a login")))

    def _connected(self) -> paramiko.SSHClient:
        with self._lock:
            transport = self._client.get_transport() if self._client else None
            if self._client and transport and transport.is_active():
                return self._client
            client = paramiko.SSHClient()
            kind, encoded = self.access.host_key.read_text().split()[:2]
            entry = paramiko.hostkeys.HostKeyEntry.from_line(f"{self.access.address} {kind} {encoded}")
            if entry is None or entry.key is None:
                raise InstrumentError(
                    "a host key is unreadable", fact=str(self.access.host_key), remedy="run `testbed up`"
                )
            client.get_host_keys().add(self.access.address, kind, entry.key)
            client.set_missing_host_key_policy(paramiko.RejectPolicy())
            self.access.renew()
            try:
                client.connect(
                    self.access.address, username=USER, key_filename=str(self.access.key), allow_agent=False,
                    look_for_keys=False, timeout=5, banner_timeout=timeouts.LOGIN_BANNER, auth_timeout=60,
                )  # fmt: skip
            except (paramiko.SSHException, OSError, EOFError) as error:
                client.close()
                fact = f"{type(error).__name__}: {error}"
                raise InstrumentError(
                    f"cannot log in to {self.name}", fact=fact, remedy="run `testbed status`"
                ) from error
            opened = client.get_transport()
            if opened is not None:
                opened.set_keepalive(30)
            self._client = client
            return client

    def sudo(self, command: str, *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        """Run a shell command as root.

        Output is cut at `testbed.drivers.ssh.command_session.LIMIT` bytes.

        Args:
            command: the command.
            stdin: standard input of the command.
            timeout: seconds until the command must have ended.

        Raises:
            InstrumentError: there is no connection, or the command does not end in time.

        """
        try:
            return self._opened_session().run(command, stdin=stdin, timeout=timeout)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise InstrumentError(
                f"a command did not complete on {self.name}",
                fact=f"{command[:200]}: {type(error).__name__}: {error}",
                remedy="run `testbed status`",
            ) from error

    def _opened_session(self) -> Session:
        client = self._connected()
        with self._lock:
            if self._session is None or not self._session.alive:
                transport = client.get_transport()
                if transport is None:
                    raise paramiko.SSHException("connection lost")
                with closing_after(_OPENING, transport.close):
                    # -I and -S keep the environment and site packages out and start faster; -u is unbuffered
                    channel = transport.open_session(timeout=60)
                    channel.exec_command(f"exec sudo -n -- python3 -ISuc {shlex.quote(BEGIN)}")
                    channel.sendall(PROGRAM)
                self._session = Session(channel.sendall, channel.makefile("rb"), transport.close)
            return self._session

    def must(self, command: str, *, stdin: bytes = b"", timeout: float = 120) -> str:
        """Run a shell command as root and return its output.

        Raises:
            ProvisioningError: the command fails.

        """
        try:
            done = self.sudo(command, stdin=stdin, timeout=timeout)
        except InstrumentError as error:
            raise ProvisioningError(error.what, fact=error.fact, remedy=error.remedy) from error
        if done.status != 0:
            fact = (
                f"status {done.status}: "
                f"{(done.stderr or done.stdout)[-800:].decode(errors='replace').strip()}"
            )
            remedy = f"repeat it there: {command[:300]}"
            raise ProvisioningError(f"a command failed on {self.name}", fact=fact, remedy=remedy)
        return done.text

    def await_orphans(self) -> None:
        """Wait until the commands of closed sessions have ended (`testbed.payload.exec_server`).

        Raises:
            ProvisioningError: a command still runs, long after it should have been killed.

        """
        self.must(f"flock --wait {_ORPHANED:.0f} {ORPHANS} true")

    def bridge(self, path: Path, far: str) -> None:
        """Forward a local UNIX socket to one of the machine, opened there as root.

        Args:
            path: local socket, made new.
            far: path of the machine's socket.

        """
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(4)
        server = threading.Thread(target=self._serve, args=(listener, far), daemon=True)
        self._bridges[listener] = server
        server.start()

    def _serve(self, listener: socket.socket, far: str) -> None:
        while listener.fileno() >= 0:
            with suppress(OSError):
                client, _ = listener.accept()
                try:
                    self._join(client, self._opened_session().open(far))
                except (OSError, EOFError, paramiko.SSHException, InstrumentError):
                    client.close()

    def _join(self, client: socket.socket, stream: SessionStream) -> None:
        for way in ((client, stream), (stream, client)):
            pump = threading.Thread(target=_pump, args=way, daemon=True)
            self._pumps.append(pump)
            pump.start()

    def cut(self) -> None:
        """Close the connection at once; calls that wait in other threads end with an error."""
        client = self._client
        if client is not None:
            client.close()

    def close(self) -> None:
        """Close the connection and all bridges; clients of the bridges see the end of their streams.

        The connection is opened again by the next command.
        """
        for listener in self._bridges:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        if self._client:
            self._client.close()
        for server in self._bridges.values():  # first: it may be about to start a pump
            server.join(_FAREWELL)
        for pump in self._pumps:
            pump.join(_FAREWELL)
        self._bridges, self._pumps = {}, []


def _pump(source: socket.socket | SessionStream, target: socket.socket | SessionStream) -> None:
    with suppress(OSError, EOFError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        if isinstance(end, socket.socket):
            with suppress(OSError):
                end.shutdown(
                    socket.SHUT_RDWR
                )  # close() alone does not wake another thread that reads from the socket
        with suppress(OSError, EOFError):  # the connection under a stream may be gone already
            end.close()


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential for a login: a key file, a password, or none.

    A certificate is used as well if it is next to the key file.
    """

    name: str
    user: str
    key: Path | None = None
    password: str | None = None


def attempts(address: str, credentials: Sequence[Credential], timeout: float = 40) -> dict[str, str]:
    """Try several credentials of one user over one connection, as an attacker would.

    A credential counts as refused only if the server refused it: a connection that ends is no answer, and the
    result has no entry for it. sshd closes the connection instead of answering the last of `MaxAuthTries`
    failures.

    Args:
        address: address of the machine.
        credentials: credentials, in the order of the attempts.
        timeout: seconds for each step.

    Returns:
        ``accepted``, ``refused`` or another answer of the server, by the credential's name; the attempts end
            with the first ``accepted``.

    Raises:
        InstrumentError: the machine did not answer the first attempt.

    """
    answers: dict[str, str] = {}
    transport = None
    fact = "the connection ended, or nothing came in time"
    try:
        transport = paramiko.Transport(socket.create_connection((address, 22), timeout))
        transport.banner_timeout = transport.auth_timeout = timeout
        transport.start_client(timeout=timeout)
        for credential in credentials:
            end = time.monotonic() + timeout
            answer = _offer(transport, credential)
            if answer == "refused" and (time.monotonic() >= end or not transport.is_active()):
                break  # paramiko reports a timeout and a closed connection like a refusal
            answers[credential.name] = answer
            if answer == "accepted":
                break
    except (paramiko.SSHException, OSError, EOFError) as error:
        fact = f"{type(error).__name__}: {error}"
    finally:
        if transport is not None:
            transport.close()
    if not answers:
        raise InstrumentError(f"no answer to a login at {address}", fact=fact, remedy="run `testbed status`")
    return answers


def _offer(transport: paramiko.Transport, credential: Credential) -> str:
    more: Sequence[str] = ()
    try:
        if credential.password is not None:
            more = transport.auth_password(credential.user, credential.password, fallback=False)
        elif credential.key is None:
            transport.auth_none(credential.user)
        else:
            private = paramiko.Ed25519Key.from_private_key_file(str(credential.key))
            certificate = credential.key.with_name(credential.key.name + "-cert.pub")
            if certificate.exists():
                private.load_certificate(str(certificate))
            more = transport.auth_publickey(credential.user, private)
    except paramiko.AuthenticationException:
        return "refused"
    if transport.is_authenticated():
        return "accepted"
    return f"accepted, and asked for {', '.join(more)} as well" if more else "refused"
