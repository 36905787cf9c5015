"""Rules about remnants: what names a guest, or belongs to its account, after its removal (RES-02). Pure.

`testbed.payload.residues.guest_remnants` finds them on a machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from testbed.hosts.rules import UnseenError
from testbed.untrusted.answers import formed
from testbed.untrusted.text import line

_Text = Annotated[str, Field(max_length=400)]
# Records of what has happened, which are kept for a later review (AUD-01) and are in no later guest's reach.
# The databases of Open vSwitch and OVN are asked instead of their files, which are journals of all changes.
RECORDS = (
    "/var/log/audit/",
    "/var/log/journal/",
    "/run/log/journal/",
    "/var/log/openvswitch/",
    "/var/log/ovn/",
    "/var/lib/openvswitch/conf.db",
    "/etc/openvswitch/conf.db",
    "/var/lib/ovn/",
    "/run/systemd/journal/",
)
# What a running guest has on its node; a look that finds less is blind.
ON_A_NODE = frozenset({"file", "group", "process", "interface", "profile", "switch"})
ON_THE_CONTROLLER = frozenset({"northbound", "southbound"})


class Remnant(NamedTuple):
    """A thing that names a guest or belongs to its account.

    Args:
        kind: kind of object.
        text: its place or a line of it.
    """

    kind: _Text
    text: _Text


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class _Answer:
    found: Annotated[tuple[Remnant, ...], Field(max_length=500)]


_ANSWER = TypeAdapter(_Answer)


def parsed(answer: object) -> tuple[Remnant, ...]:
    """Return what a machine has of a guest.

    Raises:
        UnseenError: the answer has another form.
    """
    try:
        return formed(_ANSWER, answer).found
    except ValueError as error:
        raise UnseenError(str(error)) from error


def require_seen(found: Iterable[Remnant], kinds: Collection[str]) -> None:
    """Require that a look at a running guest finds every kind of object that it has.

    Raises:
        UnseenError: a kind is missing, so the same look after the removal would show nothing.
    """
    missing = {*kinds} - {item.kind for item in found}
    if missing:
        raise UnseenError(f"of the running guest no {', no '.join(sorted(missing))} is seen")


def in_words(machine: str, found: Iterable[Remnant]) -> list[str]:
    """Return one line for each remnant on a machine."""
    return [f"{machine}: {item.kind} {line(item.text)}" for item in found]
