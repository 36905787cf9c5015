"""Looks at hosts over OpenSSH: one program reads them, and nothing on them is changed.

OpenSSH's own client is used, so that the user's configuration, agent, jump hosts and known keys count.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from testbed import timeouts
from testbed.drivers.host import process
from testbed.errors import InstrumentError, TestbedError
from testbed.hosts import openssh
from testbed.hosts.facts import HostFacts, parsed
from testbed.untrusted import bounded_json

_PROGRAM = Path(__file__).parents[1] / "payload/workers.py"
_REQUEST = {
    "folder": "/run/libvirt/qemu",
    "programs": ["/usr/bin/qemu-system-", "/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm"],
    "accounts": [0, 2**32 - 1],
}
_AT_ONCE = 16  # hosts that are looked at side by side
_LIMIT = 16 * 2**20  # octets that a host may answer


@dataclass(frozen=True, slots=True)
class Looked:
    """One host, and its facts or the reason why there are none."""

    host: str
    facts: HostFacts | None = None
    error: TestbedError | None = None


def look(hosts: Sequence[str], configuration: Path | None = None) -> list[Looked]:
    """Return what hosts show, in their order.

    A host that does not answer is one result, and holds up no other.

    Args:
        hosts: names or addresses as ssh(1) takes them.
        configuration: file for ``ssh -F``; None for the user's own.

    Raises:
        UsageError: a host's name is an option.
        MachineError: OpenSSH's client is missing.
    """
    for host in hosts:
        openssh.require_host(host)
    process.require("ssh", package="openssh-client")
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        return list(pool.map(lambda host: _one(host, configuration), hosts))


def _one(host: str, configuration: Path | None) -> Looked:
    program = f"{_PROGRAM.read_text()}\nimport json\nprint(json.dumps(host({_REQUEST!r})))\n"
    what = f"{host} cannot be looked at"
    try:
        text = process.run_bounded(
            openssh.argv(host, openssh.as_root("python3 -I -"), configuration),
            what=what,
            timeout=timeouts.HOST_LOOK,
            limit=_LIMIT,
            error=InstrumentError,
            stdin=program.encode(),
        )
        return Looked(host, parsed(bounded_json.read(text)))
    except ValueError as error:
        remedy = "see whether it has Python 3.9 or later"
        return Looked(host, error=InstrumentError(what, fact=str(error), remedy=remedy))
    except TestbedError as error:
        return Looked(host, error=error)
