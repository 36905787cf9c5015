"""Rules about imported images, and the confinement of their gate (STO-03)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.plan.host_config import image_import
from testbed.verify.storage import imports
from testbed.verify.storage.imports import judged

SIZE = 2 << 20
PASSED = ["", 0.1, 20_000]
REFUSED = ["it has a backing file", 0.1, 20_000]
TRIED = {"control: its request is read": "", "become root": "PermissionError: no", "mount": "OSError: no"}


def image(name: str, *, good: bool, answer: Any, volume: str) -> list[Any]:
    """Return what became of one image."""
    return [name, good, answer, volume]


CLEAN: dict[str, Any] = {
    "opened": {
        "before": 0, "control named": 1, "control neighbour": 1, "control port": 1,
        "control chain": 1, "gate": 0, "taken": 0,
    },
    "images": [
        image("good-raw", good=True, answer=PASSED, volume="whole"),
        image("vdi-as-raw", good=True, answer=PASSED, volume="whole"),
        *(image(f"bad-{number}", good=False, answer=REFUSED, volume="blank") for number in range(60)),
    ],
    "gate": {"status": 0, "memory": 30 << 20, "errors": ""},
    "spent": {"images": 4.0, "gate": 9.0, "all": 20.0},
    "taken": {
        "printed": json.dumps(TRIED), "errors": "", "outside": {**imports.limits(SIZE), "Uid": "61234"},
    },
}  # fmt: skip


def changed(*place: str | int, to: Any) -> dict[str, Any]:
    """Return a clean answer in which one part differs."""
    found: dict[str, Any] = json.loads(json.dumps(CLEAN))  # no part is shared
    part: Any = found
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = to
    return found


def test_a_gate_that_lets_nothing_pass_has_no_fault() -> None:
    assert judged(CLEAN, SIZE) == []


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (changed("images", 5, 2, to=PASSED), "bad-3 is imported"),
        (
            changed("images", 5, 3, to="other"),
            "bad-3 is refused, and has left something in the volume",
        ),
        (changed("images", 0, 3, to="other"), "good-raw is imported with other octets"),
        (
            changed("images", 1, 2, to=REFUSED),
            "vdi-as-raw is not taken as raw octets: it has a backing file",
        ),
        (changed("images", 5, 2, 2, to=10**6), "bad-3 took 1000000 KiB and 0.1 s"),
        (changed("opened", "gate", to=2), "what images name was opened 2 times while they were imported"),
        (
            changed("opened", "taken", to=1),
            "what images name was opened 1 times by a parser that was taken over",
        ),
        (
            changed("taken", "printed", to=json.dumps({**TRIED, "mount": ""})),
            "a parser that is taken over can mount",
        ),
        (
            changed("taken", "outside", "Max open files", to="1048576"),
            f"Max open files of the gate is 1048576, and not {image_import.DESCRIPTORS}",
        ),
        (changed("taken", "outside", "Uid", to="0"), "the gate runs as root"),
    ],
)  # fmt: skip
def test_what_the_gate_lets_pass_is_a_fault(answer: dict[str, Any], fault: str) -> None:
    assert judged(answer, SIZE) == [fault]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        changed("opened", "control chain", to=0),
        changed("opened", "control named", to=0),
        changed("images", 0, 2, to=REFUSED),
        changed("images", 7, 2, to=None),
        changed("images", to=CLEAN["images"][:20]),
        changed("gate", "memory", to=0),
        changed("taken", "printed", to=""),
        changed("taken", "printed", to=json.dumps({**TRIED, "control: its request is read": "no"})),
        changed("taken", "outside", to={}),
    ],
)
def test_a_look_that_is_not_complete_judges_nothing(answer: dict[str, Any]) -> None:
    with pytest.raises(UnseenError):
        judged(answer, SIZE)


def test_the_gate_has_no_network_key_capability_or_file_of_its_node() -> None:
    found = image_import.properties("/run/testbed-import.x", SIZE, 20)
    assert {
        "DynamicUser=yes",
        "RootDirectory=/run/testbed-import.x/root", "PrivateNetwork=yes", "CapabilityBoundingSet=",
        f"LimitFSIZE={SIZE}", "LimitCPU=20"
    } <= set(found)  # fmt: skip
    writable = [text for text in found if text.startswith("BindPaths=")]
    assert writable == ["BindPaths=/run/testbed-import.x/out:/import/out"]
    words = image_import.command("a", "/run/testbed-import.x", SIZE, 20)
    assert words[-3:] == ["/usr/bin/python3", "-IS", "/import/gate.py"]
    assert "--unit=testbed-import-a" in words


def test_the_gate_is_one_program_that_imports_nothing_of_ours() -> None:
    compile(imports.import_gate(), "gate", "exec")
    assert (
        imports.import_gate(lambda text: text.replace("virtual_size(", "no_size(")) != imports.import_gate()
    )
