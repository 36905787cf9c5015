"""Network probes: every guest listens, sends and is watched, with three questions to each guest whatever
their number.

A frame that did not arrive counts only if the receiver's recorder, and its node's beside it, lived through
the whole window, lost nothing, and heard something with the same tool in the same run, before and after
(DESIGN.md, section 6).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from testbed.errors import InstrumentError
from testbed.model.reachability import Endpoint, endpoints, probed_ports
from testbed.verify.fleet import Fleet
from testbed.verify.observation import tap_witness
from testbed.verify.observation.arrivals import TRUTH, Observation
from testbed.verify.observation.declared_flows import ends, uses
from testbed.verify.observation.port_counters import await_frames
from testbed.verify.observation.switch_drops import lost, require_no_loss
from testbed.verify.probe.client import (
    BUDGET,
    WINDOW,
    Instrument,
    Probe,
    Record,
    broken,
    everywhere,
    lines,
    listed,
    one_observation,
    require_receiver,
    require_sent,
    results_of,
)
from testbed.verify.probe.frames import arp_reply, dhcp_discover, framed, nd_option, neighbor_advertisement
from testbed.verify.probe.tokens import Tokens

_FLOWING = 5  # frames that tell an attack from a guest that says something of its own
# seconds between two rounds of a guest that attacks; a guest that never sleeps keeps what starts anew from
# doing so
_PAUSE = 0.4
_SETTLING = max(
    WINDOW, 1.2
)  # seconds between a guest's last probe and its last words; no less than Linux's locktime
_HEARING = (
    3.0  # seconds that the last controls may take to be heard; a node that was just flooded answers late
)
_TRANSACTIONS = {"before": 1, "after": 2}  # first octet of a DHCP transaction
_PATIENCE = 30.0  # seconds that guests may take to be seen sending


@dataclass(frozen=True, slots=True)
class Attack:
    """Frames that guests send over and over while something happens, all of them about twice a second.

    Args:
        seconds: after how long they give up, if what happens has not ended by then.
        meanwhile: what happens; it is given the tokens of this observation.
    """

    probes: Sequence[Probe]
    seconds: float
    meanwhile: Callable[[Tokens], None]


def observe(
    fleet: Fleet,
    probes: Sequence[Probe],
    attack: Attack | None = None,
    *,
    strays: bool = False,
    doubts: bool = False,
) -> Observation:
    """Send probes from their senders, with controls around them, while every guest is watched by itself and
    by its node.

    Args:
        attack: what goes on between the controls instead of single probes.
        strays: whether to keep what comes in from MAC addresses that are no guest's.
        doubts: whether a guest that cannot vouch for the window is a doubt for `require_agreement`, instead
            of an error, since its node may have seen what must not come in.

    Raises:
        InstrumentError: an instrument was not there, died, or a control failed, or a switch lost frames of
            single probes: then nothing was observed.
    """
    lab, tokens = fleet.testbed, Tokens.fresh()
    interfaces = {
        guest.label: [
            {
                "label": nic.network,
                "mac": nic.mac,
                "address": str(nic.address),
                "address6": str(nic.address6 or ""),
            }
            for nic in guest.nics
        ]
        for guest in lab.guests
    }
    common: dict[str, dict[str, object]] = {
        label: {"token": tokens.prefix, "interfaces": nics} for label, nics in interfaces.items()
    }
    ports = probed_ports(lab)

    def send(
        script: Callable[[str], list[Probe]], only: Collection[str] = common, **phase: object
    ) -> dict[str, dict[str, Any]]:
        requests = {
            label: {**common[label], **phase, "probes": lines(script(label), tokens)} for label in only
        }
        return everywhere(
            fleet, [guest for guest in lab.guests if guest.label in only], Instrument.ask, requests
        )

    with one_observation(fleet):
        known = sorted({endpoint.mac for endpoint in endpoints(lab)}) if strays else []
        listen = {"phase": "listen", "patience": 60, "known": known, **ports}
        with ThreadPoolExecutor(max_workers=1) as pool:
            beside = pool.submit(tap_witness.listen, fleet, tokens.prefix)
            listening = everywhere(
                fleet,
                lab.guests,
                Instrument.listen,
                {label: {**base, **listen} for label, base in common.items()},
            )
            beside.result()
        _require_listeners(listening, ports)
        before = {} if attack else lost(fleet)
        results = _sent(fleet, send, probes, attack, tokens)
        finish = {
            label: {**base, "phase": "finish", **_awaited(fleet, label, tokens)}
            for label, base in common.items()
        }
        said = everywhere(fleet, lab.guests, Instrument.ask, finish)
        seen = tap_witness.collect(
            fleet, tokens.prefix
        )  # after the guests, so that all that they heard has passed their nodes
        if before:
            require_no_loss(before, lost(fleet))
    told, others = (
        {label: listed(answer, kind) for label, answer in said.items()} for kind in ("records", "strays")
    )
    answers = {
        mark: str(item.get("answer", "")) for found in results.values() for mark, item in found.items()
    }
    require_sent(probes, results)
    doubt = _doubt(fleet, said, Observation(tokens, told, answers), Observation(tokens, seen, answers))
    if doubt is not None and not doubts:
        raise doubt
    return Observation.compared(tokens, told, seen, answers, others, doubt)


def _sent(
    fleet: Fleet,
    send: Callable[..., dict[str, dict[str, Any]]],
    probes: Sequence[Probe],
    attack: Attack | None,
    tokens: Tokens,
) -> dict[str, dict[str, Record]]:
    """Send controls, then probes or an attack, then controls; return what became of each, by guest and
    mark.
    """
    phase = {"phase": "send", "budget": BUDGET}

    def script(label: str) -> list[Probe]:
        own = [probe for probe in probes if probe.sender.guest == label]
        return [*_controls(fleet, label, "before", tokens), *own, *_last_words(fleet, label, tokens)]

    if attack is None:
        return results_of(send(script, **phase))
    before = results_of(send(lambda label: _controls(fleet, label, "before", tokens), **phase))
    attackers = {probe.sender.guest for probe in attack.probes}
    with ThreadPoolExecutor(max_workers=1) as pool:
        going = {"phase": "stream", "duration": attack.seconds, "spacing": 0, "pause": _PAUSE}
        own = {
            label: [probe for probe in attack.probes if probe.sender.guest == label] for label in attackers
        }
        streams = pool.submit(lambda: send(own.__getitem__, attackers, **going))
        try:
            if attackers:
                _require_flowing(fleet, {probe.sender.mac for probe in attack.probes})
            attack.meanwhile(tokens)
        finally:
            send(lambda _: [], attackers, phase="halt")
            lasted = streams.result()
    short = [label for label, answer in lasted.items() if answer.get("halted") is not True]
    if short:
        raise broken(
            f"{', '.join(short)} did not attack all the time", str([lasted[label] for label in short])[:300]
        )
    after = results_of(send(lambda label: _last_words(fleet, label, tokens), **phase))
    return {label: {**before[label], **after[label]} for label in before}


def _require_flowing(fleet: Fleet, macs: set[str]) -> None:
    """Return when every interface that attacks is seen sending, by the counters of its node.

    Raises:
        InstrumentError: one is not within half a minute.
    """
    lab = fleet.testbed
    taps = {
        node.name: [nic.tap for guest in lab.guests_on(node.name) for nic in guest.nics if nic.mac in macs]
        for node in lab.nodes
    }
    fleet.everywhere(lambda node: await_frames(node, taps[node.name], _FLOWING, _PATIENCE))


def _transaction(tokens: Tokens, stage: str, endpoint: Endpoint) -> int:
    """Return the number of an interface's question to DHCP, which nobody else can guess."""
    return tokens.transaction(_TRANSACTIONS[stage], f"dhcp {stage} {endpoint.label}")


