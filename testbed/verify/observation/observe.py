"""Network probes: every guest listens, sends and is watched, in three requests to each.

A missing frame counts only if the receiver's recorder and its node's recorder ran for the whole window,
lost nothing, and recorded controls before and after it, in the same run and with the same tool
(docs/design.md, section 6).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from testbed import timeouts
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
    Probe,
    ProbeClient,
    Record,
    everywhere,
    inconclusive,
    lines,
    listed,
    one_observation,
    require_receiver,
    require_sent,
    results_of,
)
from testbed.verify.probe.frames import arp_reply, dhcp_discover, framed, nd_option, neighbor_advertisement
from testbed.verify.probe.requests import Finish, Listen, Request, Send, Signal, Stream
from testbed.verify.probe.tokens import Tokens

_FLOWING = 5  # frames; more than a guest sends by itself
# seconds between two rounds of an attacking guest; the pause leaves CPU time for services that restart
_PAUSE = 0.4
_SETTLING = max(
    WINDOW, 1.2
)  # seconds between a guest's last probe and its last controls; no less than Linux's locktime
_HEARING = 3.0  # seconds until the last controls must be recorded; a node that was just flooded answers late
_TRANSACTIONS = {"before": 1, "after": 2}  # first octet of a DHCP transaction
_PATIENCE = timeouts.SEEN_SENDING


@dataclass(frozen=True, slots=True)
class Attack:
    """Frames that guests send repeatedly during an event, all of them about twice a second.

    Args:
        seconds: after how long they give up, if the event has not ended by then.
        meanwhile: causes the event; its argument is the tokens of this observation.
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
    """Send probes between controls, while each guest and its node record its frames.

    Args:
        attack: replaces the single probes between the controls.
        strays: whether to keep received frames from MAC addresses of no guest.
        doubts: whether a guest that cannot vouch for the window is a doubt for `require_agreement`, instead
            of an error, since its node may have recorded a forbidden frame.

    Raises:
        InstrumentError: an instrument was missing or died, a control failed, or a switch lost frames of
            single probes: then nothing was observed.
    """
    topology, tokens = fleet.topology, Tokens.fresh()
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
        for guest in topology.guests
    }
    ports = probed_ports(topology)

    def send(
        request: Callable[[str], Request], only: Collection[str] = interfaces
    ) -> dict[str, dict[str, Any]]:
        asked = [guest for guest in topology.guests if guest.label in only]
        return everywhere(fleet, asked, ProbeClient.ask, {label: request(label) for label in only})

    with one_observation(fleet):
        known = sorted({endpoint.mac for endpoint in endpoints(topology)}) if strays else []
        listen: dict[str, Request] = {
            label: Listen(
                phase="listen",
                token=tokens.prefix,
                interfaces=nics,
                patience=60,
                known=known,
                tcp=ports.get("tcp", ()),
                udp=ports.get("udp", ()),
            )
            for label, nics in interfaces.items()
        }
        with ThreadPoolExecutor(max_workers=1) as pool:
            beside = pool.submit(tap_witness.listen, fleet, tokens.prefix)
            listening = everywhere(fleet, topology.guests, ProbeClient.listen, listen)
            beside.result()
        _require_listeners(listening, ports)
        before = {} if attack else lost(fleet)
        results = _sent(fleet, send, probes, attack, tokens)
        finish: dict[str, Request] = {label: _finish(fleet, label, tokens) for label in interfaces}
        said = everywhere(fleet, topology.guests, ProbeClient.ask, finish)
        seen = tap_witness.collect(
            fleet, tokens.prefix
        )  # after the guests, so that nodes have recorded every frame that guests have
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
    """Send controls, then probes or an attack, then controls; return results by guest and mark."""

    def script(label: str) -> list[Probe]:
        own = [probe for probe in probes if probe.sender.guest == label]
        return [*_controls(fleet, label, "before", tokens), *own, *_last_words(fleet, label, tokens)]

    def sent(script: Callable[[str], list[Probe]]) -> dict[str, dict[str, Record]]:
        return results_of(
            send(lambda label: Send(phase="send", budget=BUDGET, probes=lines(script(label), tokens)))
        )

    if attack is None:
        return sent(script)

    def stream(label: str) -> Stream:
        own = [probe for probe in attack.probes if probe.sender.guest == label]
        found = lines(own, tokens)
        return Stream(phase="stream", probes=found, duration=attack.seconds, spacing=0, pause=_PAUSE)

    before = sent(lambda label: _controls(fleet, label, "before", tokens))
    attackers = {probe.sender.guest for probe in attack.probes}
    with ThreadPoolExecutor(max_workers=1) as pool:
        streams = pool.submit(lambda: send(stream, attackers))
        try:
            if attackers:
                _require_flowing(fleet, {probe.sender.mac for probe in attack.probes})
            attack.meanwhile(tokens)
        finally:
            send(lambda _: Signal(phase="halt"), attackers)
            lasted = streams.result()
    short = [label for label, answer in lasted.items() if answer.get("halted") is not True]
    if short:
        raise inconclusive(
            f"{', '.join(short)} did not attack all the time", str([lasted[label] for label in short])[:300]
        )
    after = sent(lambda label: _last_words(fleet, label, tokens))
    return {label: {**before[label], **after[label]} for label in before}


