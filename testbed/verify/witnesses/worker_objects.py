"""What the workers of a node hold, as its kernel describes it (CMP-01, DEV-02)."""

from __future__ import annotations

from pathlib import Path

from testbed import payload
from testbed.errors import InstrumentError
from testbed.hosts.ownership import Ownership, parsed
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses.worker_processes import observed

_PROGRAM = Path(payload.__file__).parent / "worker_objects.py"
_TIMEOUT = 120.0  # seconds


def held(fleet: Fleet, node: MachineView) -> Ownership:
    """Return what the workers of a node hold; the checks of a phase share one look.

    Raises:
        InstrumentError: the answer is not complete: a worker is missing, or the disk of a guest.
    """
    return fleet.observe_once(f"objects of workers on {node.name}", lambda: _read(fleet, node))


def _read(fleet: Fleet, node: MachineView) -> Ownership:
    workers = {worker.name: worker.pid for worker in observed(fleet, node).workers}
    answer = node.python(_PROGRAM.read_text(), {"workers": workers}, _TIMEOUT, function="collect")
    try:
        found = parsed(answer)
    except ValueError as error:
        raise InstrumentError(
            f"what the workers of {node.name} hold cannot be read", fact=str(error), remedy="repeat the check"
        ) from error
    for guest in fleet.topology.guests_on(node.name):
        worker = found.workers.get(guest.domain)
        written = [item.path for item in worker.objects if item.access == "write"] if worker else []
        if guest.root_disk not in written:
            raise InstrumentError(
                f"what the worker of {guest.label} holds is not seen",
                fact=f"not even its own disk, among {len(written)} objects",
                remedy="run `testbed up`",
            )
    return found
