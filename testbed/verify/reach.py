"""Who reaches whom, observed with frames in the guests: the host's side of `testbed.guest.probe`.

A constant number of agent calls per guest. What guests answer is untrusted: only well-formed parts count,
and what is missing makes a cell inconclusive, never a pass (DESIGN.md, section 6).
"""

from __future__ import annotations

import json
import secrets
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from typing import Any

from testbed.errors import InstrumentError
from testbed.model.policy import Cell, Endpoint, ReachMatrix, endpoints, joined, probed_ports
from testbed.model.testbed import AllowedFlow, Testbed

Request = dict[str, Any]
Executor = Callable[[str, str, Request], Request]
BEFORE, AFTER = "b", "a"
_WORKERS, _LIFE, _REPEAT = 8, 3600, 2
_FIELDS = ("kind", "token", "mac", "ip", "target", "label", "direction")
_RAW = {"arp": "arp", "icmp": "icmp", "tcp": "tcp-syn", "udp": "udp"}
_ORDINARY = {"icmp": "icmp", "tcp": "tcp-connect", "udp": "udp-ask"}


@dataclass(frozen=True, slots=True)
class Record:
    """A frame or message that a guest's recorder has seen; ``label`` is the network of the interface."""

    kind: str
    token: str
    mac: str
    ip: str
    target: str
    label: str
    direction: str


@dataclass(frozen=True)
class Receiver:
    """A guest's recorder.

    Args:
        alive: it answered at the end, saw its own test frames, and the kernel dropped nothing.
        reason: why it is not alive.
        listening: services with a live listener, such as ``tcp/5432``.
        heard: networks on which a control of this run came in, before and after.
        spoke: networks from which a control of this run went out and was answered, before and after.
    """

    alive: bool
    reason: str
    listening: frozenset[str]
    heard: frozenset[str]
    spoke: frozenset[str]
    records: frozenset[Record]

    @property
    def heard_control(self) -> bool:
        """Tell whether the recorder received a control on any of its networks."""
        return bool(self.heard)


@dataclass(frozen=True, slots=True)
class Sight:
    """What became of one probe.

    Args:
        arrived: seen coming in on the target's own interface.
        answered: an ARP or ICMP answer in the target's name came back to the source.
        witnesses: every guest that saw it come in, intended or not.
    """

    sent: bool
    error: str
    arrived: bool
    answered: bool
    witnesses: tuple[str, ...]


@dataclass(frozen=True)
class ReachObservation:
    """What was observed of a whole matrix."""

    sights: Mapping[Cell, Sight]
    controls_before: Mapping[AllowedFlow, bool]
    controls_after: Mapping[AllowedFlow, bool]
    receivers: Mapping[str, Receiver]


def new_token() -> str:
    """Return a token for one run."""
    return f"tb-{secrets.token_hex(5)}-"


def compose(request: Request) -> bytes:
    """Return the program to feed to ``python3 -`` in a guest: the probe with its request at the end."""
    source = resources.files("testbed.guest").joinpath("probe.py").read_text()
    return f"{source}\n\nraise SystemExit(main(json.loads({json.dumps(request)!r})))\n".encode()


def run_phase(
    executor: Executor, phase: str, guests: Iterable[str], make_request: Callable[[str], Request]
) -> dict[str, Request]:
    """Run a phase in several guests at once; a guest that cannot is given an answer with its ``error``."""

    def one(guest: str) -> Request:
        try:
            answer = executor(guest, phase, {"phase": phase, **make_request(guest)})
        except InstrumentError as error:
            return {"error": f"{error.what}: {error.fact}"}
        return answer if isinstance(answer, dict) else {"error": "the guest answered no object"}

    names = list(guests)
    with ThreadPoolExecutor(_WORKERS) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


