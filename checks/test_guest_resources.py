"""What belongs to one guest beside its disks: console, terminal, agent, monitor, key and logs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from checks.support.breaches import load, mode_breach, needs_guest, rules, shell_breach, where
from testbed.errors import InstrumentError
from testbed.model.topology import Guest
from testbed.verify.attackers.worker import Attempt, all_succeeded, in_words, jobs_of
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView

_STATE, _RUN, _LOGS = "/var/lib/libvirt/qemu", "/run/libvirt/qemu", "/var/log/libvirt/qemu"
# Prints the folders and files of a domain: state, sockets of agent and monitor, key, logs; then its terminal.
_LIST = (
    f"n=$(virsh -q domid {{0}}) && find {_STATE}/domain-$n-* {_RUN}/channel/$n-* {_RUN}/{{0}}.xml "
    f"{_LOGS}/{{0}}.log {{1}} -printf '%y %m %U %G %p\\n' && virsh -q ttyconsole {{0}}"
)
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Resource:
    """A file, folder or socket of one guest.

    Args:
        kind: as find(1) prints it: "d", "f" or "s".
        mode: permissions.
        path: its place on the node.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    path: str

    @property
    def verbs(self) -> tuple[str, ...]:
        """What an attacker tries with it."""
        return {"d": ("list",), "s": ("connect",)}.get(self.kind, ("read", "write"))


def resources(node: MachineView, guest: Guest) -> tuple[list[Resource], str]:
    """Return what a guest has on its node beside disks, and its terminal.

    Raises:
        InstrumentError: something that every guest has is missing.
    """
    text = node.read(_LIST.format(shlex.quote(guest.domain), shlex.quote(guest.console)))
    *lines, terminal = text.splitlines() or [""]
    found = []
    for line in lines:
        kind, mode, uid, gid, path = line.split(" ", 4)
        found.append(Resource(kind, int(mode, 8), int(uid), int(gid), path))
    kinds = [item.kind for item in found]
    if not terminal.startswith("/dev/pts/") or kinds.count("s") < 2 or kinds.count("f") < 4:
        raise InstrumentError(
            f"not all of {guest.label} is seen on {node.name}",
            fact=f"{len(found)} files, terminal {terminal[:80]!r}",
            remedy="run `testbed up`",
        )
    return found, terminal


def loose(found: list[Resource], own: int) -> list[str]:
    """Return what other accounts than root and a worker's reach, by modes and owners.

    Args:
        own: account and group of the worker.
    """
    shut = [item.path for item in found if item.kind == "d" and not _open(item, own)]
    return [
        f"{item.path} has mode {item.mode:o} and belongs to {item.uid}:{item.gid}"
        for item in found
        if _open(item, own) and not any(item.path.startswith(f"{folder}/") for folder in shut)
    ]


def _open(item: Resource, own: int) -> bool:
    return bool(
        item.mode & 0o007 or (item.mode & 0o070 and item.gid not in (0, own)) or item.uid not in (0, own)
    )


def _several(context: BreachContext) -> bool:
    return len(context.guests) > 1


def _folder(context: BreachContext, place: str) -> str:
    """Return the word of a shell that is a folder of the first guest."""
    return f"{place}$(virsh -q domid {context.guest.domain})-*"


def _named(context: BreachContext) -> str:
    return f"{_LOGS}/{context.guests[1].domain}.log"


@check(
    id="RES-01",
    objective="No worker reaches console, terminal, agent, monitor, key or logs of another guest",
    severity="high",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        mode_breach(
            "a guest's console is readable to all accounts",
            lambda context: context.guest.console,
            opened="644",
            shut="600",
        ),
        mode_breach(
            "the folder of a guest's monitor and key is open to all accounts",
            lambda context: _folder(context, f"{_STATE}/domain-"),
            opened="755",
            shut="750",
        ),
        shell_breach(
            "the folder of a guest's agent belongs to a group of others",
            opens=lambda context: f"chgrp kvm {_folder(context, f'{_RUN}/channel/')}",
            closes=lambda context: f"chgrp {context.guest.uid} {_folder(context, f'{_RUN}/channel/')}",
            shows=lambda context: f"[ $(stat -c %G {_folder(context, f'{_RUN}/channel/')}) = kvm ]",
        ),
        *where(
            _several,
            shell_breach(
                "a worker's profile names the log of another guest",
                opens=lambda context: (
                    f"echo '  \"{_named(context)}\" rw,' >> {rules(context.guest)}; {load(context.guest)}"
                ),
                closes=lambda context: (
                    f"sed -i '\\#{_named(context)}#d' {rules(context.guest)}; {load(context.guest)}"
                ),
                shows=lambda context: f"grep -qF {_named(context)} {rules(context.guest)}",
            ),
        ),
    ),
)
def test_resources_of_guests_are_their_own(fleet: Fleet, node: MachineView) -> None:
    guests = fleet.topology.guests_on(node.name)
    found = {guest: resources(node, guest) for guest in guests}
    open_ = [text for guest, (items, _) in found.items() for text in loose(items, guest.uid)]
    assert not open_, f"{len(open_)} things of guests are open to others: {'; '.join(open_[:_SHOWN])}"
    jobs = []
    for attacker in guests:
        attempts: dict[int, list[Attempt]] = {}
        terminals: list[Attempt] = []
        for victim, (items, terminal) in found.items():
            if victim != attacker:
                for item in items:
                    attempts.setdefault(item.uid, []).extend(Attempt(verb, item.path) for verb in item.verbs)
                terminals += [Attempt(verb, terminal) for verb in ("read", "write")]
        # Every profile allows all terminals, which QEMU makes itself: accounts alone keep them apart.
        jobs += jobs_of(attacker, attempts, terminals)
    reached = in_words(jobs, all_succeeded(node, jobs))
    assert not reached, f"{len(reached)} attempts succeeded: {'; '.join(reached[:_SHOWN])}"
