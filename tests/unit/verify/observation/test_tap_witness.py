"""Requests to nodes for frames handed to guests, and verdicts where witnesses differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checks.support import network_observation as surveys
from checks.support.disruptions import DisruptionResult
from checks.support.network_observation import Survey, judge, overheard
from checks.support.spoofed_frames import Forgery
from checks.test_reachability import test_reach_is_what_the_topology_allows as check_of_reach
from testbed.errors import InstrumentError
from testbed.model.reachability import ReachMatrix, endpoints
from testbed.model.resolve import resolve
from testbed.topology_file.loader import read
from testbed.verify.observation import observe, tap_witness
from testbed.verify.observation.arrivals import Observation, matrix_probes
from testbed.verify.observation.switch_drops import lost, require_no_loss
from testbed.verify.probe.client import Probe, ProbeClient
from testbed.verify.probe.tokens import Tokens

LAB = resolve(read(Path(__file__).parents[4] / "topologies/two-tenants.yaml").spec)
TOKENS = Tokens("tb-0123abcd-", b"key")
TAPS = {guest.label: guest.nics[0].tap for guest in LAB.guests}
NODES = {guest.label: guest.node for guest in LAB.guests}
ENDS = {end.guest: end for end in endpoints(LAB)}
WEB, DB, OTHER = "red/web", "red/db", "blue/db"
Answer = dict[str, Any]
Answers = Callable[[str, Mapping[str, Any]], Answer]


def _fleet(
    monkeypatch: pytest.MonkeyPatch, answers: Answers
) -> tuple[Any, list[tuple[str, Mapping[str, Any]]]]:
    """Return a fleet whose guests and nodes give fixed answers, and a list of their requests."""
    asked: list[tuple[str, Mapping[str, Any]]] = []

    def ask(instrument: ProbeClient, request: Mapping[str, Any], *_: object) -> Answer:
        asked.append((instrument.name, request))
        return answers(instrument.name, request)

    for name in ("ask", "listen"):
        monkeypatch.setattr(ProbeClient, name, ask)
    machines = {name: SimpleNamespace(name=name) for name in NODES.values()}
    return SimpleNamespace(
        topology=LAB, machines=machines, instruments={}, evidence=None, files_of=lambda _: None
    ), asked


SOUND: Answer = {"alive": True, "overflowed": False, "dropped": 0, "down": [], "records": []}


def test_each_node_records_on_the_taps_of_its_own_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, asked = _fleet(monkeypatch, lambda _, request: {"ready": True, "taps": request["taps"]})
    tap_witness.listen(fleet, TOKENS.prefix)
    found = {name: (request["phase"], request["token"], request["taps"]) for name, request in asked}
    wanted = {node: sorted(TAPS[label] for label in TAPS if NODES[label] == node) for node in NODES.values()}
    assert found == {node: ("listen", TOKENS.prefix, taps) for node, taps in wanted.items()}
    assert len(asked) == 2


@pytest.mark.parametrize("answer", [
    {"ready": True, "taps": []}, {"ready": True}, {"ready": True, "taps": "x"}, {"taps": list(TAPS.values())},
])  # fmt: skip
def test_a_node_that_does_not_record_is_told(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    fleet, _ = _fleet(monkeypatch, lambda *_: answer)
    with pytest.raises(InstrumentError, match=r"node-[ab] cannot record what it hands to its guests"):
        tap_witness.listen(fleet, TOKENS.prefix)


def test_what_a_node_saw_belongs_to_the_guest_behind_the_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(name: str, _: Mapping[str, Any]) -> Answer:
        taps = [TAPS[label] for label in TAPS if NODES[label] == name]
        return {**SOUND, "records": [{"label": tap, "token": f"of {tap}"} for tap in taps]}

    fleet, asked = _fleet(monkeypatch, answer)
    found = tap_witness.collect(fleet, TOKENS.prefix)
    assert found == {label: [{"label": "app", "token": f"of {tap}"}] for label, tap in TAPS.items()}
    assert {name for name, _ in asked} == set(NODES.values())
    assert {(request["phase"], request["token"]) for _, request in asked} == {("finish", TOKENS.prefix)}


@pytest.mark.parametrize(
    "odd", [{"alive": False}, {"dropped": 1}, {"overflowed": True}, {"down": ["tap"]}, {"down": None}]
)
def test_a_node_that_may_have_missed_something_is_no_witness(
    monkeypatch: pytest.MonkeyPatch, odd: Answer
) -> None:
    fleet, _ = _fleet(monkeypatch, lambda name, _: {**SOUND, **(odd if name == "node-b" else {})})
    with pytest.raises(InstrumentError, match="the recorder in node-b cannot vouch for the whole window"):
        tap_witness.collect(fleet, TOKENS.prefix)


def test_what_has_come_in_is_asked_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only probes in the request count, by their issued tokens."""
    told = {
        WEB: [TOKENS.of("e")],
        "node-a": [TOKENS.of("a"), TOKENS.of("b"), TOKENS.of("c")],
        "node-b": [Tokens(TOKENS.prefix, b"x").of("d")],
    }
    fleet, asked = _fleet(monkeypatch, lambda name, _: {"seen": told.get(name, [])})
    assert tap_witness.arrived_so_far(fleet, TOKENS, ["a", "b", "d", "e"]) == {"a", "b"}
    assert {name for name, _ in asked} == {*NODES.values()}
    assert all(set(request) == {"phase", "token"} for _, request in asked)


