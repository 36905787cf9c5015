"""Verdicts about a host that others have set up, given what its kernel shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.hosts.controls import CONTROLS, judge
from testbed.hosts.facts import HostFacts, Thread, Worker, parsed
from testbed.report.result import Verdict

NEEDED_ONLY = (
    *(
        step
        for number in (0, 1, 202, 271)
        for step in ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x7FFF0000))
    ),
    (0x06, 0, 0, 0x80000000),
)
ONE, TWO = (
    Worker(
        name=name,
        pid=number,
        label=f"libvirt-{name} (enforce)",
        accounts=(number,) * 4,
        threads=(Thread(2, 1, 1, 0),),
        mounts=f"mnt:[{number}]",
        devices=("c 1:3 null", "c 10:126 userfaultfd"),
        sockets=(),
        core=("0", "0"),
        filters=(NEEDED_ONLY,),
    )
    for name, number in (("one", 101), ("two", 102))
)
CLEAN = HostFacts(
    mounts="mnt:[1]",
    workers=(ONE, TWO),
    system="an operating system",
    deduplication=(0, 0, 0),
    core_pattern="core",
    sockets=(("/run/libvirt/libvirt-sock", "660", 0, 0),),
)


def verdicts(host: HostFacts) -> dict[str, Verdict]:
    return {finding.control: finding.verdict for finding in judge(host)}


def test_a_clean_host_passes_every_control() -> None:
    assert verdicts(CLEAN) == {control: Verdict.PASS for control, *_ in CONTROLS}


@pytest.mark.parametrize(
    ("control", "change", "told"),
    [
        ("ACC-05", {"sockets": (("/run/libvirt/libvirt-sock", "666", 0, 0),)}, "libvirt-sock (666)"),
        ("CMP-02", {"deduplication": (1, 0, 0)}, "merges equal pages"),
        ("CMP-02", {"deduplication": (0, 7, 9)}, "7 are shared"),
        ("STO-05", {"swap": ("/dev/sda2 partition 1 0 -2",)}, "swaps: /dev/sda2"),
        ("STO-05", {"core_pattern": "|/usr/lib/systemd/systemd-coredump %P"}, "handed to a program"),
        ("PRC-01", {"accounts": (101, 101, 101, 101)}, "one and two run under the account 101"),
        ("PRC-01", {"accounts": (102, 0, 102, 102)}, "two runs as root"),
        ("PRC-01", {"accounts": ()}, "two runs as root"),
        ("PRC-02", {"label": "unconfined"}, "two runs under the label 'unconfined'"),
        ("PRC-02", {"label": ""}, "no label"),
        ("PRC-02", {"label": "libvirt-two (complain)"}, "(complain)"),
        ("PRC-02", {"label": "libvirt-one (enforce)"}, "one and two run under one label"),
        ("PRC-03", {"threads": (Thread(0, 0, 0, 0),)}, "without a filter"),
        ("PRC-04", {"devices": ("b 8:0 sda",)}, "does not need: b 8:0 sda"),
        ("PRC-04", {"mounts": "mnt:[1]"}, "sees the file systems"),
        ("STO-05", {"core": ("0", "unlimited")}, "may write core files: two"),
    ],
)
def test_what_opens_a_wall_fails_its_control_and_no_other(
    control: str, change: dict[str, Any], told: str
) -> None:
    own = set(change) & set(HostFacts.__dataclass_fields__) - {"mounts"}
    host = replace(CLEAN, **change) if own else replace(CLEAN, workers=(ONE, replace(TWO, **change)))
    found = {finding.control: finding for finding in judge(host)}
    assert {name for name, finding in found.items() if finding.verdict is not Verdict.PASS} == {control}
    assert found[control].verdict is Verdict.FAIL
    assert told in found[control].reason


def test_selinux_confines_as_well() -> None:
    labels = ("system_u:system_r:svirt_t:s0:c1,c2", "system_u:system_r:svirt_tcg_t:s0:c3,c4")
    workers = tuple(replace(worker, label=label) for worker, label in zip((ONE, TWO), labels, strict=True))
    assert verdicts(replace(CLEAN, workers=workers))["PRC-02"] is Verdict.PASS
    same = tuple(replace(worker, label=labels[0]) for worker in (ONE, TWO))
    assert verdicts(replace(CLEAN, workers=same))["PRC-02"] is Verdict.FAIL


@pytest.mark.parametrize(
    ("control", "change"),
    [("ACC-05", {"sockets": ()}), ("CMP-02", {"deduplication": (0,)}), ("PRC-03", {"unread": "refused"})],
)
def test_what_is_not_seen_is_inconclusive(control: str, change: dict[str, Any]) -> None:
    workers = (replace(ONE, **change),) if "unread" in change else CLEAN.workers
    host = replace(CLEAN, workers=workers) if "unread" in change else replace(CLEAN, **change)
    assert verdicts(host)[control] is Verdict.INCONCLUSIVE


def test_without_guests_nothing_is_said_about_workers() -> None:
    found = verdicts(replace(CLEAN, workers=()))
    assert {control for control, verdict in found.items() if verdict is Verdict.NOT_APPLICABLE} == {
        "PRC-01", "PRC-02", "PRC-03", "PRC-04",
    }  # fmt: skip


@pytest.mark.parametrize("answer", [None, [], {"mounts": "m"}, {"mounts": "m", "workers": [], "more": 1}])
def test_another_answer_is_refused(answer: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parsed(answer)
