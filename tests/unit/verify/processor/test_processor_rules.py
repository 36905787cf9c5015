"""Processors of guests, as recorded on a real node: each feature that runs guests is a fault (CMP-04)."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.verify.processor import rules
from tests.shapes import lab_of

LAB = lab_of("one-node")
DECLARED = guest_xml(LAB, LAB.guests[0], {})
# What the guest red/web of topologies/one-node.yaml shows, and QEMU's property "feature-words".
RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded.json").read_text())
GIVEN = rules.of_qemu(RECORDED["words"])
SHOWN = rules.of_guest(RECORDED["guest"])
WORDS = rules.words(SHOWN.cpus["0"])


def test_a_real_guest_has_what_is_declared() -> None:
    assert rules.forbidden(WORDS) == []
    assert rules.forbidden(GIVEN) == []
    assert rules.different(GIVEN, WORDS) == []
    assert rules.answered(SHOWN.attempts) == []
    assert rules.undeclared(DECLARED, DECLARED.replace("check=", "migratable='on' check=")) == []


@pytest.mark.parametrize("feature", rules.FORBIDDEN, ids=lambda feature: f"{feature.leaf} {feature.register}")
def test_each_forbidden_feature_is_a_fault(feature: rules.Feature) -> None:
    lowest = feature.bits & -feature.bits
    place = feature.leaf, feature.register
    assert rules.forbidden({**WORDS, place: WORDS.get(place, 0) | lowest}) == [f"it has {feature.name}"]


@pytest.mark.parametrize("name", [name for name in SHOWN.attempts if name != "control"])
def test_each_attempt_that_does_not_fault_is_a_fault(name: str) -> None:
    assert rules.answered({**SHOWN.attempts, name: "done"}) == [f"it can {name}"]


def test_a_guest_that_shows_another_processor_than_qemu_gives_is_a_fault() -> None:
    place = ("80000001.0", rules.ECX)
    (fault,) = rules.different({**GIVEN, place: GIVEN[place] | 4}, WORDS)
    assert fault == "leaf 80000001.0 ECX is 0x71 in it, and 0x75 in QEMU"


def test_bits_that_follow_the_processors_state_may_differ() -> None:
    for place, bits in {("1.0", rules.ECX): 1 << 27, ("1.0", rules.EDX): 1 << 9}.items():
        assert rules.different({**GIVEN, place: GIVEN[place] ^ bits}, WORDS) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('mode="host-passthrough"', 'mode="maximum"', "the processor's mode maximum"),
        ('policy="disable" name="svm"', 'policy="require" name="svm"', "the feature svm require"),
        ('<feature policy="disable" name="vmx" />', "", "the feature vmx unset"),
        ('<pmu state="off" />', "", "performance counters unset"),
        ('<pmu state="off" />', '<pmu state="on" />', "performance counters on"),
        ("</cpu>", '<feature policy="force" name="x" /></cpu>', "the feature x force"),
    ],
)
def test_each_part_of_the_processor_in_libvirts_xml_is_compared(old: str, new: str, told: str) -> None:
    assert old in DECLARED
    (fault,) = rules.undeclared(DECLARED, DECLARED.replace(old, new))
    assert told in fault


def _answer(**changed: Any) -> dict[str, Any]:
    return {**deepcopy(RECORDED["guest"]), **changed}


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        _answer(cpus={}),
        _answer(cpus={"0": {"1.0": [1, 2, 3]}}),
        _answer(cpus={"0": {"1.0": [1, 2, 3, 2**32]}}),
        _answer(cpus={"0": {f"{leaf:x}.0": [0, 0, 0, 0] for leaf in range(300)}}),
        _answer(attempts={"x" * 100: "EIO"}),
        _answer(attempts={"x": 5}),
        _answer(more=1),
    ],
)
def test_a_guest_that_answers_in_another_form_is_not_judged(answer: object) -> None:
    with pytest.raises(UnseenError):
        rules.of_guest(answer)


@pytest.mark.parametrize("answer", [None, [{}], [{**RECORDED["words"][0], "cpuid-register": "EIP"}]])
def test_an_answer_of_qemu_in_another_form_is_not_judged(answer: object) -> None:
    with pytest.raises(UnseenError):
        rules.of_qemu(answer)


@pytest.mark.parametrize(
    "attempts",
    [
        {},
        {name: outcome for name, outcome in SHOWN.attempts.items() if name != "enable SVM"},
        {**SHOWN.attempts, "control": "EIO"},
        {**SHOWN.attempts, "enable SVM": "EPERM"},
        {**SHOWN.attempts, "enable SVM": "ENODATA"},
    ],
)
def test_attempts_that_did_not_reach_the_processor_are_not_judged(attempts: dict[str, str]) -> None:
    with pytest.raises(UnseenError):
        rules.answered(attempts)


def test_a_processor_that_shows_no_hypervisor_was_not_read() -> None:
    with pytest.raises(UnseenError):
        rules.forbidden({})
    with pytest.raises(UnseenError):
        rules.different({}, WORDS)
    with pytest.raises(UnseenError):
        rules.undeclared(DECLARED, "<domain>")
