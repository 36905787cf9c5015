"""Credentials that must not work, and one that must: material of ACC-02."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from testbed.drivers.host.private_files import write_secret
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.pki import Authority, SshIdentity
from testbed.drivers.ssh.client import USER, Credential, attempts
from testbed.errors import InstrumentError
from testbed.verify.fleet import Fleet, Machine

_PENALTY = 120.0  # seconds; sshd's default penalties for failed logins end well before
_AT_ONCE = (
    2  # failures of one connection; sshd answers the last of `MaxAuthTries` (3) by ending the connection
)
_APART = timedelta(hours=1)  # between now and the validity of a certificate that is not valid now
CLOCK = (
    _APART.total_seconds() / 2
)  # seconds by which a machine's clock may be wrong without making such a certificate valid
EXPIRED, EARLY = "expired certificate", "certificate that is not valid yet"
_PLANTED = "planted-key"


def plant(workspace: Workspace) -> str:
    """Make a key that a breach authorises, and that `impostors` tries while it is there; return its public
    half.
    """
    identity = Authority(workspace.pki).user(["node-admin"], now=datetime.now(UTC))
    planted = workspace.folder / _PLANTED
    write_secret(planted, identity.private_key)
    write_secret(planted.with_name(f"{_PLANTED}.pub"), identity.public_key.encode())
    return identity.public_key.strip()


def uproot(workspace: Workspace) -> None:
    """Remove the key that `plant` has made."""
    for name in (_PLANTED, f"{_PLANTED}.pub"):
        (workspace.folder / name).unlink(missing_ok=True)


@contextmanager
def impostors(fleet: Fleet, machine: str) -> Iterator[list[Credential]]:
    """Yield every kind of wrong credential, to be tried on one machine; their keys are gone afterwards."""
    folder = fleet.lab.workspace.folder / "strangers" / machine
    with fleet.leavings.made(f"the keys of strangers for {machine}", partial(_remove, folder)):
        _remove(folder)
        folder.mkdir(mode=0o700, parents=True)
        yield _impostors(fleet.lab.workspace, folder)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
        with suppress(OSError):  # keys for another machine may be there
            folder.parent.rmdir()


def _impostors(workspace: Workspace, folder: Path) -> list[Credential]:
    authority, now, role = Authority(workspace.pki), datetime.now(UTC), ["node-admin"]
    identities: dict[str, SshIdentity] = {}
    identities[EXPIRED] = authority.user(role, now=now, start=-2 * _APART, lifetime=-_APART)
    identities[EARLY] = authority.user(role, now=now, start=_APART, lifetime=2 * _APART)
    identities["certificate for another role"] = authority.user(["guest-user"], now=now)
    with tempfile.TemporaryDirectory() as elsewhere:
        identities["certificate of another authority"] = Authority(Path(elsewhere) / "pki").user(
            role, now=now
        )
    found = [Credential(name, USER, _store(folder, name, identity)) for name, identity in identities.items()]
    known, planted = workspace.folder / "ssh/admin", workspace.folder / _PLANTED
    bare, unknown = folder / "right-key-alone", folder / "unknown-key"
    write_secret(bare, known.read_bytes())
    write_secret(
        unknown, planted.read_bytes() if planted.exists() else authority.user(role, now=now).private_key
    )
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
    """Try to log in with each credential and return the answers; the right one, tried before and after, must
    work.

    Returns:
        ``refused``, or what else the machine said, by credential: an answer for each.

    Raises:
        InstrumentError: the machine did not answer, or refuses the right credential, so that refusals mean
            nothing.

    """
    answers: dict[str, str] = {}
    right = [Credential("the right credential", USER, fleet.lab.workspace.folder / "ssh/admin")]
    groups = [
        [item for item in strangers if item.user == user]
        for user in sorted({item.user for item in strangers})
    ]
    for group in (right, *groups, right):
        found = _patiently(
            fleet, machine, group, right if group is not right and group[0].user == USER else ()
        )
        if group is right and set(found.values()) != {"accepted"}:
            what = f"{machine.name} refuses the right credential"
            raise InstrumentError(what, fact="so it may be refusing everybody", remedy="run `testbed status`")
        answers.update(found if group is not right else {})
    if answers.keys() != {item.name for item in strangers}:
        fact = f"{len(answers)} answers to {len(strangers)} credentials"
        raise InstrumentError(
            f"{machine.name} did not answer every login", fact=fact, remedy="repeat the check"
        )
    return answers


def _patiently(
    fleet: Fleet, machine: Machine, group: Sequence[Credential], last: Sequence[Credential]
) -> dict[str, str]:
    """Try one user's credentials until each is answered; while sshd shuts us out for earlier failures, wait
    and try again.

    Args:
        last: the right credential, with which a connection ends where the user has one: sshd gives penalties
            to sources of connections on which nobody has logged in (sshd_config(5), PerSourcePenalties), and
            would shut us out for half a minute.

    """
    waiting = sorted(group, key=lambda item: item.key is not None or item.password is not None)
    answers: dict[str, str] = {}
    end = time.monotonic() + _PENALTY
    while waiting:
        started = time.time()
        nothing = (
            waiting[0].key is None and waiting[0].password is None
        )  # which sshd does not count as a failure
        some = waiting[: _AT_ONCE + nothing]
        request = f"log in with: {', '.join(credential.name for credential in some)}"
        try:
            found = attempts(machine.address, [*some, *last])
        except InstrumentError as error:
            if time.monotonic() > end:
                fleet.evidence.record(
                    machine.name, "login", request, f"did not complete: {error.fact}", started
                )
                raise
            time.sleep(2)
        else:
            fleet.evidence.record(machine.name, "login", request, found, started)
            answers.update({item.name: found[item.name] for item in some if item.name in found})
            waiting = [item for item in waiting if item.name not in answers]
            end = time.monotonic() + _PENALTY
    return answers
