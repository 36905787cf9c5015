"""Read a whole machine with the inventory's program, through the machine's session."""

from __future__ import annotations

import hmac
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from testbed.drivers.host.inventory_program import UNPACK, compose
from testbed.drivers.ssh.client import Host
from testbed.errors import InstrumentError, TestbedError
from testbed.inventory.records import Inventory, unpack

SECONDS = 180.0  # that a machine may take; its program stops its own parts earlier


def digest_key(pki: Path) -> str:
    """Return the lab's own key for digests of files that only some accounts may read."""
    return hmac.new((pki / "ssh-ca.pem").read_bytes(), b"inventory", "sha256").hexdigest()


def read_machine(host: Host, request: Mapping[str, object]) -> Inventory:
    """Return everything that is on a machine.

    Raises:
        InstrumentError: it does not answer, or answers something else than records within bounds.

    """
    command = shlex.join(["python3", "-I", "-S", "-B", "-c", UNPACK])
    done = host.sudo(command, stdin=compose(request), timeout=SECONDS)
    if done.status != 0:
        fact = f"status {done.status}: {done.stderr[-800:].decode(errors='replace').strip()}"
        raise InstrumentError(
            f"{host.name} cannot be read", fact=fact, remedy=f"look at it with `testbed ssh LAB {host.name}`"
        )
    try:
        return unpack(done.stdout)
    except (ValueError, RecursionError) as error:
        fact = f"its inventory is unusable: {error}"
        raise InstrumentError(
            f"{host.name} cannot be read", fact=fact, remedy="treat the machine as fallen, or rebuild it"
        ) from error


def read_machines(
    hosts: Sequence[Host], request: Mapping[str, object]
) -> dict[str, Inventory | TestbedError]:
    """Return the inventory of each machine, or why it has none; side by side."""

    def read(host: Host) -> Inventory | TestbedError:
        try:
            return read_machine(host, request)
        except TestbedError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, len(hosts))) as pool:
        return {host.name: found for host, found in zip(hosts, pool.map(read, hosts), strict=True)}
