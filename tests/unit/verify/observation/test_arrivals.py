"""The evidence for an arrival; an observation that breaks off leaves no recorder behind."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.model.reachability import ReachMatrix, endpoints
from testbed.model.resolve import resolve
from testbed.payload.probe import wire
from testbed.topology_file.loader import read
from testbed.verify.observation import observe
from testbed.verify.observation.arrivals import Observation, matrix_probes
from testbed.verify.probe.client import ProbeClient
from testbed.verify.probe.tokens import Tokens

LAB = resolve(read(Path(__file__).parents[4] / "topologies/one-node.yaml").spec)
TOKENS = Tokens("tb-0123abcd-", b"key")
SOURCE, TARGET = [item for item in endpoints(LAB) if item.tenant == endpoints(LAB)[0].tenant][:2]


def _observation(guest: str, **record: str) -> Observation:
    records: dict[str, list[dict[str, str]]] = {item.guest: [] for item in endpoints(LAB)}
    records[guest].append(record)
    return Observation(TOKENS, records, {})


@pytest.mark.parametrize(("address", "expected"), [(str(TARGET.address), True), ("10.9.9.9", False)])
def test_an_arp_request_counts_for_the_address_it_asks_for(address: str, expected: bool) -> None:
    seen = _observation(TARGET.guest, kind="arp-request", mac=SOURCE.mac, target=address)
    assert seen.resolved(SOURCE, TARGET) is expected
    assert seen.resolved(TARGET, SOURCE) is False


@pytest.mark.parametrize(
    ("address", "label", "expected"),
    [
        (str(TARGET.address), SOURCE.interface, True),
        ("10.9.9.9", SOURCE.interface, False),
        (str(TARGET.address), "back", False),
    ],
)
def test_an_arp_answer_counts_for_the_address_it_tells_of_and_where_it_was_asked(
    address: str, label: str, expected: bool
) -> None:
    seen = _observation(SOURCE.guest, kind="arp-reply", mac=TARGET.mac, ip=address, label=label)
    assert seen.resolved(SOURCE, TARGET) is expected


def test_neighbor_discovery_counts_as_arp_does() -> None:
    topology = resolve(read(Path(__file__).parents[4] / "topologies/three-tenants-dual-stack.yaml").spec)
    web, db = endpoints(topology)[:2]
    records: dict[str, list[dict[str, str]]] = {item.guest: [] for item in endpoints(topology)}
    seen = Observation(TOKENS, records, {})
    records[web.guest] = [{"kind": "nd-reply", "mac": db.mac, "ip": str(db.address6), "label": "app"}]
    assert (seen.resolved(web, db, "nd"), seen.resolved(web, db, "nd-link"), seen.resolved(web, db)) == (
        True,
        False,
        False,
    )
    records[web.guest] = [{"kind": "nd-request", "mac": db.mac, "target": str(web.link_local)}]
    assert (seen.resolved(db, web, "nd-link"), seen.resolved(db, web, "nd")) == (True, False)


def test_a_forbidden_frame_is_sent_once_and_an_allowed_one_twice() -> None:
    cells = ReachMatrix.of(LAB).cells
    sent = {(cell.allowed, matrix_probes([cell])[0].fields["repeat"]) for cell in cells}
    assert sent == {(False, 1), (True, 2)}


def test_an_observation_that_breaks_off_ends_what_it_has_started() -> None:
    phases: list[tuple[str, str]] = []

    def in_guest(guest: Any, *_: Any, **__: Any) -> bytes:
        phases.append((guest.label, "start"))
        return json.dumps({"started": True}).encode()

    def files_of(guest: Any) -> Any:
        def write(_: str, text: bytes) -> bool:
            phases.append((guest.label, wire.unpack(text.strip())["phase"]))
            if phases[-1][1] == "listen" and guest is LAB.guests[0]:
                raise InstrumentError("the agent does not answer", fact="silence", remedy="")
            return True

        return SimpleNamespace(write=write, read=lambda _: wire.pack({}))

    evidence = SimpleNamespace(record=lambda *_: None)
    fleet = SimpleNamespace(
        topology=LAB,
        in_guest=in_guest,
        files_of=files_of,
        evidence=evidence,
        instruments={},
        everywhere=lambda _: {},
    )
    with pytest.raises(InstrumentError, match="does not answer"):
        observe.observe(fleet, [])  # type: ignore[arg-type]
    assert {label for label, phase in phases if phase == "stop"} == {
        label for label, phase in phases if phase == "start"
    }
    assert LAB.guests[0].label in {label for label, phase in phases if phase == "stop"}


def _instrument(answers: list[object]) -> tuple[ProbeClient, list[str]]:
    """Return an instrument whose program gives fixed answers, and a list of its requests."""
    asked: list[str] = []

    def run(argv: list[str], stdin: bytes, _: float) -> bytes:
        asked.append("start" if argv[0] == "/usr/bin/python3" else wire.unpack(stdin.strip())["phase"])
        answer = answers.pop(0)
        if isinstance(answer, InstrumentError):
            raise answer
        if isinstance(answer, bytes):
            return answer
        return json.dumps(answer).encode() if asked[-1] == "start" else wire.pack(answer)

    return ProbeClient("red/web", run), asked


GONE = InstrumentError("the probe does not run", fact="status 75", remedy="")


def test_a_program_is_started_once_and_again_when_it_has_ended() -> None:
    instrument, asked = _instrument([{"started": True}, {"ready": 1}, GONE, {"started": True}, {"ready": 2}])
    assert instrument.listen({"phase": "listen"}) == {"ready": 1}
    assert instrument.listen({"phase": "listen"}) == {"ready": 2}
    assert asked == ["start", "listen", "listen", "start", "listen"]


def test_a_program_that_ends_while_it_records_is_not_replaced() -> None:
    instrument, _ = _instrument([{"started": True}, {"ready": 1}, GONE])
    instrument.listen({"phase": "listen"})
    with pytest.raises(InstrumentError, match="does not run"):
        instrument.ask({"phase": "finish"})


@pytest.mark.parametrize(
    "answer", [b"", b"[1", b"[" * 100_000, b'"text"', {"started": False}, {"started": "yes"}]
)
def test_garbage_is_no_start(answer: object) -> None:
    instrument, _ = _instrument([answer])
    with pytest.raises(InstrumentError, match=r"garbage|does not start"):
        instrument.listen({"phase": "listen"})


def test_a_program_that_runs_is_ended_and_one_that_does_not_is_not_started_for_it() -> None:
    instrument, asked = _instrument([{"started": True}, {"ready": 1}, {"stopped": True}])
    instrument.listen({"phase": "listen"})
    instrument.end()
    instrument.end()
    assert asked == ["start", "listen", "stop"]
