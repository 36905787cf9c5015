"""Hostile topology files: each is refused within bounds, with a line and a remedy.

No message is about Python.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.errors import TopologyError
from testbed.topology_file.loader import load
from tests.corpus import EXPENSIVE, corpus, validate

SEED = int(os.environ.get("TESTBED_CORPUS_SEED", "1"))
HEAD = (
    "version: 1\nname: lab\nnodes: {node-a: %s}\ntenants: {red: {networks: {app: 10.0.0.0/24}, guests: "
    "{web: %s}, allow: [%s]}}\n"
)


@pytest.mark.parametrize(
    ("name", "text"), corpus(150, SEED), ids=lambda value: value if len(value) < 40 else ""
)
def test_a_hostile_file_is_answered_within_bounds(name: str, text: str, tmp_path: Path) -> None:
    outcome = validate(text, tmp_path)
    assert not outcome.broken(), outcome.output[:2000]


@pytest.mark.parametrize(
    "name", ["alias bomb", "long alias", "unknown keys", "flows", "networks", "many digits"]
)
def test_a_file_that_was_expensive_once_is_cheap(name: str, tmp_path: Path) -> None:
    outcome = validate(EXPENSIVE[name](), tmp_path)
    assert not outcome.broken(), outcome.output[:2000]


def _mistakes(text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(TopologyError) as caught:
        load(text, "x.yaml")
    return [
        (mistake.line, mistake.path, f"{mistake.fact}; {mistake.remedy}") for mistake in caught.value.mistakes
    ]


@pytest.mark.parametrize(
    ("node", "guest", "flow", "said"),
    [
        ("{vcpus: true}", "{}", "", "true stands where a whole number belongs"),
        ("{vcpus: '2'}", "{}", "", "'2' stands where a whole number belongs"),
        ("{memory: 1 KiB}", "{}", "", "write a size from 512 MiB to 4096 GiB"),
        ("[]", "{}", "", "a list stands where a mapping belongs"),
        ("{}", "{memory: 1 KiB}", "", "write a size from 128 MiB to 1024 GiB"),
        ("{}", "{volumes: {data: 16777216 TiB}}", "", "'16777216 TiB' is not a size"),
        ("{}", "{volumes: {data: 17179869184 GiB}}", "", "write a size from 1 MiB to 16384 GiB"),
        ("{}", "{network: [app, b, c, d, e, f, g, h, i]}", "", "declare at most 8"),
        ("{}", "{x-note: 1}", "", "the format has no extension keys"),
        ("{}", "{<<: {}}", "", "the format has no merge keys"),
        ("{}", "!include web.yaml", "", "the format has no tags and no includes"),
        ("{}", "{network: ~}", "", "nothing stands where a list belongs"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_possible(node: str, guest: str, flow: str, said: str) -> None:
    found = _mistakes(HEAD % (node, guest, flow))
    assert [item for item in found if said in item[2]], found
    assert all(line >= 1 for line, _, _ in found)


def test_two_wrong_networks_are_not_one_network_twice() -> None:
    found = _mistakes(HEAD % ("{}", "{network: [1, 2]}", ""))
    assert [item for item in found if "belongs" in item[2] or "name" in item[2]], found
    assert not [item for item in found if "twice" in item[2] or "icmp" in item[2]], found


def test_variables_are_no_part_of_the_format() -> None:
    assert (
        "the format has no variables"
        in _mistakes((HEAD % ("{}", "{}", "")).replace("name: lab", "name: ${LAB}"))[0][2]
    )


def test_nothing_below_a_name_means_every_default() -> None:
    spec = load(HEAD % ("", "", ""), "x.yaml").spec
    assert spec.nodes["node-a"].vcpus == 2
    assert spec.tenants["red"].guests["web"].vcpus == 1


def test_twenty_mistakes_are_shown_and_the_others_counted() -> None:
    with pytest.raises(TopologyError) as caught:
        load("version: 1\n" + "".join(f"key{number}: 1\n" for number in range(50)), "x.yaml")
    text = str(caught.value)
    assert text.count("x.yaml:") == 20
    assert text.endswith("33 more mistakes are not shown; correct these first")


def test_a_mistake_behind_an_alias_is_shown_where_the_alias_is_used() -> None:
    found = _mistakes((HEAD % ("{}", "&web {cpus: 1}", "")) + "controller: *web\n")
    assert {(line, path) for line, path, _ in found} == {
        (4, "tenants.red.guests.web.cpus"),
        (5, "controller.cpus"),
    }