def test_a_node_that_does_not_tell_what_has_come_in_is_no_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, _ = _fleet(monkeypatch, lambda name, _: {} if name == "node-b" else {"seen": []})
    with pytest.raises(InstrumentError, match="node-b does not tell"):
        tap_witness.arrived_so_far(fleet, TOKENS, ["a"])


def _observation(
    told: Mapping[str, list[str]], seen: Mapping[str, list[str]], doubt: InstrumentError | None = None
) -> Observation:
    """Return an observation from marks by guest, as each of two witnesses has them."""
    both = (
        {
            label: [
                {"kind": "raw", "token": TOKENS.of(mark), "at": 1.0, "until": 2.0, "times": 2}
                for mark in marks.get(label, [])
            ]
            for label in NODES
        }
        for marks in (told, seen)
    )
    return Observation.compared(TOKENS, *both, {}, {}, doubt)


@pytest.mark.parametrize(
    ("guests", "nodes", "expected"),
    [
        (True, True, "nothing"),
        (False, True, "doubt"),
        (True, False, "error of nodes"),
        (False, False, "error of guests"),
    ],
)
def test_a_doubt_is_what_guests_alone_cannot_vouch_for(
    monkeypatch: pytest.MonkeyPatch, guests: bool, nodes: bool, expected: str
) -> None:
    told, seen = _observation({}, {}), _observation({}, {})

    def require(_: object, observation: Observation) -> None:
        if not (guests if observation is told else nodes):
            raise InstrumentError(
                "a control failed", fact="guests" if observation is told else "nodes", remedy="-"
            )

    monkeypatch.setattr(observe, "_require_controls", require)
    said = {WEB: {**SOUND, "self_test": True}}
    if expected.startswith("error"):
        with pytest.raises(InstrumentError) as caught:
            observe._doubt(None, said, told, seen)  # type: ignore[arg-type]
        assert ("nodes" in caught.value.fact) == (expected == "error of nodes")
    else:
        doubt = observe._doubt(None, said, told, seen)  # type: ignore[arg-type]
        assert (doubt is not None) == (expected == "doubt")


@pytest.mark.parametrize("odd", [{"self_test": False}, {"dropped": 3}, {"down": ["app"]}, {"alive": False}])
def test_a_guest_that_may_have_missed_something_is_a_doubt(
    monkeypatch: pytest.MonkeyPatch, odd: Answer
) -> None:
    monkeypatch.setattr(observe, "_require_controls", lambda *_: None)
    said = {WEB: {**SOUND, "self_test": True, **odd}}
    doubt = observe._doubt(None, said, _observation({}, {}), _observation({}, {}))  # type: ignore[arg-type]
    assert doubt is not None
    assert "red/web cannot vouch" in doubt.what


