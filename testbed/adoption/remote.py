"""Runs the programs of a record on a host, over OpenSSH."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from testbed import timeouts
from testbed.adoption.compare import Orders
from testbed.adoption.scope import SCOPE, Scope, request
from testbed.adoption.state import HostState, parsed
from testbed.drivers.host import process
from testbed.errors import InstrumentError, ProvisioningError
from testbed.hosts import openssh

_PROGRAMS = Path(__file__).parents[1] / "payload/adoption"
_ARCHIVE = 256 * 2**20  # octets of a record
_MEMBER = 16 * 2**20  # octets of one file in it, and of the state
_MEMBERS = 20_000
_STATE = "state.json"
_SAID = 64 * 2**10  # octets that a restore may print
# The program has its own length first, so that more can follow it on standard input.
_LOADER = (
    "python3 -I -c 'import sys; i = sys.stdin.buffer; "
    'exec(compile(i.read(int(i.readline())), "testbed", "exec"))\''
)


def fetch(
    host: str,
    configuration: Path | None,
    output: IO[bytes],
    *,
    contents: bool,
    scope: Scope = SCOPE,
) -> None:
    """Write what a host is into a file: an archive of contents and a state.

    Args:
        host: as ssh(1) takes it.
        configuration: file for ``ssh -F``; None for the user's own.
        output: the file.
        contents: whether files are copied.
        scope: the parts that are looked at.

    Raises:
        InstrumentError: the host does not answer, or is beyond bounds.
    """
    openssh.require_host(host)
    program = (_PROGRAMS / "host_state.py").read_text()
    program += f"\nsys.exit(main({request(scope, contents=contents)!r}))\n"
    process.run_into(
        output,
        openssh.argv(host, openssh.as_root(_LOADER), configuration),
        what=f"{host} cannot be read",
        timeout=timeouts.HOST_RECORD,
        limit=_ARCHIVE,
        error=InstrumentError,
        stdin=_loaded(program),
    )


def look(host: str, configuration: Path | None, scope: Scope) -> HostState:
    """Return what the parts of a host are now.

    Raises:
        InstrumentError: see `fetch` and `state_of`.
    """
    with TemporaryFile() as output:
        fetch(host, configuration, output, contents=False, scope=scope)
        output.seek(0)
        return state_of(host, output)


def state_of(host: str, archive: IO[bytes]) -> HostState:
    """Return the state in an archive, whose contents are what their names say.

    Raises:
        InstrumentError: it is damaged or beyond bounds, or contents are missing.
    """
    try:
        state, digests = None, set()
        for name, content in _members(archive):
            if name == _STATE:
                state = parsed(content)
            elif hashlib.sha256(content).hexdigest() == name:
                digests.add(name)
            else:
                raise ValueError(f"the content {name[:80]!r} is another one")
        if state is None:
            raise ValueError("it has no state")
        missing = {entry.digest for entry in state.files.values() if entry.digest} - digests
        if digests and missing:
            raise ValueError(f"{len(missing)} contents are missing")
    except (ValueError, EOFError, OSError, tarfile.TarError) as error:
        remedy = "see whether it has Python 3.9 or later, systemd and dpkg; then repeat the command"
        raise InstrumentError(
            f"what {host} sent is no record of a host", fact=str(error), remedy=remedy
        ) from error
    return state


def contents_of(archive: IO[bytes], digests: set[str]) -> dict[str, bytes]:
    """Return contents of an archive by their SHA-256."""
    return {name: content for name, content in _members(archive) if name in digests}


def _members(archive: IO[bytes]) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    octets = 0
    with tarfile.open(fileobj=archive, mode="r:gz") as opened:
        for member in opened:
            octets += member.size
            if not member.isreg() or member.size > _MEMBER or octets > _ARCHIVE or len(found) > _MEMBERS:
                raise ValueError(f"the member {member.name[:80]!r} is no file, or too large")
            stream = opened.extractfile(member)
            found.append((member.name, stream.read() if stream else b""))
    return found


def restore(host: str, configuration: Path | None, orders: Orders, contents: dict[str, bytes]) -> None:
    """Carry out orders on a host.

    Args:
        host: as ssh(1) takes it.
        configuration: file for ``ssh -F``; None for the user's own.
        orders: the steps.
        contents: of the files that are written, by their SHA-256.

    Raises:
        ProvisioningError: some could not be carried out; the error names them.
    """
    program = (_PROGRAMS / "host_restore.py").read_text() + "\nsys.exit(main(i))\n"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w|") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    words = json.dumps(asdict(orders)).encode() + b"\n"
    process.run_bounded(
        openssh.argv(host, openssh.as_root(_LOADER), configuration),
        what=f"not all of {host} could be given back",
        timeout=timeouts.HOST_RESTORE,
        limit=_SAID,
        error=ProvisioningError,
        stdin=_loaded(program) + words + packed.getvalue(),
    )


def _loaded(program: str) -> bytes:
    text = program.encode()
    return f"{len(text)}\n".encode() + text
