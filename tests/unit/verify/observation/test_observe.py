"""A recorder that lacks anything vouches for no window: a missing frame is then no result."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.model.reachability import endpoints
from testbed.verify.observation import observe
from testbed.verify.observation.arrivals import Observation
from testbed.verify.observation.declared_flows import uses
from testbed.verify.probe.client import Probe, lines, require_receiver, require_sent
from testbed.verify.probe.tokens import Tokens
from tests.shapes import lab_of

LAB = lab_of("two-tenants")
TOKENS = Tokens("tb-0123abcd-", b"key")
FLEET: Any = SimpleNamespace(topology=LAB)
SOUND: dict[str, Any] = {"alive": True, "overflowed": False, "dropped": 0, "self_test": True, "down": []}
LISTENS: dict[str, Any] = {
    "ready": True,
    "listening": ["tcp/80", "udp/53"],
    "interfaces": [{"interface": "eth0", "address": "10.0.0.2"}],
}
PORTS = {"tcp": [80], "udp": [53]}


@pytest.mark.parametrize("lack", [
    {"ready": False}, {"ready": 1}, {"listening": ["tcp/80"]}, {"listening": "tcp/80 udp/53"},
    {"listening": None}, {"listening": 7},
    {"interfaces": []}, {"interfaces": [{"interface": "", "address": "10.0.0.2"}]},
    {"interfaces": [{"interface": "eth0", "address": ""}]},
    {"interfaces": None},
], ids=str)  # fmt: skip
def test_a_guest_that_cannot_listen_hears_no_wall(lack: dict[str, Any]) -> None:
    observe._require_listeners({"red/web": LISTENS}, PORTS)
    with pytest.raises(InstrumentError, match="red/db cannot listen"):
        observe._require_listeners({"red/web": LISTENS, "red/db": {**LISTENS, **lack}}, PORTS)


@pytest.mark.parametrize("lack", [
    {"alive": False}, {"alive": None}, {"overflowed": True}, {"dropped": 1}, {"dropped": None},
    {"self_test": False}, {"down": ["eth0"]},
], ids=str)  # fmt: skip
def test_a_recorder_that_lost_something_vouches_for_nothing(lack: dict[str, Any]) -> None:
    require_receiver("red/web", SOUND, self_test=True, down=[])
    with pytest.raises(InstrumentError, match="cannot vouch for the whole window"):
        require_receiver("red/web", {**SOUND, **lack}, self_test=True, down=[])


@pytest.mark.parametrize(
    "result", [{}, {"sent": False}, {"sent": 1}, {"sent": None, "error": "down"}], ids=str
)
def test_a_probe_that_did_not_leave_is_no_probe(result: dict[str, Any]) -> None:
    sender = endpoints(LAB)[0]
    probes = [Probe("one", sender, {}), Probe("two", sender, {})]
    require_sent(probes, {sender.guest: {"one": {"sent": True}, "two": {"sent": True}}})
    with pytest.raises(InstrumentError, match="could not send two"):
        require_sent(probes, {sender.guest: {"one": {"sent": True}, "two": result}})


def test_a_guest_is_asked_for_every_probe() -> None:
    """With the token of its mark, in the frame or in the request."""
    sender = endpoints(LAB)[0]
    frame, ask = lines(
        [
            Probe("one", sender, {"repeat": 2}, lambda token: b"\1" + token),
            Probe("two", sender, {"kind": "-"}),
        ],
        TOKENS,
    )
    assert frame == {
        "id": "one",
        "mac": sender.mac,
        "repeat": 2,
        "kind": "frame",
        "frame": (b"\1" + TOKENS.of("one").encode()).hex(),
    }
    assert ask == {
        "id": "two",
        "mac": sender.mac,
        "kind": "-",
        "address": str(sender.address),
        "token": TOKENS.of("two"),
    }


def _heard(**changes: Any) -> Observation:
    """Return an observation in which every control was heard, but for changes.

    Args:
        changes: `without`, a place in the list of records; `silent`, the mark of an unanswered flow.

    """
    records: dict[str, list[dict[str, Any]]] = {end.guest: [] for end in endpoints(LAB)}
    everything: list[tuple[str, dict[str, Any]]] = []
    answers = {}
    for stage in ("before", "after"):
        for use in uses(LAB):
            mark = f"{use.mark}{stage}"
            everything.append(
                (use.target.guest, {"label": "elsewhere", "kind": "tcp", "token": TOKENS.of(mark)})
            )
            answers[mark] = f"ok-{TOKENS.of(mark)}"
        for end in endpoints(LAB):
            token = f"{observe._transaction(TOKENS, stage, end):08x}"
            everything.append((end.guest, {"label": end.interface, "kind": "dhcp", "token": token}))
    for number, (guest, record) in enumerate(everything):
        if number != changes.get("without"):
            records[guest].append({**record, **changes.get("instead", {})})
    answers.pop(changes.get("silent", ""), None)
    return Observation(TOKENS, records, answers)


CONTROLS = 2 * (len(uses(LAB)) + len(endpoints(LAB)))


@pytest.mark.parametrize("missing", range(CONTROLS))
def test_no_control_may_be_missing(missing: int) -> None:
    observe._require_controls(FLEET, _heard())
    with pytest.raises(InstrumentError, match=r"does not work|heard nothing"):
        observe._require_controls(FLEET, _heard(without=missing))


@pytest.mark.parametrize("mark", [f"{use.mark}{stage}" for use in uses(LAB) for stage in ("before", "after")])
def test_a_declared_flow_must_be_answered(mark: str) -> None:
    with pytest.raises(InstrumentError, match="does not work"):
        observe._require_controls(FLEET, _heard(silent=mark))


@pytest.mark.parametrize(
    "instead", [{"label": "elsewhere"}, {"kind": "arp-reply"}, {"token": "00000000"}], ids=str
)
def test_a_control_is_heard_on_its_own_interface(instead: dict[str, str]) -> None:
    end = endpoints(LAB)[0]
    record = {"label": end.interface, "kind": "dhcp", "token": "01020304"}
    assert observe._heard(end, [record], set(), "01020304")
    assert not observe._heard(end, [{**record, **instead}], set(), "01020304")
    assert observe._heard(end, [{**record, "kind": "tcp", "token": "a"}], {"a"}, "01020304")
    assert not observe._heard(end, [{"label": "elsewhere", "token": "a"}], {"a"}, "01020304")


def test_a_guest_that_cannot_vouch_is_a_doubt_and_a_deaf_node_is_an_error() -> None:
    said = {end.guest: SOUND for end in endpoints(LAB)}
    assert observe._doubt(FLEET, said, _heard(), _heard()) is None
    doubt = observe._doubt(FLEET, {**said, "red/web": {**SOUND, "dropped": 1}}, _heard(), _heard())
    assert "red/web" in str(doubt)
    assert "heard nothing" in str(observe._doubt(FLEET, said, _heard(without=CONTROLS - 1), _heard()))
    with pytest.raises(InstrumentError, match="a node's recorder did not hear"):
        observe._doubt(FLEET, said, _heard(), _heard(without=0))
    with pytest.raises(InstrumentError, match="cannot vouch"):
        observe._doubt(FLEET, {**said, "red/web": {}}, _heard(), _heard(without=0))


def test_words_about_witnesses_that_differ() -> None:
    guest = endpoints(LAB)[0].guest
    record = [{"token": TOKENS.of("one")}]

    def arrivals(told: list[Any], seen: list[Any]) -> dict[str, str]:
        return Observation(
            TOKENS, {guest: [*told, *seen]}, {}, told={guest: told}, seen={guest: seen}
        ).arrivals("one")

    assert arrivals(record, record) == {guest: guest}
    assert arrivals([], record) == {guest: f"{guest} (which conceals it)"}
    assert arrivals(record, []) == {guest: f"{guest} (by a path that its node does not see)"}
    assert arrivals([], []) == {}


def test_a_window_lasts_from_the_first_sighting_to_the_last() -> None:
    guest = endpoints(LAB)[0].guest
    found = Observation(
        TOKENS,
        {guest: [{"token": TOKENS.of("one"), "at": 2.0, "until": 5.5, "times": 3}, {"token": "-"}]},
        {},
    )
    assert found.windows("one") == [(guest, 3.5, 3)]
    assert Observation(TOKENS, {guest: [{"token": TOKENS.of("one")}]}, {}).windows("one") == [(guest, 0.0, 1)]


@pytest.mark.parametrize("attacked", [True, False])
def test_an_attack_must_flow_before_its_event(attacked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(observe, "_require_flowing", lambda _, macs: events.append(f"{len(macs)} flow"))
    sender = endpoints(LAB)[0]
    probes = [Probe("one", sender, {}, lambda token: token)] if attacked else []
    attack = observe.Attack(probes, 1, lambda _: events.append("event"))

    def send(_: object, only: Any = ()) -> dict[str, dict[str, Any]]:
        return {label: {"halted": True, "results": []} for label in only or ["red/web"]}

    observe._sent(FLEET, send, [], attack, TOKENS)
    assert events == (["1 flow", "event"] if attacked else ["event"])


def test_an_announcement_has_an_address_of_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between ends of which one has no IPv6 address, it is made for IPv4 alone."""
    pairs = observe.ends(lab_of("three-tenants-dual-stack"))
    own, other = next(pair for pair in pairs if pair[0].address6 and pair[1].address6)
    for pair, kinds in (
        ((own, other), ["arp", "nd"]),
        ((own, replace(other, address6=None)), ["arp"]),
        ((replace(own, address6=None), other), ["arp"]),
    ):
        monkeypatch.setattr(observe, "ends", lambda _, pair=pair: [pair])
        marks = [probe.mark for probe in observe._truths(FLEET, own.guest)]
        assert marks == [f"{observe.TRUTH}0{kind}" for kind in kinds]


def test_received_frames_of_strangers_are_kept_on_request_only() -> None:
    assert observe.observe.__kwdefaults__ == {"strays": False, "doubts": False}
