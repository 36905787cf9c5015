"""Tries to open sockets and to send, in the place of workers: with a worker's account, and its profile.

It runs as root on nodes. Each layer is tried in a child of its own. A child in the place of a worker joins
its mount namespace and control group and takes its account; if asked for, it also takes its AppArmor profile
(aa_change_profile(2)). It does not wear the worker's system-call filter, which refuses no socket. Everything
that a child needs is loaded before, since the profile lets it open little.
"""

from __future__ import annotations

import os
import socket

from testbed.payload.attacks import confinement
from testbed.payload.attacks.attempts import Attempt, tried

_WAIT = 3.0  # seconds for a connection


def collect(request: dict[str, object]) -> dict[str, object]:
    """Return how each attempt ended, "done" or the name of an error: as root, and as each worker.

    Args:
        request: ``workers``: process ids by name; ``families``: names and the three numbers of socket(2),
            ``confined``: further ones, which are tried only under a profile, since the kernel would load a
            module for them; ``targets``: names, "tcp" or "udp", addresses and ports.
    """
    opening, sending = _openings(request["families"]), _sendings(request["targets"])
    confined = _openings(request["confined"])
    workers = {}
    control = tried([*opening, *sending])
    for name, pid in request["workers"].items():  # type: ignore[attr-defined]
        workers[name] = {
            "account": tried([*opening, *sending], lambda pid=pid: _wear(pid, profile=False)),  # type: ignore[misc]
            "profile": tried([*opening, *confined, *sending], lambda pid=pid: _wear(pid, profile=True)),  # type: ignore[misc]
        }
    return {"before": control, "workers": workers, "after": tried([*opening, *sending])}


def _openings(families: object) -> list[Attempt]:
    return [(f"open {name}", _open, tuple(numbers)) for name, *numbers in families]  # type: ignore[attr-defined]


def _sendings(targets: object) -> list[Attempt]:
    return [(f"send {kind} to {name}", _send, (kind, *place)) for name, kind, *place in targets]  # type: ignore[attr-defined]


def _wear(pid: int, *, profile: bool) -> None:
    """Take the place of a process; without root's number, every capability is gone (capabilities(7))."""
    fields = confinement.fields(confinement.text(f"/proc/{pid}/status"))
    user, group = (int(fields[name].split()[0]) for name in ("Uid", "Gid"))
    groups = [int(number) for number in fields["Groups"].split()]
    label = confinement.label(pid).partition(" ")[0]
    confinement.join_group(pid)
    confinement.enter(pid, "mnt")
    confinement.limit_bounding_set(0)
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    if profile:
        confinement.put_on_profile(label)


def _open(family: int, kind: int, protocol: int) -> None:
    socket.socket(family, kind, protocol).close()


def _send(kind: str, address: str, port: int) -> None:
    stream = kind == "tcp"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as sender:
        sender.settimeout(_WAIT)
        if stream:
            sender.connect((address, port))
        else:
            sender.sendto(b"worker", (address, port))
