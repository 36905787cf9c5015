"""Network probes: every guest listens, sends and is watched, in three agent calls per guest whatever their number.

A frame that did not arrive counts only if the receiver's recorder lived through the whole window, lost
nothing, and heard something with the same tool in the same run, before and after (DESIGN.md, section 6).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import InstrumentError
from testbed.model.policy import Cell, Endpoint, endpoints, joined, probed_ports
from testbed.model.testbed import Guest
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.frames import Frame, dhcp_discover, of_cell

_WINDOW = 3.0  # seconds waited after the last frame was sent
_FLOWING = 5  # frames that tell an attack from a guest that says something of its own
_PATIENCE = 30.0  # seconds that guests may take to be seen sending
_LIFE = 600.0  # seconds after which a forgotten recorder ends by itself
_CALL = 300.0
_CONTROL = {"timeout": 10, "repeat": 3, "spacing": 1}  # seconds, tries, seconds: how a declared flow is used
_GIVE_UP = 30.0  # seconds that ending a recorder may take after an observation broke off
_PROGRAM = Path(__file__).parents[1] / "guest/probe.py"
_SOUND = {"alive": True, "overflowed": False, "dropped": 0}

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Probe:
    """One frame, or one use of a service.

    Args:
        mark: what distinguishes it from every other probe of the run; lower-case letters and digits.
        fields: what `testbed.guest.probe` is told, besides the sender.
        frame: the frame; None for the use of a service.
    """

    mark: str
    sender: Endpoint
    fields: Mapping[str, object]
    frame: Frame | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What the receivers saw of a set of probes.

    Args:
        records: by guest, every frame of this run that its recorder saw, incoming or outgoing.
        answers: by mark, what the sender got back.
    """

    prefix: str
    records: Mapping[str, Sequence[Record]]
    answers: Mapping[str, str]

    def token(self, mark: str) -> str:
        """Return the token that a probe's frames carry."""
        return f"{self.prefix}{mark}."

    def arrived(self, mark: str, guest: str) -> bool:
        """Tell whether a probe's frame was seen coming in at a guest."""
        token = self.token(mark)
        return any(record.get("token") == token and record.get("direction") == "in" for record in self.records[guest])

    def sightings(self, mark: str) -> list[str]:
        """Return the guests at which a probe's frame was seen coming in."""
        return [guest for guest in self.records if self.arrived(mark, guest)]

    def windows(self, mark: str) -> list[tuple[str, float, int]]:
        """Return guest, seconds between the first and the last sighting, and number of sightings of a probe's frames."""
        token = self.token(mark)
        return [
            (guest, float(record.get("until", 0)) - float(record.get("at", 0)), int(record.get("times", 1)))
            for guest, records in self.records.items()
            for record in records
            if record.get("token") == token and record.get("direction") == "in"
        ]

    def resolved(self, source: Endpoint, target: Endpoint) -> bool:
        """Tell whether an ARP request for a target's address reached it, or an answer in its name came back.

        A request that the source made for somebody else's address says nothing about this target.
        """
        address = str(target.address)
        asked = {"kind": "arp-request", "mac": source.mac, "target": address, "direction": "in"}
        answered = {"kind": "arp-reply", "mac": target.mac, "ip": address, "direction": "in"}
        return self._heard(target, asked) or self._heard(source, answered)

    def _heard(self, receiver: Endpoint, wanted: Mapping[str, str]) -> bool:
        return any(wanted.items() <= item.items() for item in self.records[receiver.guest])


def compose(request: Mapping[str, object]) -> bytes:
    """Return the program to feed to ``python3 -``: the probe, with one request."""
    return f"{_PROGRAM.read_text()}\nraise SystemExit(main(json.loads({json.dumps(request)!r})))\n".encode()


def _call(fleet: Fleet, guest: Guest, request: Mapping[str, object], timeout: float = _CALL) -> dict[str, Any]:
    text = fleet.in_guest(guest, ["/usr/bin/python3", "-"], compose(request), timeout=timeout)
    return _answer(guest.label, text)


def _call_machine(machine: Machine, request: Mapping[str, object]) -> dict[str, Any]:
    return _answer(machine.name, machine.read("python3 -", stdin=compose(request), timeout=_CALL).encode())


