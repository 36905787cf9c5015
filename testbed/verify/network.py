"""Network probes: every guest listens, sends and is watched, with three questions to each guest whatever their number.

A frame that did not arrive counts only if the receiver's recorder lived through the whole window, lost
nothing, and heard something with the same tool in the same run, before and after (DESIGN.md, section 6).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from testbed.model.policy import Endpoint, endpoints, probed_ports
from testbed.verify.counters import await_frames
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.flows import ends, uses
from testbed.verify.frames import arp_reply, dhcp_discover, framed, nd_option, neighbor_advertisement
from testbed.verify.observation import TRUTH, Observation
from testbed.verify.probing import (
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

_FLOWING = 5  # frames that tell an attack from a guest that says something of its own
_PAUSE = 0.4  # seconds between two rounds of a guest that attacks; a guest that never sleeps keeps what starts anew from doing so
_SETTLING = max(WINDOW, 1.2)  # seconds between a guest's last probe and its last words; no less than Linux's locktime
_HEARING = 3.0  # seconds that the last controls may take to be heard; a node that was just flooded answers late
_TRANSACTIONS = {"before": 1, "after": 2}  # first octet of a DHCP transaction
_UPCALLS = re.compile(r"\blost:(\d+)")  # packets that waited for a rule in vain, ovs-dpctl(8)
_DROPPED = re.compile(r"^/sys/class/net/([^/\s]+)/statistics/tx_dropped:(\d+)$", re.M)
_PATIENCE = 30.0  # seconds that guests may take to be seen sending


@dataclass(frozen=True, slots=True)
class Attack:
    """Frames that guests send over and over while something happens, all of them about twice a second.

    Args:
        seconds: after how long they give up, if what happens has not ended by then.
        meanwhile: what happens; it is told how the tokens of this observation begin.
    """

    probes: Sequence[Probe]
    seconds: float
    meanwhile: Callable[[str], None]


def observe(fleet: Fleet, probes: Sequence[Probe], attack: Attack | None = None, *, strays: bool = False) -> Observation:
    """Send probes from their senders, with controls around them, while every guest is watched.

    Args:
        attack: what goes on between the controls instead of single probes.
        strays: whether to keep what comes in from MAC addresses that are no guest's.

    Raises:
        InstrumentError: an instrument was not there, died, or a control failed, or a switch lost frames of single probes:
            then nothing was observed.
    """
    lab, prefix = fleet.testbed, f"tb-{secrets.token_hex(4)}-"
    interfaces = {
        guest.label: [
            {"label": nic.network, "mac": nic.mac, "address": str(nic.address), "address6": str(nic.address6 or "")} for nic in guest.nics
        ]
        for guest in lab.guests
    }
    common: dict[str, dict[str, object]] = {label: {"token": prefix, "interfaces": nics} for label, nics in interfaces.items()}
    ports = probed_ports(lab)

    def send(script: Callable[[str], list[Probe]], only: Collection[str] = common, **phase: object) -> dict[str, dict[str, Any]]:
        requests = {label: {**common[label], **phase, "probes": lines(script(label), prefix)} for label in only}
        return everywhere(fleet, [guest for guest in lab.guests if guest.label in only], Instrument.ask, requests)

    with one_observation(fleet):
        known = sorted({endpoint.mac for endpoint in endpoints(lab)}) if strays else []
        listen = {"phase": "listen", "patience": 60, "known": known, **ports}
        listening = everywhere(fleet, lab.guests, Instrument.listen, {label: {**base, **listen} for label, base in common.items()})
        _require_listeners(listening, ports)
        lost = {} if attack else _lost(fleet)
        results = _sent(fleet, send, probes, (attack, prefix) if attack else None)
        finish = {label: {**base, "phase": "finish", **_awaited(fleet, label, prefix)} for label, base in common.items()}
        seen = everywhere(fleet, lab.guests, Instrument.ask, finish)
        if lost:
            _require_no_loss(lost, _lost(fleet))
    records = {label: listed(answer, "records") for label, answer in seen.items()}
    for label, answer in seen.items():
        require_receiver(label, answer, self_test=True, down=[])
    answers = {mark: str(item.get("answer", "")) for found in results.values() for mark, item in found.items()}
    observation = Observation(prefix, records, answers, {label: listed(answer, "strays") for label, answer in seen.items()})
    require_sent(probes, results)
    _require_controls(fleet, observation)
    return observation


def arrived_so_far(fleet: Fleet, prefix: str, marks: Sequence[str]) -> set[str]:
    """Return which of some probes have been seen coming in anywhere, while an observation goes on.

    Args:
        prefix: how the observation's tokens begin.

    Raises:
        InstrumentError: a guest does not tell.
    """
    tokens = {f"{prefix}{mark}.": mark for mark in marks}
    request = {"phase": "glance", "token": prefix, "tokens": list(tokens)}
    found = everywhere(fleet, fleet.testbed.guests, Instrument.ask, {guest.label: request for guest in fleet.testbed.guests})
    for label, answer in found.items():
        if not isinstance(answer.get("seen"), list):
            raise broken(f"{label} does not tell what has come in so far", str(answer)[:200])
    return {tokens[token] for answer in found.values() for token in map(str, answer["seen"]) if token in tokens}


def _sent(
    fleet: Fleet, send: Callable[..., dict[str, dict[str, Any]]], probes: Sequence[Probe], attacked: tuple[Attack, str] | None
) -> dict[str, dict[str, Record]]:
    """Send controls, then probes or an attack, then controls; return what became of each, by guest and mark."""
    phase = {"phase": "send", "budget": BUDGET}

    def script(label: str) -> list[Probe]:
        own = [probe for probe in probes if probe.sender.guest == label]
        return [*_controls(fleet, label, "before"), *own, *_last_words(fleet, label)]

    if attacked is None:
        return results_of(send(script, **phase))
    attack, prefix = attacked
    before = results_of(send(lambda label: _controls(fleet, label, "before"), **phase))
    attackers = {probe.sender.guest for probe in attack.probes}
    with ThreadPoolExecutor(max_workers=1) as pool:
        going = {"phase": "stream", "duration": attack.seconds, "spacing": 0, "pause": _PAUSE}
        own = {label: [probe for probe in attack.probes if probe.sender.guest == label] for label in attackers}
        streams = pool.submit(lambda: send(own.__getitem__, attackers, **going))
        try:
            if attackers:
                _require_flowing(fleet, {probe.sender.mac for probe in attack.probes})
            attack.meanwhile(prefix)
        finally:
            send(lambda _: [], attackers, phase="halt")
            lasted = streams.result()
    short = [label for label, answer in lasted.items() if answer.get("halted") is not True]
    if short:
        raise broken(f"{', '.join(short)} did not attack all the time", str([lasted[label] for label in short])[:300])
    after = results_of(send(lambda label: _last_words(fleet, label), **phase))
    return {label: {**before[label], **after[label]} for label in before}


def _lost(fleet: Fleet) -> dict[str, dict[str, int]]:
    """Return how many packets each node has lost by crowding so far: on the way to its switch's rules, and to its guests."""
    return fleet.everywhere(lambda node: _lost_by(node, [nic.tap for guest in fleet.testbed.guests_on(node.name) for nic in guest.nics]))


