"""A witness beside every guest: a recorder on its node, of what the node hands to its interfaces (NET-01 to
NET-07, NET-11, NET-13).

One program per node, for all its guests. It must hear the same controls as they, live as long, and lose
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from testbed.errors import InstrumentError
from testbed.verify.fleet import Fleet
from testbed.verify.observation.arrivals import Observation
from testbed.verify.probe.client import (
    Instrument,
    Record,
    broken,
    everywhere,
    listed,
    on_machine,
    require_receiver,
)
from testbed.verify.probe.tokens import Tokens


def listen(fleet: Fleet, prefix: str) -> None:
    """Start the recorders.

    Args:
        prefix: how the observation's tokens begin.

    Raises:
        InstrumentError: one does not start, or a tap is not there.

    """
    taps = _taps(fleet)
    answers = _on_nodes(
        fleet,
        lambda node, name: node.listen({"phase": "listen", "token": prefix, "taps": sorted(taps[name])}),
    )
    for name, answer in answers.items():
        heard = answer.get("taps")
        missing = sorted(set(taps[name]) - set(map(str, heard if isinstance(heard, list) else [])))
        if answer.get("ready") is not True or missing:
            raise broken(
                f"{name} cannot record what it hands to its guests",
                f"missing: {missing}, {answer.get('error', '')}",
            )


def arrived_so_far(fleet: Fleet, tokens: Tokens, marks: Collection[str]) -> set[str]:
    """Return which of some probes have been seen coming in anywhere, by guests or their nodes, while an
    observation goes on.

    Raises:
        InstrumentError: a guest or a node does not tell.

    """
    request, guests = {"phase": "glance", "token": tokens.prefix}, fleet.testbed.guests
    told = everywhere(fleet, guests, Instrument.ask, {guest.label: request for guest in guests})
    handed = _on_nodes(fleet, lambda node, _: node.ask(request))
    found = {token for name, answer in [*told.items(), *handed.items()] for token in _glanced(name, answer)}
    return tokens.marks_of(found) & set(marks)


def _glanced(name: str, answer: Mapping[str, Any]) -> set[str]:
    seen = answer.get("seen")
    if not isinstance(seen, list):
        raise broken(f"{name} does not tell what has come in so far", str(answer)[:200])
    return set(map(str, seen))


def collect(fleet: Fleet, prefix: str) -> dict[str, list[Record]]:
    """End the recorders and return what they saw, by guest.

    Raises:
        InstrumentError: one did not live through the window, or lost something.

    """
    answers = _on_nodes(fleet, lambda node, _: node.ask({"phase": "finish", "token": prefix}))
    found: dict[str, list[Record]] = {guest.label: [] for guest in fleet.testbed.guests}
    for name, taps in _taps(fleet).items():
        require_receiver(name, answers[name], down=[])
        for record in listed(answers[name], "records"):
            guest, network = taps[str(record.get("label"))]
            found[guest].append({**record, "label": network})
    return found


def require_agreement(observation: Observation, marks: Collection[str]) -> None:
    """Return if guests can vouch for all that came in, and told of it as their nodes do; asked when nothing
    of it was forbidden.

    Args:
        marks: the probes that this is about.

    Raises:
        InstrumentError: a guest could not hear, or concealed something, so its silence says nothing of the
            rest.

    """
    if observation.doubt is not None:
        raise observation.doubt
    for guest, found in observation.concealed().items():
        silent = sorted(found & set(marks))
        if silent:
            raise broken(
                f"{guest} conceals {len(silent)} frames that its node handed to it", ", ".join(silent[:6])
            )


def _taps(fleet: Fleet) -> dict[str, dict[str, tuple[str, str]]]:
    """Return by node that has guests, and by tap, the guest behind it and the network that it leads to."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for guest in fleet.testbed.guests:
        found.setdefault(guest.node, {}).update({nic.tap: (guest.label, nic.network) for nic in guest.nics})
    return found


def _on_nodes(fleet: Fleet, ask: Callable[[Instrument, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Ask the instrument on each node that has guests, side by side."""
    names = list(_taps(fleet))
    if not names:
        raise InstrumentError("no node has a guest", fact="nothing to record", remedy="declare a guest")
    with ThreadPoolExecutor(max_workers=min(len(names), 8)) as pool:
        return dict(
            zip(
                names,
                pool.map(lambda name: ask(on_machine(fleet, fleet.machines[name]), name), names),
                strict=True,
            )
        )