def _answer(name: str, text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InstrumentError(f"the probe in {name} answers garbage", fact=repr(text[:120]), remedy="repeat the check") from error
    if not isinstance(answer, dict):
        raise InstrumentError(f"the probe in {name} answers garbage", fact=type(answer).__name__, remedy="repeat the check")
    return answer


def _everywhere(fleet: Fleet, guests: Sequence[Guest], requests: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, Any]]:
    """Make one call in each guest, side by side; nodes run one call at a time best, so the number is bounded."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = pool.map(lambda guest: _call(fleet, guest, requests[guest.label]), guests)
        return {guest.label: answer for guest, answer in zip(guests, answers, strict=True)}


@dataclass(frozen=True, slots=True)
class Attack:
    """Frames that guests send in turns, without a pause, while something happens.

    Args:
        seconds: how long they send.
        meanwhile: what happens.
    """

    probes: Sequence[Probe]
    seconds: float
    meanwhile: Callable[[], None]


def observe(fleet: Fleet, probes: Sequence[Probe], attack: Attack | None = None) -> Observation:
    """Send probes from their senders, with controls around them, while every guest is watched.

    Args:
        attack: what goes on between the controls instead of single probes.

    Raises:
        InstrumentError: an instrument was not there, died, or a control failed: then nothing was observed.
    """
    lab = fleet.testbed
    prefix = f"tb-{secrets.token_hex(4)}-"
    interfaces = {
        guest.label: [{"label": nic.network, "mac": nic.mac, "address": str(nic.address)} for nic in guest.nics]
        for guest in lab.guests
    }
    common: dict[str, dict[str, object]] = {label: {"token": prefix, "interfaces": nics} for label, nics in interfaces.items()}
    ports = probed_ports(lab)

    def send(script: Callable[[str], list[Probe]], **phase: object) -> dict[str, dict[str, Any]]:
        requests = {label: {**base, **phase, "probes": _lines(script(label), prefix)} for label, base in common.items()}
        return _everywhere(fleet, lab.guests, requests)

    with _recorders(fleet, common):
        listen = {"phase": "listen", "window": _LIFE, "patience": 60, **ports}
        listening = _everywhere(fleet, lab.guests, {label: {**base, **listen} for label, base in common.items()})
        _require_listeners(listening, ports)
        results = _sent(fleet, send, probes, attack)
        time.sleep(_WINDOW)
        seen = _everywhere(fleet, lab.guests, {label: {**base, "phase": "finish", "patience": 30} for label, base in common.items()})
    records = {label: _list(answer, "records") for label, answer in seen.items()}
    for label, answer in seen.items():
        _require_receiver(label, answer, {**_SOUND, "self_test": True, "down": []})
    answers = {mark: str(item.get("answer", "")) for found in results.values() for mark, item in found.items()}
    observation = Observation(prefix, records, answers)
    _require_sent(probes, results)
    _require_controls(fleet, observation)
    return observation


def _sent(
    fleet: Fleet, send: Callable[..., dict[str, dict[str, Any]]], probes: Sequence[Probe], attack: Attack | None
) -> dict[str, dict[str, Record]]:
    """Send controls, then probes or an attack, then controls; return what became of each, by guest and mark."""
    phase = {"phase": "send", "budget": _CALL - 60}

    def script(label: str) -> list[Probe]:
        own = [probe for probe in probes if probe.sender.guest == label]
        return [*_controls(fleet, label, "before"), *own, *_controls(fleet, label, "after")]

    if attack is None:
        return _results(send(script, **phase))
    before = _results(send(lambda label: _controls(fleet, label, "before"), **phase))
    with ThreadPoolExecutor(max_workers=1) as pool:
        going = {"phase": "stream", "duration": attack.seconds}
        streams = pool.submit(lambda: send(lambda label: [item for item in attack.probes if item.sender.guest == label], **going))
        try:
            _require_flowing(fleet)
            attack.meanwhile()
            _require_flowing(fleet)
        finally:
            lasted = streams.result()
    short = [label for label, answer in lasted.items() if not isinstance(answer.get("rounds"), int) or answer["rounds"] < 1]
    if short:
        raise _broken(f"{', '.join(short)} did not attack all the time", str([lasted[label] for label in short])[:300])
    after = _results(send(lambda label: _controls(fleet, label, "after"), **phase))
    return {label: {**before[label], **after[label]} for label in before}


def _require_flowing(fleet: Fleet) -> None:
    """Return when every guest of every node is seen sending, by the counters of its node.

    Raises:
        InstrumentError: one is not within half a minute.
    """
    taps = {node.name: [nic.tap for guest in fleet.testbed.guests_on(node.name) for nic in guest.nics] for node in fleet.testbed.nodes}
    fleet.everywhere(lambda node: _flows(node, taps[node.name]))


def _flows(machine: Machine, taps: Sequence[str]) -> None:
    counters = " ".join(f"/sys/class/net/{tap}/statistics/rx_packets" for tap in taps)
    end, idle = time.monotonic() + _PATIENCE, list(taps)
    before = machine.read(f"cat {counters}").split() if taps else []
    while idle:
        time.sleep(0.5)
        after = machine.read(f"cat {counters}").split()
        idle = [tap for tap, one, two in zip(taps, before, after, strict=True) if int(two) - int(one) < _FLOWING]
        if time.monotonic() > end:
            raise _broken(f"guests on {machine.name} do not send", f"nothing passes {', '.join(idle)}")


@contextmanager
def _recorders(fleet: Fleet, requests: Mapping[str, Mapping[str, object]]) -> Iterator[None]:
    """End every guest's recorder if an observation breaks off; one that cannot be reached ends after its window."""
    try:
        yield
    except BaseException:
        for guest in fleet.testbed.guests:
            with suppress(InstrumentError):
                _call(fleet, guest, {**requests[guest.label], "phase": "stop"}, timeout=_GIVE_UP)
        raise