def _lost_by(machine: Machine, taps: Sequence[str]) -> dict[str, int]:
    counters = " ".join(f"/sys/class/net/{tap}/statistics/tx_dropped" for tap in taps)
    text = machine.read(f"ovs-appctl dpctl/show; grep -H . {counters or '/dev/null'} || true")
    upcalls, frames = _UPCALLS.findall(text), dict(_DROPPED.findall(text))
    if not upcalls or frames.keys() != set(taps):
        raise broken(f"{machine.name} does not tell what its switch has lost", repr(text[:200]))
    return {"upcalls": sum(map(int, upcalls)), **{tap: int(count) for tap, count in frames.items()}}


def _require_no_loss(before: Mapping[str, Mapping[str, int]], after: Mapping[str, Mapping[str, int]]) -> None:
    """Return if no switch has lost anything meanwhile: a frame that must not arrive is sent once, and only a wall may stop it.

    Raises:
        InstrumentError: one has.
    """
    for node, counts in after.items():
        grown = {name: count - before[node].get(name, 0) for name, count in counts.items() if count != before[node].get(name, 0)}
        if grown:
            raise broken(f"{node} lost frames by crowding, not by a wall", str(grown))


def _require_flowing(fleet: Fleet, macs: set[str]) -> None:
    """Return when every interface that attacks is seen sending, by the counters of its node.

    Raises:
        InstrumentError: one is not within half a minute.
    """
    lab = fleet.testbed
    taps = {node.name: [nic.tap for guest in lab.guests_on(node.name) for nic in guest.nics if nic.mac in macs] for node in lab.nodes}
    fleet.everywhere(lambda node: await_frames(node, taps[node.name], _FLOWING, _PATIENCE))


