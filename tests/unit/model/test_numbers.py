"""Numbers once given stay, whatever comes, goes or changes places in the file."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.model import numbers
from testbed.model.numbers import KEYS, Numbers, hashed
from testbed.model.resolve import resolve
from testbed.model.topology import Topology
from testbed.topology_file.loader import load
from tests.strategies import changes, crowded, reordered

MANY = settings(max_examples=60, deadline=None)
SLOTS = range(4)


def _lab(data: dict[str, Any], given: Numbers | None = None) -> Topology:
    return resolve(load(json.dumps(data), "random").spec, given)


def _of(lab: Topology) -> dict[tuple[str, str], int]:
    return {
        (scope, name): number
        for scope, names in Numbers.of(lab).scopes.items()
        for name, number in names.items()
    }


@MANY
@given(crowded(), st.data())
def test_the_order_in_the_file_decides_nothing(data: dict[str, Any], choice: st.DataObject) -> None:
    other = choice.draw(reordered(data))
    assert _of(_lab(data)) == _of(_lab(other))


@MANY
@given(changes())
def test_others_keep_their_numbers_when_names_come_and_go(
    pair: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    before, after = pair
    old = _lab(before)
    new = _lab(after, Numbers.of(old))
    kept, found = _of(old), _of(new)
    assert {key: found[key] for key in kept if key in found} == {
        key: kept[key] for key in kept if key in found
    }
    for scope, names in Numbers.of(new).scopes.items():
        gone = {number for name, number in Numbers.of(old).scopes.get(scope, {}).items() if name not in names}
        came = {number for name, number in names.items() if name not in Numbers.of(old).scopes.get(scope, {})}
        assert len(set(names.values())) == len(names)
        assert not gone & came, "a number is free only when what had it is gone"


@MANY
@given(changes())
def test_memory_survives_a_file(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found = Numbers.of(_lab(pair[0]))
    assert numbers.read(found.text()) == found
    assert _of(_lab(pair[0], found)) == _of(_lab(pair[0]))


def _colliding(count: int) -> list[str]:
    """Return names that all want the same slot."""
    names = [f"name-{number}" for number in range(200)]
    return [name for name in names if hashed("salt", name) % len(SLOTS) == 0][:count]


def test_without_memory_names_that_collide_choose_in_the_order_of_their_hashes() -> None:
    one, two = _colliding(2)
    first = min(one, two, key=lambda name: hashed("salt", name))
    for order in ([one, two], [two, one]):
        assert Numbers().spread("x", order, SLOTS, "salt")[first] == 0


def test_a_new_name_takes_no_number_of_another() -> None:
    one, two, three = sorted(_colliding(3), key=lambda name: hashed("salt", name))
    given = Numbers({"x": Numbers().spread("x", [two], SLOTS, "salt")})
    assert given.spread("x", [one, two, three], SLOTS, "salt") == {two: 0, one: 1, three: 2}


def test_a_removed_name_frees_its_number_only_when_it_is_forgotten() -> None:
    one, two = _colliding(2)
    given = Numbers({"x": {one: 0}})
    assert given.spread("x", [two], SLOTS, "salt") == {two: 1}
    assert Numbers().spread("x", [two], SLOTS, "salt") == {two: 0}


def test_removed_names_yield_where_there_is_no_other_number() -> None:
    gone = Numbers({"x": {f"gone-{number}": number for number in SLOTS}})
    names = [f"name-{number}" for number in SLOTS]
    assert sorted(gone.spread("x", names, SLOTS, "salt").values()) == list(SLOTS)


@pytest.mark.parametrize("number", [-1, 4, 2**70])
def test_a_number_outside_the_range_is_not_kept(number: int) -> None:
    given = Numbers({"x": {"one": number}})
    assert given.spread("x", ["one"], SLOTS, "salt") == Numbers().spread("x", ["one"], SLOTS, "salt")


def test_a_number_that_two_names_remember_is_kept_by_one() -> None:
    found = Numbers({"x": {"one": 3, "two": 3}}).spread("x", ["one", "two"], SLOTS, "salt")
    assert len(set(found.values())) == 2
    assert 3 in found.values()


def test_a_network_that_changes_has_no_memory() -> None:
    def data(network: str) -> dict[str, Any]:
        tenant = {"networks": {"app": network}, "guests": {"web": {}}}
        return {"version": 1, "name": "lab", "nodes": {"node": {}}, "tenants": {"red": tenant}}

    before = Numbers({"guests on red/app 10.0.0.0/24": {"web": 77}, KEYS: {"red/app": 5}})
    assert str(_lab(data("10.0.0.0/24"), before).guests[0].nics[0].address) == "10.0.0.77"
    moved = _lab(data("10.0.1.0/24"), before)
    assert moved.guests == _lab(data("10.0.1.0/24")).guests
    assert [network.key for network in moved.switches()] == [5]


def test_numbers_beside_others_win() -> None:
    found = Numbers({"x": {"one": 1}}).beside(Numbers({"x": {"one": 2, "two": 3}, "y": {"three": 4}}))
    assert found == Numbers({"x": {"one": 1, "two": 3}, "y": {"three": 4}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "scopes": {}}',
        '{"format": 1, "scopes": []}',
        '{"format": 1, "scopes": {"x": {"one": true}}}',
    ],
)
def test_a_text_that_holds_no_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        numbers.read(text)
