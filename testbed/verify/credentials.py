"""Credentials that must not work, and one that must: material of ACC-02."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

from testbed.drivers.pki import Authority, SshIdentity
from testbed.drivers.private import write_secret
from testbed.drivers.ssh import USER, Credential, attempts
from testbed.drivers.workspace import Workspace
from testbed.errors import InstrumentError
from testbed.verify.fleet import Fleet, Machine

_PENALTY = 120.0  # seconds; sshd's default penalties for failed logins end well before


def public_key(credential: Credential) -> str:
    """Return a credential's public key, in OpenSSH's one-line format."""
    return credential.key.with_name(credential.key.name + ".pub").read_text().strip() if credential.key else ""


def impostors(workspace: Workspace) -> list[Credential]:
    """Return every kind of wrong credential; keys are made once per lab."""
    folder = workspace.folder / "strangers"
    folder.mkdir(mode=0o700, exist_ok=True)
    authority = Authority(workspace.pki)
    now, hour = datetime.now(UTC), timedelta(hours=1)
    role = ["node-admin"]
    identities: dict[str, SshIdentity] = {}
    identities["expired certificate"] = authority.user(role, now=now, start=-2 * hour, lifetime=-hour)
    identities["certificate that is not valid yet"] = authority.user(role, now=now, start=hour, lifetime=2 * hour)
    identities["certificate for another role"] = authority.user(["guest-user"], now=now)
    with tempfile.TemporaryDirectory() as elsewhere:
        identities["certificate of another authority"] = Authority(Path(elsewhere) / "pki").user(role, now=now)
    found = [Credential(name, USER, _store(folder, name, identity)) for name, identity in identities.items()]
    known = workspace.folder / "ssh/admin"
    bare = folder / "right-key-alone"
    write_secret(bare, known.read_bytes())
    unknown = folder / "unknown-key"
    if not unknown.exists():
        identity = authority.user(role, now=now)
        write_secret(unknown, identity.private_key)
        unknown.with_name("unknown-key.pub").write_text(identity.public_key)
    found += [Credential("unknown key", USER, unknown), Credential("right key alone", USER, bare)]
    found += [Credential("root, with an administrator's key", "root", known)]
    found += [Credential("a password", "root", None, "admin"), Credential("nothing at all", USER, None)]
    return found


def _store(folder: Path, name: str, identity: SshIdentity) -> Path:
    path = folder / name.replace(" ", "-")
    write_secret(path, identity.private_key)
    write_secret(path.with_name(path.name + "-cert.pub"), identity.certificate)
    return path


def logins(fleet: Fleet, machine: Machine, strangers: Sequence[Credential]) -> dict[str, str]:
    """Try to log in with each credential and return the answers; the right one, tried before and after, must work.

    Returns:
        ``accepted`` or ``refused`` by credential.

    Raises:
        InstrumentError: the machine did not answer, or refuses the right credential, so that refusals mean nothing.

    """
    answers: dict[str, str] = {}
    right = Credential("the right credential", USER, fleet.lab.workspace.folder / "ssh/admin")
    groups = [list(group) for _, group in groupby(sorted(strangers, key=_connection), key=_connection)]
    for group in ([right], *groups, [right]):
        found = _patiently(fleet, machine, group)
        if group == [right] and found != {right.name: "accepted"}:
            what = f"{machine.name} refuses the right credential"
            raise InstrumentError(what, fact="so it may be refusing everybody", remedy="run `testbed status`")
        answers.update(found)
    del answers[right.name]
    return answers


def _connection(credential: Credential) -> tuple[str, bool]:
    """Return what decides with which others a credential shares a connection: at most three, sshd's MaxAuthTries."""
    return credential.user, "certificate" in credential.name


def _patiently(fleet: Fleet, machine: Machine, group: Sequence[Credential]) -> dict[str, str]:
    """Try one connection's credentials; while sshd shuts us out for earlier failures, wait and try again."""
    started = time.time()
    request = f"log in with: {', '.join(credential.name for credential in group)}"
    end = time.monotonic() + _PENALTY
    while True:
        try:
            answers = attempts(machine.address, group)
        except InstrumentError as error:
            if time.monotonic() > end:
                fleet.evidence.record(machine.name, "login", request, f"did not complete: {error.fact}", started)
                raise
            time.sleep(2)
        else:
            fleet.evidence.record(machine.name, "login", request, answers, started)
            return answers