def _require_flowing(fleet: Fleet, macs: set[str]) -> None:
    """Wait until the node's counters show every attacking interface sending.

    Raises:
        InstrumentError: an interface does not send within half a minute.
    """
    topology = fleet.topology
    taps = {
        node.name: [
            nic.tap for guest in topology.guests_on(node.name) for nic in guest.nics if nic.mac in macs
        ]
        for node in topology.nodes
    }
    fleet.everywhere(lambda node: await_frames(node, taps[node.name], _FLOWING, _PATIENCE))


def _transaction(tokens: Tokens, stage: str, endpoint: Endpoint) -> int:
    """Return the number of an interface's DHCP transaction, which no other guest can guess."""
    return tokens.transaction(_TRANSACTIONS[stage], f"dhcp {stage} {endpoint.label}")


def _controls(fleet: Fleet, label: str, stage: str, tokens: Tokens) -> list[Probe]:
    """Return the probes that must arrive: declared flows, and a DHCP discover of each interface."""
    lines = [use.probe(stage) for use in uses(fleet.topology) if use.source.guest == label]
    own = [endpoint for endpoint in endpoints(fleet.topology) if endpoint.guest == label]
    for number, endpoint in enumerate(own):
        question = dhcp_discover(endpoint.mac, _transaction(tokens, stage, endpoint))
        lines.append(Probe(f"dhcp{stage}{number}", endpoint, {"repeat": 2, "spacing": 0.05}, question))
    return lines


def _last_words(fleet: Fleet, label: str, tokens: Tokens) -> list[Probe]:
    """Return a guest's probes for the end: controls after the window of its last probe.

    They show that every receiver still worked. Announcements are sent at the beginning and at the end of
    the window, since Linux changes no ARP entry twice within a second (arp(7), locktime).
    """
    told = _truths(fleet, label)
    first, *others = [
        *(replace(probe, mark=f"{probe.mark}again") for probe in told),
        *_controls(fleet, label, "after", tokens),
    ]
    return [*told, replace(first, fields={**first.fields, "delay": _SETTLING}), *others]


def _finish(fleet: Fleet, label: str, tokens: Tokens) -> Finish:
    """Return the last request to a guest's recorder.

    The recorder waits for a DHCP answer or a declared flow at every interface.
    """
    own = [endpoint for endpoint in endpoints(fleet.topology) if endpoint.guest == label]
    flows = [
        tokens.beginning(f"{use.mark}after")
        for use in uses(fleet.topology)
        if label in (use.source.guest, use.target.guest)
    ]
    answers = [f"{_transaction(tokens, 'after', endpoint):08x}" for endpoint in own]
    awaited = [[answer, *flows] for answer in answers]
    return Finish(phase="finish", token=tokens.prefix, awaited=awaited, patience=_HEARING)


def _truths(fleet: Fleet, label: str) -> list[Probe]:
    """Return announcements of a guest's addresses to the other ends of its flows.

    They repair neighbour caches that an open wall may have let others poison.
    """
    told = []
    for number, (own, other) in (
        (number, pair) for number, pair in enumerate(ends(fleet.topology)) if pair[0].guest == label
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
        ports_of = answer.get("listening")
        missing = wanted - {str(item) for item in ports_of} if isinstance(ports_of, list) else wanted
        unready = [
            nic for nic in listed(answer, "interfaces") if not nic.get("interface") or not nic.get("address")
        ]
        if answer.get("ready") is not True or missing or unready or not listed(answer, "interfaces"):
            raise inconclusive(
                f"{label} cannot listen",
                f"missing: {sorted(missing)}, not ready: {unready}, {answer.get('error', '')}",
            )


def _doubt(
    fleet: Fleet, said: Mapping[str, Mapping[str, Any]], told: Observation, seen: Observation
) -> InstrumentError | None:
    """Return why guests' recorders cannot vouch for the window, if those of their nodes can.

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
        raise doubt or inconclusive(
            "a node's recorder did not hear the controls that guests heard", f"{error.what}: {error.fact}"
        ) from error
    return doubt


def _require_controls(fleet: Fleet, observation: Observation) -> None:
    for stage in _TRANSACTIONS:
        for use in uses(fleet.topology):
            mark = f"{use.mark}{stage}"
            if observation.answers.get(mark) != f"ok-{observation.token(mark)}" or not observation.arrived(
                mark, use.target.guest
            ):
                raise inconclusive(
                    f"the declared flow {use} does not work {stage} the probes",
                    f"answer: {observation.answers.get(mark)!r}",
                )
        tokens = {observation.token(f"{use.mark}{stage}") for use in uses(fleet.topology)}
        for endpoint in endpoints(fleet.topology):
            transaction = f"{_transaction(observation.tokens, stage, endpoint):08x}"
            if not _heard(endpoint, observation.records[endpoint.guest], tokens, transaction):
                what = f"{endpoint.label} heard nothing {stage} the probes"
                raise inconclusive(what, "neither an answer of the network's DHCP nor a declared flow")


def _heard(endpoint: Endpoint, records: Sequence[Record], tokens: set[str], transaction: str) -> bool:
    """Return whether a recorder heard a DHCP answer or a declared flow on an interface."""
    for record in records:
        if record.get("label") == endpoint.interface:
            answer = record.get("kind") == "dhcp" and record.get("token") == transaction
            if answer or str(record.get("token")) in tokens:
                return True
    return False