class Run:
    """One run of the recorders in some guests: probes go in, receivers come out.

    Args:
        token: prefix of every token of the run, from `new_token`.
    """

    def __init__(self, lab: Testbed, executor: Executor, token: str, guests: Iterable[str]) -> None:
        self.executor, self.token, self.guests = executor, token, tuple(guests)
        self.ports = probed_ports(lab)
        self.members = {guest: [item for item in endpoints(lab) if item.guest == guest] for guest in self.guests}
        self.flows = [item for item in joined(lab) if item[1].guest in self.members and item[2].guest in self.members]
        self.results: dict[str, tuple[bool, str, str]] = {}
        self.ready: dict[str, Request] = {}
        self.receivers: dict[str, Receiver] = {}

    def phase(self, name: str, extra: Callable[[str], Request] = lambda _: {}) -> dict[str, Request]:
        """Run a phase in every guest of the run."""
        return run_phase(self.executor, name, self.guests, lambda guest: {**self._base(guest), **extra(guest)})

    def _base(self, guest: str) -> Request:
        nics = [{"label": nic.network, "mac": nic.mac, "address": str(nic.address)} for nic in self.members[guest]]
        return {"token": self.token, "interfaces": nics}

    def listen(self) -> None:
        """Start every recorder, with listeners on every probed port."""
        ports = {protocol: list(numbers) for protocol, numbers in self.ports.items()}
        self.ready = self.phase("listen", lambda _: {"window": _LIFE, "patience": 20, **ports})

    def send(self, probes: Iterable[tuple[Endpoint, Request]]) -> None:
        """Send probes, each from its endpoint; results are kept by id."""
        batches: dict[str, list[Request]] = {guest: [] for guest in self.guests}
        for source, probe in probes:
            own = {"mac": source.mac, "address": str(source.address), "token": f"{self.token}{probe['id']}."}
            batches[source.guest].append({**own, **probe})
        for guest, answer in self.phase("send", lambda guest: {"probes": batches[guest]}).items():
            found = {item.get("id"): item for item in _objects(answer.get("results"))}
            for probe in batches[guest]:
                item = found.get(probe["id"], {"error": answer.get("error", "the guest did not report it")})
                result = (item.get("sent") is True, str(item.get("error", ""))[:200], str(item.get("answer", ""))[:200])
                self.results[probe["id"]] = result

    def send_controls(self, stage: str) -> None:
        """Use every declared flow, and ask every network's DHCP, which answers any guest."""
        probes = [(nic, self._dhcp(stage, nic)) for nics in self.members.values() for nic in nics]
        for number, (flow, source, target) in enumerate(self.flows):
            probe = {"id": f"{stage}-{number}", "kind": _ORDINARY[flow.protocol], "port": flow.port, "repeat": 3}
            probes.append((source, {**probe, **_aim(target), "spacing": 0.5}))
        self.send(probes)

    def _dhcp(self, stage: str, nic: Endpoint) -> Request:
        number = self.transaction(stage, nic)
        return {"id": f"{stage}-dhcp-{number}", "kind": "dhcp", "transaction": number, "repeat": _REPEAT, "spacing": 0.5}

    def transaction(self, stage: str, nic: Endpoint) -> str:
        """Return the DHCP transaction id (8 hexadecimal digits) of an endpoint's control."""
        return f"{zlib.crc32(f'{self.token}{stage}{nic.label}'.encode()):08x}"

    def finish(self, window: float) -> None:
        """Wait out the window (seconds) after the last probe, then ask every recorder what it saw."""
        threading.Event().wait(window)
        answers = self.phase("collect")
        for guest, answer in answers.items():
            reason = _why_dead(self.ready.get(guest, {}), answer)
            listening = frozenset(str(item) for item in _list(self.ready.get(guest, {}).get("listening")))
            none: frozenset[str] = frozenset()
            self.receivers[guest] = Receiver(not reason, reason, listening, none, none, _records(answer))
        for guest, nics in self.members.items():
            heard = frozenset(nic.network for nic in nics if all(self._heard(stage, nic) for stage in (BEFORE, AFTER)))
            spoke = frozenset(nic.network for nic in nics if all(self._spoke(stage, nic) for stage in (BEFORE, AFTER)))
            self.receivers[guest] = replace(self.receivers[guest], heard=heard, spoke=spoke)

    def incoming(self, nic: Endpoint) -> list[Record]:
        """Return what came in at an endpoint."""
        receiver = self.receivers[nic.guest]
        return [item for item in receiver.records if item.label == nic.network and item.direction == "in"]

    def _leased(self, stage: str, nic: Endpoint) -> bool:
        return any(item.kind == "dhcp" and item.token == self.transaction(stage, nic) for item in self.incoming(nic))

    def _heard(self, stage: str, nic: Endpoint) -> bool:
        start = f"{self.token}{stage}-"
        return self._leased(stage, nic) or any(item.token.startswith(start) for item in self.incoming(nic))

    def _spoke(self, stage: str, nic: Endpoint) -> bool:
        ends = [(number, ends) for number, (_, *ends) in enumerate(self.flows) if nic in ends]
        return self._leased(stage, nic) or any(self._succeeded(stage, number) for number, _ in ends)

    def _succeeded(self, stage: str, number: int) -> bool:
        flow, source, _ = self.flows[number]
        token = f"{self.token}{stage}-{number}."
        if flow.protocol == "icmp":
            return any(item.kind == "icmp-reply" and item.token == token for item in self.incoming(source))
        return self.results.get(f"{stage}-{number}", (False, "", ""))[2] == f"ok-{token}"

    def controls(self, stage: str) -> dict[AllowedFlow, bool]:
        """Return whether each declared flow worked, on every network that it exists on."""
        worked: dict[AllowedFlow, bool] = {}
        for number, (flow, _, _) in enumerate(self.flows):
            worked[flow] = worked.get(flow, True) and self._succeeded(stage, number)
        return worked

    @cached_property
    def _incoming_tokens(self) -> dict[str, set[tuple[str, str]]]:
        found: dict[str, set[tuple[str, str]]] = {}
        for guest, receiver in self.receivers.items():
            for item in receiver.records:
                if item.direction == "in" and item.token and item.kind not in ("icmp-reply", "icmp-error"):
                    found.setdefault(item.token, set()).add((guest, item.label))
        return found

    def sight(self, name: str, source: Endpoint, target: Endpoint, protocol: str) -> Sight:
        """Return what became of the probe with an id."""
        sent, error, _ = self.results.get(name, (False, "the probe was never handed over", ""))
        token = f"{self.token}{name}."
        seen = self._incoming_tokens.get(token, set())
        answered = any(item.kind == "icmp-reply" and item.token == token for item in self.incoming(source))
        if protocol == "arp":
            question = ("arp-request", source.mac, str(target.address))
            seen = {
                (guest, item.label)
                for guest, receiver in self.receivers.items()
                for item in receiver.records
                if item.direction == "in" and (item.kind, item.mac, item.target) == question
            }
            answer = ("arp-reply", target.mac, str(target.address))
            answered = any((item.kind, item.mac, item.ip) == answer for item in self.incoming(source))
        arrived = (target.guest, target.network) in seen
        return Sight(sent, error, arrived, answered, tuple(sorted({guest for guest, _ in seen})))