def _survey(observation: Observation) -> Survey:
    lies = [
        Forgery("NET-02", "x02", ENDS[WEB], "a lie", lambda _: b""),
        Forgery("NET-03", "x03", ENDS[WEB], "another", lambda _: b""),
    ]
    probes = {
        mark: Probe(mark, ENDS[WEB], {}) for mark in ("syn0before", "cell0", *(lie.mark for lie in lies))
    }
    return Survey(observation=observation, probes=probes, forgeries=lies)


@pytest.mark.parametrize(
    ("mark", "blind"),
    [
        ("syn0before", {"NET-01", "NET-02", "NET-03", "NET-11"}),
        ("cell0", {"NET-01"}),
        ("x02", {"NET-02"}),
        ("x03", {"NET-03"}),
        ("flow0before", set()),
    ],
)
def test_what_a_guest_conceals_is_about_its_own_control(mark: str, blind: set[str]) -> None:
    found = _survey(_observation({}, {DB: [mark]}))
    failed = set()
    for control in ("NET-01", "NET-02", "NET-03", "NET-11"):
        try:
            found.require_agreement(control)
        except InstrumentError:
            failed.add(control)
    assert failed == blind


def _judged(found: Survey, monkeypatch: pytest.MonkeyPatch) -> Any:
    shared = {"survey": found, "pipeline": {"x02": "drop", "x03": "drop"}, "labels": []}
    monkeypatch.setattr(surveys, "survey", lambda _: found)
    return SimpleNamespace(topology=LAB, observe_once=lambda name, _: shared[name])


def test_a_lie_that_its_receiver_conceals_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = _judged(_survey(_observation({}, {DB: ["x02"]})), monkeypatch)
    assert judge(fleet, "NET-02") == [
        "label without wall: red/web@app: a lie arrived at red/db (which conceals it)"
    ]
    assert judge(fleet, "NET-03") == []


def test_a_wall_without_findings_needs_guests_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = _judged(_survey(_observation({}, {DB: ["syn0before"]})), monkeypatch)
    for look in (lambda: judge(fleet, "NET-02"), lambda: overheard(fleet)):
        with pytest.raises(InstrumentError, match="red/db conceals 1 frames"):
            look()
    fleet = _judged(_survey(_observation({}, {OTHER: ["syn0before"]})), monkeypatch)
    assert overheard(fleet) == ["blue/db saw syn0before of red/web@app"]


def test_an_attack_that_its_receiver_conceals_is_a_leak_and_a_doubt_is_no_pass() -> None:
    frames = [(Probe("x02", ENDS[WEB], {}), "a lie")]
    assert DisruptionResult(frames, _observation({}, {DB: ["x02"]})).leaks == [
        "a lie at red/db: 2 frames in 1000 ms"
    ]
    assert DisruptionResult(frames, _observation({}, {})).leaks == []
    with pytest.raises(InstrumentError, match="deaf"):
        DisruptionResult(frames, _observation({}, {}, InstrumentError("deaf", fact="-", remedy="-"))).leaks  # noqa: B018


Marks = Mapping[str, list[str]]


