"""Two witnesses of one guest: what counts, where they differ, and when there is a pass."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.model.reachability import Endpoint
from testbed.verify.observation import tap_witness, two_witnesses
from testbed.verify.observation.arrivals import Observation
from testbed.verify.probe.tokens import Tokens

TOKENS = Tokens("tb-0123abcd-", b"key")
OTHERS = Tokens("tb-0123abcd-", b"a key that a guest has made up")
WEB, DB = "red/web", "blue/db"
Records = list[dict[str, Any]]


def _record(mark: str, tokens: Tokens = TOKENS, **more: object) -> dict[str, Any]:
    return {"kind": "raw", "token": tokens.of(mark), **more}


def _seen(told: Records, seen: Records, doubt: InstrumentError | None = None) -> Observation:
    return Observation.compared(TOKENS, {WEB: [], DB: told}, {WEB: [], DB: seen}, {}, {}, doubt)


def _ends() -> tuple[Endpoint, Endpoint]:
    web = Endpoint(WEB, "red/app", "0a:00:00:00:00:01", IPv4Address("10.0.0.2"))
    return web, Endpoint(DB, "blue/app", "0a:00:00:00:00:02", IPv4Address("10.0.0.3"))


@pytest.mark.parametrize(("told", "seen", "arrivals"), [
    ([], [], []),
    ([_record("a")], [_record("a")], [DB]),
    ([], [_record("a")], [f"{DB} (which conceals it)"]),
    ([_record("a")], [], [f"{DB} (by a path that its node does not see)"]),
    ([_record("b")], [_record("a")], [f"{DB} (which conceals it)"]),
    ([_record("a", OTHERS)], [], []),
    ([], [_record("a", OTHERS)], []),
    ([{"kind": "raw", "token": "tb-0123abcd-a."}], [], []),
    ([{"kind": "raw", "token": ["tb"]}, {}], [], []),
])  # fmt: skip
def test_a_frame_has_arrived_if_either_witness_saw_its_token(
    told: Records, seen: Records, arrivals: list[str]
) -> None:
    """A deaf or lying guest hides nothing that its node handed to it, and claims nothing that it cannot
    know.
    """
    found = _seen(told, seen)
    assert list(found.arrivals("a").values()) == arrivals
    assert found.arrived("a", DB) == bool(arrivals)
    assert found.sightings("a") == [DB] * bool(arrivals)


def test_what_carries_no_token_counts_by_the_nodes_word_alone() -> None:
    """A guest can make up that it was asked for, or what DHCP answered; its node has no reason to."""
    web, db = _ends()
    asked = {"kind": "arp-request", "token": "", "mac": web.mac, "target": str(db.address)}
    offer = {"kind": "dhcp", "token": "03000001", "target": "10.0.0.9"}
    made_up, true = _seen([asked, offer], []), _seen([], [asked, offer])
    assert (made_up.resolved(web, db), true.resolved(web, db)) == (False, True)
    assert (made_up.records[DB], true.records[DB]) == ([], [asked, offer])


def test_a_question_that_calls_itself_a_truth_is_a_question() -> None:
    """What ends of flows tell of themselves unasked is no answer; only a token that was handed out says that
    it is such.
    """
    web, db = _ends()
    for tokens, expected in ((TOKENS, False), (OTHERS, True)):
        asked = {
            "kind": "arp-request",
            "token": tokens.of("truth0arp"),
            "mac": web.mac,
            "target": str(db.address),
        }
        assert _seen([], [asked]).resolved(web, db) is expected


def test_a_frame_that_both_saw_counts_once_and_what_only_a_listener_knows_counts_as_well() -> None:
    both, accepted = (
        _record("a", at=1.0, until=3.0, times=2),
        {"kind": "tcp-accepted", "token": TOKENS.of("a")},
    )
    found = two_witnesses.counted(TOKENS, [both, accepted], [{**both, "at": 2.0}])
    assert found == [{**both, "at": 2.0}, accepted]


def test_witnesses_differ_in_what_one_of_them_saw() -> None:
    found = _seen([_record("a"), _record("b"), _record("x", OTHERS)], [_record("b"), _record("c")])
    assert (found.past(), found.concealed()) == ({DB: {"a"}}, {DB: {"c"}})
    same = _seen([_record("a")], [_record("a"), {"kind": "dhcp", "token": "01000000"}])
    assert (same.past(), same.concealed()) == ({}, {})


def test_there_is_no_pass_while_a_guest_conceals_what_it_may_hear() -> None:
    found = _seen([_record("b")], [_record("a"), _record("b")])
    with pytest.raises(InstrumentError, match="blue/db conceals 1 frames that its node handed to it"):
        tap_witness.require_agreement(found, ["a", "b"])
    tap_witness.require_agreement(found, ["b"])
    tap_witness.require_agreement(_seen([_record("a")], [_record("a")]), ["a"])


def test_there_is_no_pass_while_a_guest_cannot_vouch_for_the_window() -> None:
    doubt = InstrumentError(
        "the recorder in blue/db cannot vouch for the whole window", fact="dropped", remedy="-"
    )
    with pytest.raises(InstrumentError, match="cannot vouch"):
        tap_witness.require_agreement(_seen([], [], doubt), [])