def _controls(fleet: Fleet, label: str, stage: str, tokens: Tokens) -> list[Probe]:
    """Return what must arrive: the declared flows, and an answer of the network to every interface."""
    lines = [use.probe(stage) for use in uses(fleet.testbed) if use.source.guest == label]
    own = [endpoint for endpoint in endpoints(fleet.testbed) if endpoint.guest == label]
    for number, endpoint in enumerate(own):
        question = dhcp_discover(endpoint.mac, _transaction(tokens, stage, endpoint))
        lines.append(Probe(f"dhcp{stage}{number}", endpoint, {"repeat": 2, "spacing": 0.05}, question))
    return lines


def _last_words(fleet: Fleet, label: str, tokens: Tokens) -> list[Probe]:
    """Return what a guest sends when the window after its last probe has been waited out: controls, so that
    nobody went deaf in it.

    What it tells of itself is told when the window begins and when it ends, since Linux changes no ARP entry
    twice within a second (arp(7), locktime).
    """
    told = _truths(fleet, label)
    first, *others = [
        *(replace(probe, mark=f"{probe.mark}again") for probe in told),
        *_controls(fleet, label, "after", tokens),
    ]
    return [*told, replace(first, fields={**first.fields, "delay": _SETTLING}), *others]


def _awaited(fleet: Fleet, label: str, tokens: Tokens) -> dict[str, object]:
    """Return what a guest's recorder waits for a while at the end: for every interface an answer of DHCP, or
    a declared flow.
    """
    own = [endpoint for endpoint in endpoints(fleet.testbed) if endpoint.guest == label]
    flows = [
        tokens.beginning(f"{use.mark}after")
        for use in uses(fleet.testbed)
        if label in (use.source.guest, use.target.guest)
    ]
    answers = [f"{_transaction(tokens, 'after', endpoint):08x}" for endpoint in own]
    return {"awaited": [[answer, *flows] for answer in answers], "patience": _HEARING}