def _list(answer: Mapping[str, Any], key: str) -> list[Record]:
    found = answer.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _results(sent: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Record]]:
    """Return what became of each probe, by guest and mark."""
    return {label: {str(item.get("id")): item for item in _list(answer, "results")} for label, answer in sent.items()}


def _lines(probes: Sequence[Probe], prefix: str) -> list[dict[str, object]]:
    """Return probes as the guest's program reads them."""
    return [_line(item, f"{prefix}{item.mark}.") for item in probes]


def _line(probe: Probe, token: str) -> dict[str, object]:
    line: dict[str, object] = {"id": probe.mark, "mac": probe.sender.mac, **probe.fields}
    if probe.frame is not None:
        return {**line, "kind": "frame", "frame": probe.frame(token.encode()).hex()}
    return {**line, "token": token, "address": str(probe.sender.address)}


def tcp_flows(fleet: Fleet) -> list[tuple[str, Endpoint, Endpoint, int]]:
    """Return mark, source, target and port of every declared TCP flow."""
    found = [item for item in joined(fleet.testbed) if item[0].protocol == "tcp"]
    return [(f"flow{number}", source, target, flow.port or 0) for number, (flow, source, target) in enumerate(found)]


def _controls(fleet: Fleet, label: str, stage: str) -> list[Probe]:
    """Return what must arrive: the declared flows, and an answer of the network to every interface."""
    lines = []
    for mark, source, target, port in tcp_flows(fleet):
        if source.guest == label:
            fields = {"kind": "tcp-connect", "ip": str(target.address), "port": port, **_CONTROL}
            lines.append(Probe(f"{mark}{stage}", source, fields))
    own = [endpoint for endpoint in endpoints(fleet.testbed) if endpoint.guest == label]
    for number, endpoint in enumerate(own):
        question = dhcp_discover(endpoint.mac, (1 if stage == "before" else 2) << 24 | number)
        lines.append(Probe(f"dhcp{stage}{number}", endpoint, {"repeat": 3, "spacing": 0.2}, question))
    return lines


def _broken(what: str, fact: str) -> InstrumentError:
    return InstrumentError(what, fact=fact, remedy="run `testbed status`, then repeat the check")


def _require_listeners(answers: Mapping[str, Mapping[str, Any]], ports: Mapping[str, Sequence[int]]) -> None:
    wanted = {f"{protocol}/{port}" for protocol, found in ports.items() for port in found}
    for label, answer in answers.items():
        missing = wanted - {str(item) for item in answer.get("listening", []) if isinstance(answer.get("listening"), list)}
        unready = [nic for nic in _list(answer, "interfaces") if not nic.get("interface") or not nic.get("address")]
        if answer.get("ready") is not True or missing or unready or not _list(answer, "interfaces"):
            raise _broken(f"{label} cannot listen", f"missing: {sorted(missing)}, not ready: {unready}, {answer.get('error', '')}")


def _require_receiver(name: str, answer: Mapping[str, Any], wanted: Mapping[str, object]) -> None:
    facts = {fact: answer.get(fact) for fact in wanted}
    if facts != wanted:
        raise _broken(f"the recorder in {name} cannot vouch for the whole window", str(facts))


def _require_sent(probes: Sequence[Probe], results: Mapping[str, Mapping[str, Record]]) -> None:
    for probe in probes:
        result = results[probe.sender.guest].get(probe.mark, {})
        if result.get("sent") is not True:
            raise _broken(f"{probe.sender.guest} could not send {probe.mark}", str(result.get("error", "no answer")))


