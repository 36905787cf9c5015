"""What a worker that was taken over reaches over networks, layer by layer (PRC-05).

A worker lives in the network namespace of its node. Two walls hold it. Its profile lets it open no socket but
those of its own (unix(7)). Should it have a socket nevertheless, the firewall refuses what its account sends.
Each wall is tried alone: the profile by attempts to open, the firewall by a probe without the profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from testbed.hosts.rules import UnseenError
from testbed.model.topology import Plane, Topology
from testbed.verify.attackers import programs
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses.worker_processes import observed

_SSH, _SOUTHBOUND, _DISCARD = 22, 6642, 9
_OWN = "open a socket of its own"  # which the profile allows: the probe's control
# Families of sockets with their type and protocol, as numbers of Linux (socket(2), packet(7), netlink(7)).
FAMILIES: tuple[tuple[str, int, int, int], ...] = (
    ("a socket of its own", 1, 1, 0),
    ("TCP", 2, 1, 0),
    ("UDP", 2, 2, 0),
    ("TCP over IPv6", 10, 1, 0),
    ("raw IP", 2, 3, 1),
    ("packets of an interface", 17, 3, 0x300),
    ("netlink", 16, 3, 0),
    ("events of the kernel", 16, 3, 15),
)
CONFINED: tuple[tuple[str, int, int, int], ...] = (("vsock", 40, 1, 0), ("ciphers of the kernel", 38, 5, 0))
_PRIVILEGED = ("open raw IP", "open packets of an interface")  # need a capability (capabilities(7))
_REFUSED = {"EACCES", "EPERM"}
_REJECTED = {*_REFUSED, "ECONNREFUSED"}  # nft's reject answers a connection (nft(8))
Target = tuple[str, str, str, int]

_Outcomes = dict[str, Annotated[str, Field(max_length=40)]]


class _Worker(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    account: _Outcomes
    profile: _Outcomes


class Tried(BaseModel):
    """How all attempts on a node ended: as root before and after, and as each worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    before: _Outcomes
    workers: dict[str, _Worker]
    after: _Outcomes


def targets(topology: Topology, node: str) -> list[Target]:
    """Return what a probe on a node sends to: two services, and each network of the lab."""
    own = topology.machine(node)
    controller = str(topology.controller.address(Plane.MANAGEMENT))
    found: list[Target] = [
        ("ssh of its node", "tcp", str(own.address(Plane.MANAGEMENT)), _SSH),
        ("the southbound database", "tcp", controller, _SOUTHBOUND),
        ("its node", "udp", "127.0.0.1", _DISCARD),
    ]
    for nic in own.nics:
        last = str(topology.lab_network(nic.plane).network[-2])
        found.append((f"the network {nic.plane}", "udp", last, _DISCARD))
    for machine in topology.machines:
        if machine.name != node:
            address = str(machine.address(Plane.MANAGEMENT))
            found.append((machine.name, "udp", address, _DISCARD))
    return found


def reached(fleet: Fleet, node: MachineView) -> list[str]:
    """Return what the workers of a node reach, as texts.

    Raises:
        InstrumentError: the node does not answer, or a guest has no worker.
        UnseenError: the attempts would not have shown an open wall.
    """
    workers = {worker.name: worker.pid for worker in observed(fleet, node).workers}
    request = {
        "workers": workers, "families": FAMILIES, "confined": CONFINED,
        "targets": targets(fleet.topology, node.name),
    }  # fmt: skip
    answer = programs.collect(node, "worker_network", request)
    return judged(answer, request)


def judged(answer: object, request: Mapping[str, object]) -> list[str]:
    """Return what workers reached.

    Args:
        answer: of `testbed.payload.attacks.worker_network`.
        request: its request.

    Raises:
        UnseenError: attempts are missing, or root could not make them either.
    """
    try:
        found = Tried.model_validate(answer)
    except ValidationError as error:
        raise UnseenError(f"attempts over networks: {error.error_count()} mistakes in the answer") from error
    if found.workers.keys() != set(request["workers"]):  # type: ignore[call-overload]
        raise UnseenError(f"{len(found.workers)} workers were tried")
    failed = {
        name: outcome
        for outcomes in (found.before, found.after)
        for name, outcome in outcomes.items()
        if outcome != "done"
    }
    if failed or not found.before or found.before.keys() != found.after.keys():
        raise UnseenError(f"root cannot do it either: {failed or 'the probe broke off'}")
    more = {f"open {name}" for name, *_ in request["confined"]}  # type: ignore[attr-defined]
    faults = []
    for name, worker in found.workers.items():
        _require_complete(name, worker, set(found.before), more)
        faults += [f"the profile of {name} lets it {attempt}" for attempt in _opened(worker.profile)]
        faults += [f"the account of {name} can {attempt}" for attempt in _sent(worker.account)]
    return faults


def _require_complete(name: str, worker: _Worker, attempts: set[str], more: set[str]) -> None:
    if worker.account.keys() != attempts or worker.profile.keys() != attempts | more:
        raise UnseenError(f"the probe in the place of {name} broke off")
    if worker.profile[_OWN] != "done":
        raise UnseenError(f"the probe in the place of {name} could not {_OWN}: {worker.profile[_OWN]}")
    odd = {
        attempt: outcome
        for outcomes in (worker.account, worker.profile)
        for attempt, outcome in outcomes.items()
        if outcome not in _REJECTED | {"done"}
    }
    if odd:
        raise UnseenError(f"attempts in the place of {name} ended otherwise: {odd}")


def _opened(outcomes: Mapping[str, str]) -> list[str]:
    """Return what a worker under its profile has opened; it cannot send without a socket."""
    return [
        attempt
        for attempt, outcome in outcomes.items()
        if attempt.startswith("open ") and attempt != _OWN and outcome not in _REFUSED
    ]


def _sent(outcomes: Mapping[str, str]) -> list[str]:
    """Return what an account without the profile has sent, and the sockets that need a capability."""
    return [
        attempt
        for attempt, outcome in outcomes.items()
        if outcome == "done" and (attempt.startswith("send ") or attempt in _PRIVILEGED)
    ]
