"""The flows of a node's switch, judged by a second ovn-controller that computes them (NET-01). Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from testbed.hosts.rules import UnseenError
from testbed.model.exposure import SOUTHBOUND
from testbed.model.topology import Plane, Topology

_LEAST = 50  # flows; OVN's own pipeline for one port has some hundred
_KEYS = "/run/testbed/ovn"  # where a node has its identity
_Flow = Annotated[str, Field(max_length=700)]
_Number = Annotated[int, Field(ge=0, le=10**7)]


class ComputedFlows(BaseModel):
    """The answer of `testbed.payload.flows.computed`.

    Args:
        live: number of flows of the switch.
        computed: number of flows that it must have.
        differing: number of flows that are in one of the two alone.
        more: flows that nothing asks for; not all, if there are many.
        missing: likewise those that it should have.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    live: _Number = 0
    computed: _Number = 0
    differing: _Number = 0
    more: Annotated[tuple[_Flow, ...], Field(max_length=60)] = ()
    missing: Annotated[tuple[_Flow, ...], Field(max_length=60)] = ()
    why: Annotated[str, Field(max_length=600)] = ""


def request(topology: Topology) -> dict[str, str]:
    """Return what `testbed.payload.flows.computed` is asked on a node."""
    remote = f"ssl:{topology.controller.address(Plane.MANAGEMENT)}:{SOUTHBOUND}"
    return {"remote": remote, "keys": _KEYS}


def judged(answer: object) -> ComputedFlows:
    """Return the answer of the program.

    Raises:
        UnseenError: it is none, the flows were not computed, or there are too few for a switch of OVN.
    """
    try:
        found = ComputedFlows.model_validate(answer)
    except ValidationError as error:
        raise UnseenError(f"computed flows: {error.error_count()} mistakes in the answer") from error
    if found.why:
        raise UnseenError(f"the flows were not computed: {found.why}")
    if min(found.live, found.computed) < _LEAST:
        raise UnseenError(f"the switch has {found.live} flows, and {found.computed} were computed")
    if found.differing < len(found.more) + len(found.missing) or bool(found.differing) != bool(
        found.more or found.missing
    ):
        raise UnseenError(f"the answer counts {found.differing} differing flows and names others")
    return found