def _controls(fleet: Fleet, label: str, stage: str) -> list[Probe]:
    """Return what must arrive: the declared flows, and an answer of the network to every interface."""
    lines = [use.probe(stage) for use in uses(fleet.testbed) if use.source.guest == label]
    own = [endpoint for endpoint in endpoints(fleet.testbed) if endpoint.guest == label]
    for number, endpoint in enumerate(own):
        question = dhcp_discover(endpoint.mac, _TRANSACTIONS[stage] << 24 | number)
        lines.append(Probe(f"dhcp{stage}{number}", endpoint, {"repeat": 2, "spacing": 0.05}, question))
    return lines


def _last_words(fleet: Fleet, label: str) -> list[Probe]:
    """Return what a guest sends when the window after its last probe has been waited out: controls, so that nobody went deaf in it.

    What it tells of itself is told when the window begins and when it ends, since Linux changes no ARP entry twice within a
    second (arp(7), locktime).
    """
    told = _truths(fleet, label)
    first, *others = [*(replace(probe, mark=f"{probe.mark}again") for probe in told), *_controls(fleet, label, "after")]
    return [*told, replace(first, fields={**first.fields, "delay": _SETTLING}), *others]


def _awaited(fleet: Fleet, label: str, prefix: str) -> dict[str, object]:
    """Return what a guest's recorder waits for a while at the end: for every interface an answer of DHCP, or a declared flow."""
    own = [endpoint for endpoint in endpoints(fleet.testbed) if endpoint.guest == label]
    flows = [f"{prefix}{use.mark}after." for use in uses(fleet.testbed) if label in (use.source.guest, use.target.guest)]
    answers = [f"{_TRANSACTIONS['after'] << 24 | number:08x}" for number, _ in enumerate(own)]
    return {"awaited": [[answer, *flows] for answer in answers], "patience": _HEARING}


def _truths(fleet: Fleet, label: str) -> list[Probe]:
    """Return what a guest tells the other ends of its flows of itself: while a wall is open, they may have believed lies."""
    told = []
    for number, (own, other) in enumerate(ends(fleet.testbed, label)):
        link = Ether(src=own.mac, dst=other.mac)
        frames = {"arp": framed(link, arp_reply(own.mac, str(own.address), other))}
        if own.address6 and other.address6:
            head = IPv6(src=str(own.address6), dst=str(other.address6), hlim=255)
            frames["nd"] = framed(link, head, neighbor_advertisement(str(own.address6), own.mac, solicited_=1), tail=nd_option)
        told += [Probe(f"{TRUTH}{number}{kind}", own, {}, frame) for kind, frame in frames.items()]
    return told


def _require_listeners(answers: Mapping[str, Mapping[str, Any]], ports: Mapping[str, Sequence[int]]) -> None:
    wanted = {f"{protocol}/{port}" for protocol, found in ports.items() for port in found}
    for label, answer in answers.items():
        missing = wanted - {str(item) for item in answer.get("listening", []) if isinstance(answer.get("listening"), list)}
        unready = [nic for nic in listed(answer, "interfaces") if not nic.get("interface") or not nic.get("address")]
        if answer.get("ready") is not True or missing or unready or not listed(answer, "interfaces"):
            raise broken(f"{label} cannot listen", f"missing: {sorted(missing)}, not ready: {unready}, {answer.get('error', '')}")


def _require_controls(fleet: Fleet, observation: Observation) -> None:
    for stage, transactions in _TRANSACTIONS.items():
        for use in uses(fleet.testbed):
            mark = f"{use.mark}{stage}"
            if observation.answers.get(mark) != f"ok-{observation.token(mark)}" or not observation.arrived(mark, use.target.guest):
                raise broken(f"the declared flow {use} does not work {stage} the probes", f"answer: {observation.answers.get(mark)!r}")
        tokens = {observation.token(f"{use.mark}{stage}") for use in uses(fleet.testbed)}
        for endpoint in endpoints(fleet.testbed):
            if not _heard(endpoint, observation.records[endpoint.guest], tokens, transactions):
                what = f"{endpoint.label} heard nothing {stage} the probes"
                raise broken(what, "neither an answer of the network's DHCP nor a declared flow")


def _heard(endpoint: Endpoint, records: Sequence[Record], tokens: set[str], transactions: int) -> bool:
    """Tell whether a receiver's recorder heard a control on an interface: an answer of DHCP, or a declared flow."""
    for record in records:
        if record.get("label") == endpoint.interface:
            answer = record.get("kind") == "dhcp" and str(record.get("token")).startswith(f"{transactions:02x}")
            if answer or record.get("token") in tokens:
                return True
    return False