def observe_reach(
    lab: Testbed, matrix: ReachMatrix, executor: Executor, token: str, window: float
) -> ReachObservation:
    """Try every cell of a matrix with frames of its own, between two rounds of controls.

    Args:
        token: from `new_token`.
        window: seconds that recorders still listen after the last probe.
    """
    run = Run(lab, executor, token, [guest.label for guest in lab.guests])
    try:
        run.listen()
        run.send_controls(BEFORE)
        run.send(probe for number, cell in enumerate(matrix.cells) for probe in _probes(number, cell))
        run.send_controls(AFTER)
        run.finish(window)
    finally:
        run.phase("stop")
    cells = enumerate(matrix.cells)
    sights = {cell: run.sight(f"c{number}", cell.source, cell.target, cell.protocol) for number, cell in cells}
    return ReachObservation(sights, run.controls(BEFORE), run.controls(AFTER), run.receivers)


@dataclass(frozen=True, slots=True)
class Spoof:
    """A false sender, at the Ethernet layer, the IP layer or both.

    Args:
        decisive: the access rules alone would let it pass, so that only the pinning of the port stops it.
    """

    name: str
    mac: str | None
    address: str | None
    decisive: bool


@dataclass(frozen=True)
class SpoofObservation:
    """What became of frames with false senders on an allowed flow; ``before`` and ``after`` are true ones."""

    source: Endpoint
    target: Endpoint
    service: str
    sights: Mapping[Spoof, Sight]
    before: bool
    after: bool
    receivers: Mapping[str, Receiver]


