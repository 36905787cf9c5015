"""Records a host before it is changed, compares it with its record, and gives it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from testbed.adoption import remote
from testbed.adoption.compare import Difference, Orders, differences, orders, restarted, same_host
from testbed.adoption.state import HostState
from testbed.adoption.store import Record
from testbed.errors import ProvisioningError, UsageError

_ROUNDS = (
    4  # removed packages leave files, and stopped units leave modules: a round sees what the last has left
)


@dataclass(frozen=True, slots=True)
class Compared:
    """A host beside its record."""

    before: HostState
    now: HostState
    found: list[Difference]


def record(made: Record, configuration: Path | None) -> HostState:
    """Write down what a host is, and return it; the host is not changed.

    Raises:
        UsageError: it has a record already.
        InstrumentError: it does not answer.
        LockedError: another process works with the record.
    """
    with made.locked(), TemporaryFile() as fetched:
        made.require_none()
        remote.fetch(made.host, configuration, fetched, contents=True)
        fetched.seek(0)
        state = remote.state_of(made.host, fetched)
        made.keep(fetched)
    return state


def compare(made: Record, configuration: Path | None) -> Compared:
    """Return the differences between a host and its record.

    Raises:
        UsageError: there is no record, or it is of another host.
        InstrumentError: the host does not answer.
    """
    made.require()
    with made.archive.open("rb") as archive:
        before = remote.state_of(made.host, archive)
    now = remote.look(made.host, configuration, before.scope)
    if not same_host(before, now):
        fact = f"recorded {before.machine.get('board', '')!r}, now {now.machine.get('board', '')!r}"
        remedy = "check the host's name and address in your ssh configuration"
        raise UsageError(f"{made.host} is not the host that was recorded", fact=fact, remedy=remedy)
    return Compared(before, now, differences(before, now))


def give_back(
    made: Record, configuration: Path | None, agree: Callable[[Compared], None], say: Callable[[str], None]
) -> list[Difference]:
    """Take all differences back that have a step, and return those that are left.

    A restore that was killed is repeated as a whole: each round does only what a new look shows.

    Args:
        made: the record.
        configuration: file for ``ssh -F``; None for the user's own.
        agree: is called with the differences before the first change; it raises to refuse.
        say: receives progress.

    Raises:
        TestbedError: see `compare`; or the host does not answer any more.
    """
    with made.locked():
        compared = compare(made, configuration)
        settled = made.settled()
        if settled is None:
            if not any(item.step for item in compared.found):
                return compared.found  # units that have started again have read the same files
            agree(compared)
            settled = {}
        else:
            say(f"going on with the restore of {made.host} that has begun")
            remote.restore(made.host, configuration, Orders(), {})  # waits for one that runs on without us
            compared = compare(made, configuration)
        made.settle(settled)
        for number in range(1, _ROUNDS + 1):
            before, now, found = compared.before, compared.now, compared.found
            again = restarted(before, now, settled)
            wanted = [item for item in found if item.step]
            if not wanted and not again:
                return found
            say(f"round {number}: {len(wanted)} differences to take back, {len(again)} units to start again")
            work = orders(before, now, found, again)
            digests = {str(item["digest"]) for item in work.write if item["whole"] and item["digest"]}
            with made.archive.open("rb") as archive:
                contents = remote.contents_of(archive, digests)
            try:
                remote.restore(made.host, configuration, work, contents)
            except ProvisioningError as error:
                say(f"{error.what}: {error.fact}")
            compared = compare(made, configuration)
            settled |= {name: compared.now.units[name].run for name in again if name in compared.now.units}
            made.settle(settled)
            if compared.found == found and not again:
                break  # nothing moves any more
    return compared.found
