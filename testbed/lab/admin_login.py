"""The administrator's login to a lab's machines.

Each lab has one key, and a short-lived certificate that is renewed when it is used (D6).
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import SSHCertificate, load_ssh_public_identity

from testbed.drivers.host.private_files import write_secret
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.pki import USER_LIFETIME, Authority
from testbed.drivers.ssh.client import USER, Access
from testbed.model.topology import Machine, Plane, Topology

_ROLE = "node-admin"


def access(workspace: Workspace, machine: Machine) -> Access:
    """Return address and keys of a machine.

    A command that runs for a long time renews the certificate before a login, if necessary.
    """
    address = str(machine.address(Plane.MANAGEMENT))
    host_key = workspace.machine(machine.name) / "host_key.pub"
    return Access(machine.name, address, _key(workspace), host_key, renew=lambda: renew_in_time(workspace))


def renew(workspace: Workspace, authority: Authority) -> None:
    """Renew the administrator's certificate.

    Every command that logs in calls this first, whether it holds the lab's lock or not. The certificate is
    valid from the beginning of the lab: after a pause, a machine's clock runs late until we have logged in
    and set it. The key stays the same, so that a command that reads key and certificate meanwhile finds a
    matching pair.
    """
    key, now = _key(workspace), datetime.now(UTC)
    with _one_at_a_time(key.parent):
        known = key.read_bytes() if key.exists() else None
        identity = authority.user([_ROLE], now=now, start=authority.not_before - now, key=known)
        if known is None:
            write_secret(key, identity.private_key)
        write_secret(_certificate(key), identity.certificate)


def renew_in_time(workspace: Workspace) -> None:
    """Renew the certificate if more than half of its lifetime is over."""
    if _life_left(_certificate(_key(workspace))) < USER_LIFETIME / 2:
        renew(workspace, Authority(workspace.pki))


def _life_left(certificate: Path) -> timedelta:
    try:
        found = load_ssh_public_identity(certificate.read_bytes())
    except (OSError, ValueError):
        return timedelta(0)
    end = found.valid_before if isinstance(found, SSHCertificate) else 0
    return timedelta(seconds=end - datetime.now(UTC).timestamp())


def write_config(topology: Topology, workspace: Workspace, authority: Authority) -> None:
    """Write known_hosts and configuration for OpenSSH's client."""
    addresses = {machine.name: machine.address(Plane.MANAGEMENT) for machine in topology.machines}
    known = workspace.folder / "ssh/known_hosts"
    names = ",".join(str(item) for pair in addresses.items() for item in pair)
    write_secret(known, f"@cert-authority {names} {authority.ssh_public_key}\n".encode())
    blocks = [
        f"Host {name}\n  HostName {address}\n  HostKeyAlias {name}\n" for name, address in addresses.items()
    ]
    common = (
        f"Host *\n  User {USER}\n  IdentityFile {_quoted(_key(workspace))}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {_quoted(known)}\n  StrictHostKeyChecking yes\n  LogLevel ERROR\n"
    )
    write_secret(workspace.ssh_config, "".join((*blocks, common)).encode())


def _quoted(path: Path) -> str:
    """Return a path as ssh_config(5) wants it: in quotation marks, and with each % doubled."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def _key(workspace: Workspace) -> Path:
    return workspace.folder / "ssh/admin"


def _certificate(key: Path) -> Path:
    return key.with_name(key.name + "-cert.pub")


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / "renewal").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