def _reached(monkeypatch: pytest.MonkeyPatch, told: Marks, seen: Marks, deaf: Marks | None = None) -> None:
    """Judge the matrix of a lab in which all allowed frames arrived, and some others.

    Guests do not report all of them.
    """
    matrix = ReachMatrix.of(LAB)
    allowed: dict[str, list[str]] = {}
    for number, cell in enumerate(matrix.cells):
        if cell.allowed:
            allowed.setdefault(cell.target.guest, []).append(f"cell{number}")
    assert allowed
    first, second = (
        {label: [*allowed.get(label, []), *found.get(label, [])] for label in NODES} for found in (told, seen)
    )
    heard = {
        label: [mark for mark in found if mark not in (deaf or {}).get(label, [])]
        for label, found in first.items()
    }
    observation = _observation(heard, second)
    resolved = [
        {
            "kind": "arp-request",
            "token": "",
            "mac": cell.source.mac,
            "target": str(cell.target.address),
            "guest": cell.target.guest,
        }
        for cell in matrix.cells
        if cell.allowed and cell.protocol == "arp"
    ]
    records = {
        label: [*found, *(item for item in resolved if item["guest"] == label)]
        for label, found in observation.records.items()
    }
    probes = {probe.mark: probe for probe in matrix_probes(matrix.cells)}
    found = Survey(replace(observation, records=records), probes, [])
    monkeypatch.setattr("checks.test_reachability.survey", lambda _: found)
    evidence = SimpleNamespace(record=lambda *_: None)
    check_of_reach(SimpleNamespace(matrix=matrix, evidence=evidence, record_state=lambda *_, **__: None))  # type: ignore[arg-type]


def _cell(source: str, target: str, protocol: str, *, allowed: bool) -> str:
    cells = ReachMatrix.of(LAB).cells
    return next(
        f"cell{number}"
        for number, cell in enumerate(cells)
        if (cell.source.guest, cell.target.guest, cell.protocol, cell.allowed)
        == (source, target, protocol, allowed)
    )


def test_what_both_witnesses_saw_alike_is_judged_by_the_topology(monkeypatch: pytest.MonkeyPatch) -> None:
    _reached(monkeypatch, {}, {})
    denied = {OTHER: [_cell(WEB, OTHER, "icmp", allowed=False)]}
    with pytest.raises(AssertionError, match=r"1 of \d+ cells leak: (?!.*conceals)"):
        _reached(monkeypatch, denied, denied)


def test_a_leak_that_its_receiver_conceals_turns_the_check_red(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match=r"1 of .* cells leak: .*; blue/db conceals 1 frames"):
        _reached(monkeypatch, {}, {OTHER: [_cell(WEB, OTHER, "icmp", allowed=False)]})


def test_a_path_past_the_nodes_turns_the_check_red_whatever_comes_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It holds for any issued token, such as one of the declared flow."""
    with pytest.raises(AssertionError, match="by a path that their nodes do not see: 1 at red/db"):
        _reached(monkeypatch, {DB: ["flow0before"]}, {})


def test_a_frame_that_may_arrive_and_is_concealed_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = _cell(WEB, DB, "tcp", allowed=True)
    with pytest.raises(InstrumentError, match="red/db conceals 1 frames"):
        _reached(monkeypatch, {}, {}, deaf={DB: [allowed]})


def test_what_a_switch_has_lost_is_asked_of_every_node_and_compared() -> None:
    text = "lookups: hit:1 missed:2 lost:{}\n" + "\n".join(
        f"/sys/class/net/{tap}/statistics/tx_dropped:0" for tap in TAPS.values()
    )

    def fleet(count: int) -> Any:
        def read(command: str) -> str:
            lines = text.format(count).splitlines()
            return "\n".join(
                line for line in lines if line.startswith("lookups") or line.split("/")[4] in command
            )

        nodes = {name: SimpleNamespace(name=name, read=read) for name in NODES.values()}
        return SimpleNamespace(
            topology=LAB, everywhere=lambda do: {name: do(node) for name, node in nodes.items()}
        )

    before, after = lost(fleet(3)), lost(fleet(4))
    require_no_loss(before, before)
    with pytest.raises(InstrumentError, match=r"node-[ab] lost frames by crowding, not by a wall"):
        require_no_loss(before, after)
    silent = SimpleNamespace(
        topology=LAB, everywhere=lambda do: do(SimpleNamespace(name="node-a", read=lambda _: ""))
    )
    with pytest.raises(InstrumentError, match="node-a does not tell"):
        lost(silent)  # type: ignore[arg-type]
