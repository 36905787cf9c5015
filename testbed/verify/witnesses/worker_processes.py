"""The processes behind a node's guests, as the node's kernel describes them (PRC-03, PRC-04, STO-05)."""

from __future__ import annotations

from pathlib import Path

from testbed.errors import InstrumentError
from testbed.hosts.facts import HostFacts, parsed
from testbed.model.topology import FIRST_WORKER_UID
from testbed.topology_file.validation import WORKERS_PER_NODE
from testbed.verify.fleet import Fleet, MachineView

_PROGRAM = Path(__file__).parents[2] / "payload/workers.py"
_REQUEST = {
    "folder": "/run/libvirt/qemu",
    "programs": ["/usr/bin/qemu-system-"],
    "accounts": [FIRST_WORKER_UID, FIRST_WORKER_UID + WORKERS_PER_NODE - 1],
}
_TIMEOUT = 60.0  # seconds


def observed(fleet: Fleet, node: MachineView) -> HostFacts:
    """Return the workers of a node; the checks of a phase share one look.

    Raises:
        InstrumentError: the node's answer is not complete: a guest of the topology has no worker in it.
    """
    return fleet.observe_once(f"workers of {node.name}", lambda: _read(fleet, node))


def _read(fleet: Fleet, node: MachineView) -> HostFacts:
    answer = node.python(_PROGRAM.read_text(), _REQUEST, _TIMEOUT, function="collect")
    try:
        found = parsed(answer)
    except ValueError as error:
        raise InstrumentError(
            f"the workers of {node.name} cannot be read", fact=str(error), remedy="repeat the check"
        ) from error
    names = {worker.name for worker in found.workers}
    missing = [guest.label for guest in fleet.topology.guests_on(node.name) if guest.domain not in names]
    if missing:
        raise InstrumentError(
            f"{len(missing)} guests on {node.name} have no worker",
            fact=", ".join(missing[:6]),
            remedy="run `testbed up`",
        )
    return found
