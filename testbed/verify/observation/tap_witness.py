"""Recorders on nodes, of frames to guests' interfaces (NET-01 to NET-07, NET-11, NET-13).

One program per node records for all its guests. It must hear the same controls as they, run as long, and
lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from testbed.errors import InstrumentError
from testbed.model.topology import Topology
from testbed.verify.fleet import Fleet
from testbed.verify.observation.arrivals import Observation
from testbed.verify.probe.client import (
    ProbeClient,
    Record,
    inconclusive,
    listed,
    on_machine,
    require_receiver,
)
from testbed.verify.probe.requests import Finish, Glance, ListenAtTaps
from testbed.verify.probe.tokens import Tokens


def listen(fleet: Fleet, prefix: str) -> None:
    """Start the recorders.

    Args:
        prefix: beginning of the observation's tokens.

    Raises:
        InstrumentError: a recorder does not start, or a tap is missing.
    """
    taps = _taps(fleet.topology)
    answers = _on_nodes(
        fleet,
        lambda node, name: node.listen(ListenAtTaps(phase="listen", token=prefix, taps=sorted(taps[name]))),
    )
    for name, answer in answers.items():
        heard = answer.get("taps")
        missing = sorted(set(taps[name]) - set(map(str, heard if isinstance(heard, list) else [])))
        if answer.get("ready") is not True or missing:
            raise inconclusive(
                f"{name} cannot record what it hands to its guests",
                f"missing: {missing}, {answer.get('error', '')}",
            )


def arrived_so_far(fleet: Fleet, tokens: Tokens, marks: Collection[str]) -> set[str]:
    """Return which of some probes nodes have handed to their guests, during an observation.

    Guests are not asked: each answer of an emulated guest takes seconds, and they tell all at the end.

    Raises:
        InstrumentError: a node gives no answer.
    """
    request = Glance(phase="glance", token=tokens.prefix)
    handed = _on_nodes(fleet, lambda node, _: node.ask(request))
    found = {token for name, answer in handed.items() for token in _glanced(name, answer)}
    return tokens.marks_of(found) & set(marks)


def _glanced(name: str, answer: Mapping[str, Any]) -> set[str]:
    seen = answer.get("seen")
    if not isinstance(seen, list):
        raise inconclusive(f"{name} does not tell what has come in so far", str(answer)[:200])
    return set(map(str, seen))


def collect(fleet: Fleet, prefix: str) -> dict[str, list[Record]]:
    """End the recorders and return their records, by guest.

    Raises:
        InstrumentError: one did not run for the whole window, or lost frames.
    """
    answers = _on_nodes(fleet, lambda node, _: node.ask(Finish(phase="finish", token=prefix)))
    return records_of(answers, fleet.topology)


def records_of(answers: Mapping[str, Mapping[str, Any]], topology: Topology) -> dict[str, list[Record]]:
    """Return the records in the untrusted answers of nodes, by guest.

    Raises:
        InstrumentError: a recorder did not run for the whole window, lost frames, or names a tap that it does
            not have.
    """
    found: dict[str, list[Record]] = {guest.label: [] for guest in topology.guests}
    for name, taps in _taps(topology).items():
        require_receiver(name, answers[name], down=[])
        for record in listed(answers[name], "records"):
            tap = str(record.get("label"))
            if tap not in taps:
                raise inconclusive(f"the recorder on {name} names a tap of no guest", tap[:200])
            guest, network = taps[tap]
            found[guest].append({**record, "label": network})
    return found


def require_agreement(observation: Observation, marks: Collection[str]) -> None:
    """Require that guests vouch for the window and recorded the frames that nodes recorded.

    Call it when no forbidden frame arrived.

    Args:
        marks: the probes that this is about.

    Raises:
        InstrumentError: a guest could not hear, or concealed something, so its silence proves nothing.
    """
    if observation.doubt is not None:
        raise observation.doubt
    for guest, found in observation.concealed().items():
        silent = sorted(found & set(marks))
        if silent:
            raise inconclusive(
                f"{guest} conceals {len(silent)} frames that its node handed to it", ", ".join(silent[:6])
            )


def _taps(topology: Topology) -> dict[str, dict[str, tuple[str, str]]]:
    """Return guest and network of each tap, by node with guests and by tap."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for guest in topology.guests:
        found.setdefault(guest.node, {}).update({nic.tap: (guest.label, nic.network) for nic in guest.nics})
    return found


def _on_nodes(fleet: Fleet, ask: Callable[[ProbeClient, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Send a request to the probe on each node that has guests, in parallel."""
    names = list(_taps(fleet.topology))
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
