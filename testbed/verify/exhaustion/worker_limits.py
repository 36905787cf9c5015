"""Uses up memory, threads or logs in the place of a worker, and judges what stopped it (DOS-03 to DOS-05)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from testbed.errors import InstrumentError
from testbed.model.topology import Guest
from testbed.payload import attacks
from testbed.untrusted.answers import formed
from testbed.verify.attackers.worker import Layers, bare_layers
from testbed.verify.fleet import MachineView

_PROGRAM = Path(attacks.__file__).parent / "exhaustion.py"
_LIBRARIES = ("attacks.confinement", "attacks.attempts", "attacks.worker_attacks")
_TIMEOUT = 180.0  # seconds
_Count = Annotated[int, Field(ge=0)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Counts(_Form):
    """What the kernel has counted so far.

    Args:
        events: of each worker's control groups, by domain, such as ``memory oom_kill``.
        workers: process id of each worker, by domain.
        killed: processes that it has ended on the whole node, since memory was short.
    """

    events: dict[str, dict[str, _Count]]
    workers: dict[str, _Count]
    killed: _Count


class Spent(_Form):
    """How far an attack came.

    Args:
        reached: bytes or threads.
        status: of the attacker; negative for a signal.
        before, after: what the kernel had counted before and after it.
    """

    worker: Layers
    worn: Layers
    reached: _Count
    status: int
    before: Counts
    after: Counts

    def events(self, domain: str, name: str) -> int:
        """Return how often something has happened to a worker during the attack."""
        after = self.after.events.get(domain, {}).get(name, 0)
        return after - self.before.events.get(domain, {}).get(name, 0)

    @property
    def harmed(self) -> list[str]:
        """Domains whose worker has ended during the attack, or another one is in its place."""
        own = self.after.workers
        return [domain for domain, pid in self.before.workers.items() if own.get(domain) != pid]


_ANSWER = TypeAdapter(Spent)


def exhaust(machine: MachineView, guest: Guest, kind: str, most: int) -> Spent:
    """Use up something in the place of a guest's worker.

    Args:
        kind: "memory", "threads" or "log".
        most: bytes or threads at which the attack stops by itself.

    Raises:
        InstrumentError: the guest has no worker, or the attacker did not wear what the worker wears.
    """
    request = {"domain": guest.domain, "kind": kind, "most": most}
    answer = machine.python(_PROGRAM.read_text(), request, _TIMEOUT, function="collect", libraries=_LIBRARIES)
    what = f"{kind} could not be used up in the place of {guest.label}'s worker"
    try:
        spent = formed(_ANSWER, answer)
    except ValueError as error:
        raise InstrumentError(what, fact=str(error)[:400], remedy="run `testbed up`") from error
    if bare := bare_layers(spent.worker, spent.worn, None):
        raise InstrumentError(
            what, fact=f"the attacker does not wear: {', '.join(bare)}", remedy="repeat the check"
        )
    return spent