def mac_variants(source: Endpoint, target: Endpoint, peers: Iterable[Endpoint] = ()) -> tuple[Spoof, ...]:
    """Return false MAC addresses (NET-02): a random one, the target's, and those of peers."""
    octets = bytes((0x0A, *secrets.token_bytes(5)))
    random = Spoof("a random MAC", octets.hex(":"), None, decisive=True)
    others = [peer for peer in (target, *peers) if peer.mac != source.mac]
    return (random, *(Spoof(f"the MAC of {peer.label}", peer.mac, None, decisive=True) for peer in others))


def address_variants(lab: Testbed, flow: AllowedFlow, source: Endpoint) -> tuple[Spoof, ...]:
    """Return false IPv4 sources (NET-04): members of the network, DHCP server, management gateway, none at all.

    Only a member with the same flow to the same target is decisive; rules at the target stop the others too.
    """
    same = {item.source for item in lab.tenant(flow.tenant).flows if replace(item, source=flow.source) == flow}
    members = [item for item in endpoints(lab) if item.network == source.network and item != source]
    network = lab.tenant(flow.tenant).network(source.network.partition("/")[2])
    gateway = lab.networks[0].gateway or lab.controller.nics[0].address
    others = {"the DHCP server": network.server, "the management gateway": gateway, "no address": "0.0.0.0"}
    return (
        *(Spoof(f"the address of {item.label}", None, str(item.address), item.name in same) for item in members),
        *(Spoof(name, None, str(address), decisive=False) for name, address in others.items()),
    )


def observe_spoof(
    lab: Testbed,
    executor: Executor,
    token: str,
    source_guest: str,
    victim_guest: str,
    variants: Iterable[Spoof],
    window: float,
) -> SpoofObservation:
    """Send on an allowed flow with false senders, between two true frames of the same kind (NET-02, NET-04).

    Args:
        window: seconds that recorders still listen after the last probe.

    Raises:
        InstrumentError: the topology declares no flow from source to victim on a common network.
    """
    run = Run(lab, executor, token, (source_guest, victim_guest))
    ends = (source_guest, victim_guest)
    found = next((item for item in run.flows if (item[1].guest, item[2].guest) == ends), None)
    if found is None:
        fact = "the topology declares no flow between them on a common network"
        raise InstrumentError(
            f"cannot try false senders from {source_guest} to {victim_guest}", fact=fact, remedy="choose a declared flow"
        )
    flow, source, target = found
    probe = {"kind": _RAW[flow.protocol], "port": flow.port, "repeat": _REPEAT, **_aim(target)}
    named = {f"s{number}": spoof for number, spoof in enumerate(variants)}
    try:
        run.listen()
        run.send_controls(BEFORE)
        run.send([(source, {**probe, "id": "true-before"})])
        run.send((source, {**probe, "id": name, **_forged(spoof)}) for name, spoof in named.items())
        run.send([(source, {**probe, "id": "true-after"})])
        run.send_controls(AFTER)
        run.finish(window)
    finally:
        run.phase("stop")
    true = [run.sight(f"true-{stage}", source, target, flow.protocol).arrived for stage in ("before", "after")]
    sights = {spoof: run.sight(name, source, target, flow.protocol) for name, spoof in named.items()}
    return SpoofObservation(source, target, flow.service, sights, true[0], true[1], run.receivers)


def _forged(spoof: Spoof) -> Request:
    fields = {"source_mac": spoof.mac, "source_ip": spoof.address}
    return {name: value for name, value in fields.items() if value is not None}