def _truths(fleet: Fleet, label: str) -> list[Probe]:
    """Return what a guest tells the other ends of its flows of itself: while a wall is open, they may have
    believed lies.
    """
    told = []
    for number, (own, other) in (
        (number, pair) for number, pair in enumerate(ends(fleet.testbed)) if pair[0].guest == label
    ):
        link = Ether(src=own.mac, dst=other.mac)
        frames = {"arp": framed(link, arp_reply(own.mac, str(own.address), other))}
        if own.address6 and other.address6:
            head = IPv6(src=str(own.address6), dst=str(other.address6), hlim=255)
            frames["nd"] = framed(
                link, head, neighbor_advertisement(str(own.address6), own.mac, solicited_=1), tail=nd_option
            )
        told += [Probe(f"{TRUTH}{number}{kind}", own, {}, frame) for kind, frame in frames.items()]
    return told


def _require_listeners(answers: Mapping[str, Mapping[str, Any]], ports: Mapping[str, Sequence[int]]) -> None:
    wanted = {f"{protocol}/{port}" for protocol, found in ports.items() for port in found}
    for label, answer in answers.items():
        missing = wanted - {
            str(item) for item in answer.get("listening", []) if isinstance(answer.get("listening"), list)
        }
        unready = [
            nic for nic in listed(answer, "interfaces") if not nic.get("interface") or not nic.get("address")
        ]
        if answer.get("ready") is not True or missing or unready or not listed(answer, "interfaces"):
            raise broken(
                f"{label} cannot listen",
                f"missing: {sorted(missing)}, not ready: {unready}, {answer.get('error', '')}",
            )


def _doubt(
    fleet: Fleet, said: Mapping[str, Mapping[str, Any]], told: Observation, seen: Observation
) -> InstrumentError | None:
    """Return why guests' recorders cannot vouch for the whole window, if those of their nodes can.

    Raises:
        InstrumentError: neither can, or those of the nodes cannot.
    """
    doubt = None
    try:
        for label, answer in said.items():
            require_receiver(label, answer, self_test=True, down=[])
        _require_controls(fleet, told)
    except InstrumentError as error:
        doubt = error
    try:
        _require_controls(fleet, seen)
    except InstrumentError as error:
        raise doubt or broken(
            "a node's recorder did not hear the controls that guests heard", f"{error.what}: {error.fact}"
        ) from error
    return doubt


def _require_controls(fleet: Fleet, observation: Observation) -> None:
    for stage in _TRANSACTIONS:
        for use in uses(fleet.testbed):
            mark = f"{use.mark}{stage}"
            if observation.answers.get(mark) != f"ok-{observation.token(mark)}" or not observation.arrived(
                mark, use.target.guest
            ):
                raise broken(
                    f"the declared flow {use} does not work {stage} the probes",
                    f"answer: {observation.answers.get(mark)!r}",
                )
        tokens = {observation.token(f"{use.mark}{stage}") for use in uses(fleet.testbed)}
        for endpoint in endpoints(fleet.testbed):
            transaction = f"{_transaction(observation.tokens, stage, endpoint):08x}"
            if not _heard(endpoint, observation.records[endpoint.guest], tokens, transaction):
                what = f"{endpoint.label} heard nothing {stage} the probes"
                raise broken(what, "neither an answer of the network's DHCP nor a declared flow")


def _heard(endpoint: Endpoint, records: Sequence[Record], tokens: set[str], transaction: str) -> bool:
    """Tell whether a receiver's recorder heard a control on an interface: an answer of DHCP, or a declared
    flow.
    """
    for record in records:
        if record.get("label") == endpoint.interface:
            answer = record.get("kind") == "dhcp" and record.get("token") == transaction
            if answer or record.get("token") in tokens:
                return True
    return False