def _require_controls(fleet: Fleet, observation: Observation) -> None:
    for stage, transactions in (("before", 1), ("after", 2)):
        for mark, source, target, port in tcp_flows(fleet):
            expected = f"ok-{observation.token(mark + stage)}"
            if observation.answers.get(mark + stage) != expected or not observation.arrived(mark + stage, target.guest):
                what = f"the declared flow {source.guest} -> {target.guest} tcp/{port} does not work {stage} the probes"
                raise _broken(what, f"answer: {observation.answers.get(mark + stage)!r}")
        tokens = {observation.token(mark + stage) for mark, *_ in tcp_flows(fleet)}
        for endpoint in endpoints(fleet.testbed):
            if not _heard(endpoint, observation.records[endpoint.guest], tokens, transactions):
                what = f"{endpoint.label} heard nothing {stage} the probes"
                raise _broken(what, "neither an answer of the network's DHCP nor a declared flow")


def _heard(endpoint: Endpoint, records: Sequence[Record], tokens: set[str], transactions: int) -> bool:
    """Tell whether a receiver's recorder heard a control on an interface: an answer of DHCP, or a declared flow."""
    for record in records:
        if record.get("label") == endpoint.network.partition("/")[2] and record.get("direction") == "in":
            answer = record.get("kind") == "dhcp" and str(record.get("token")).startswith(f"{transactions:02x}")
            if answer or record.get("token") in tokens:
                return True
    return False


def matrix_probes(cells: Sequence[Cell]) -> list[Probe]:
    """Return one raw probe for each cell, addressed so that only the wall can stop it."""
    return [Probe(f"cell{number}", cell.source, {"repeat": 2}, of_cell(cell)) for number, cell in enumerate(cells)]


def reach(cells: Sequence[Cell], observation: Observation) -> list[tuple[Cell, bool]]:
    """Return cells whose probes were sent, each with what was observed: whether it arrived (NET-01)."""
    found = []
    for number, cell in enumerate(cells):
        if cell.protocol == "arp":
            found.append((cell, observation.resolved(cell.source, cell.target)))
        else:
            found.append((cell, observation.arrived(f"cell{number}", cell.target.guest)))
    return found


def listen_on(machine: Machine, prefix: str, macs: Mapping[str, str]) -> None:
    """Start a recorder on some interfaces of a machine.

    Args:
        macs: MAC address by interface name.

    Raises:
        InstrumentError: it does not start.
    """
    nics = [{"label": name, "mac": mac, "address": "0.0.0.0"} for name, mac in macs.items()]  # noqa: S104 - not asked for
    request: dict[str, object] = {"phase": "listen", "token": prefix, "interfaces": nics, "window": _LIFE, "patience": 0}
    answer = _call_machine(machine, request)
    missing = [nic.get("label") for nic in _list(answer, "interfaces") if not nic.get("interface")]
    if answer.get("ready") is not True or missing:
        raise _broken(f"{machine.name} cannot listen", f"{answer.get('error', '')} {missing}")


def collect_from(machine: Machine, prefix: str, may_be_down: str) -> list[Record]:
    """End a machine's recorder and return what it saw.

    Args:
        may_be_down: the one interface that need not be up; a wall keeps it down.

    Raises:
        InstrumentError: it did not live through the window, or lost something.
    """
    answer = _call_machine(machine, {"phase": "finish", "token": prefix, "interfaces": [], "patience": 30})
    down = [may_be_down] if answer.get("down") else []
    _require_receiver(machine.name, answer, {**_SOUND, "down": down})
    return _list(answer, "records")


def forget(machine: Machine, prefix: str) -> None:
    """End a machine's recorder after an observation broke off; one that cannot be reached ends after its window."""
    with suppress(InstrumentError):
        _call_machine(machine, {"phase": "stop", "token": prefix, "interfaces": []})


def send_from(fleet: Fleet, guests: Sequence[Guest], prefix: str, probes: Sequence[Probe]) -> None:
    """Send probes from guests, then wait the window out.

    Raises:
        InstrumentError: something could not be sent.
    """
    requests: dict[str, dict[str, object]] = {}
    for guest in guests:
        lines = _lines([probe for probe in probes if probe.sender.guest == guest.label], prefix)
        requests[guest.label] = {"phase": "send", "token": prefix, "interfaces": [], "budget": _CALL - 60, "probes": lines}
    sent = _everywhere(fleet, guests, requests)
    _require_sent(probes, _results(sent))
    time.sleep(_WINDOW)