def why_spoof_inconclusive(observation: SpoofObservation, spoof: Spoof) -> str | None:
    """Return why a false sender has no verdict, or None if it has one."""
    sight = observation.sights[spoof]
    if sight.arrived:
        return None
    if not sight.sent:
        return f"the probe was not sent: {sight.error}"
    if not (observation.before and observation.after):
        return "a true frame of the same kind did not arrive before and after"
    return why_deaf(observation.receivers, observation.source, observation.target, observation.service)


def _aim(target: Endpoint) -> Request:
    return {"ip": str(target.address), "target_mac": target.mac}


def _probes(number: int, cell: Cell) -> list[tuple[Endpoint, Request]]:
    """Return the frames of a cell; ARP is asked both at the target's own address and by broadcast."""
    probe = {"id": f"c{number}", "kind": _RAW[cell.protocol], "port": cell.port, "repeat": _REPEAT, **_aim(cell.target)}
    frames = [(cell.source, probe)]
    if cell.protocol == "arp":
        frames.append((cell.source, {**probe, "id": f"c{number}-all", "target_mac": "ff:ff:ff:ff:ff:ff"}))
    return frames


def why_inconclusive(observation: ReachObservation, cell: Cell) -> str | None:
    """Return why a cell has no verdict, or None if it has one; an arrival always counts, its absence must be earned."""
    sight = observation.sights[cell]
    if sight.arrived:
        return None
    if not sight.sent:
        return f"the probe was not sent: {sight.error}"
    reason = why_deaf(observation.receivers, cell.source, cell.target, cell.service)
    if reason or cell.allowed:
        return reason
    for stage, controls in (("before", observation.controls_before), ("after", observation.controls_after)):
        for flow, worked in controls.items():
            ends = {f"{flow.tenant}/{flow.source}", f"{flow.tenant}/{flow.target}"}
            if not worked and ends & {cell.source.guest, cell.target.guest}:
                name = f"{flow.tenant}: {flow.source} -> {flow.target} {flow.service}"
                return f"the declared flow {name} failed {stage} the probes"
    return None


def why_deaf(receivers: Mapping[str, Receiver], source: Endpoint, target: Endpoint, service: str) -> str | None:
    """Return why the absence of a frame at the target proves nothing, or None if it does."""
    speaker, receiver = receivers[source.guest], receivers[target.guest]
    if not receiver.alive:
        return f"the recorder of {target.guest} was not alive for the whole window: {receiver.reason}"
    if "/" in service and service not in receiver.listening:
        return f"nothing listens on {service} in {target.guest}"
    if target.network not in receiver.heard:
        return f"{target.label} heard no control before and after the probes"
    if source.network not in speaker.spoke:
        return f"nothing that {source.label} sent before and after the probes was answered"
    return None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in _list(value) if isinstance(item, dict)]


def _records(answer: Request) -> frozenset[Record]:
    found = ([item.get(field) for field in _FIELDS] for item in _objects(answer.get("records")))
    texts = ([field for field in fields if isinstance(field, str)] for fields in found)
    return frozenset(Record(*fields) for fields in texts if len(fields) == len(_FIELDS))


def _why_dead(ready: Request, answer: Request) -> str:
    """Return why a recorder's silence does not count, or the empty text."""
    absent = [nic for nic in _objects(ready.get("interfaces")) if not (nic.get("interface") and nic.get("address"))]
    findings = (
        (ready.get("ready") is not True, f"it did not start: {str(ready.get('error', 'no answer'))[:200]}"),
        (bool(absent), f"interface or address is missing: {str(absent)[:200]}"),
        ("error" in answer, f"it could not be asked: {str(answer.get('error'))[:200]}"),
        (answer.get("alive") is not True, "it no longer answered at the end"),
        (answer.get("self_test") is not True, "it did not see its own guest's test frames"),
        (answer.get("dropped") != 0, f"the kernel dropped {str(answer.get('dropped'))[:20]} frames before it"),
        (answer.get("overflowed") is not False, "it saw more than it may keep"),
    )
    return next((text for found, text in findings if found), "")
