"""Limits of compute: from the file to control groups and QEMU, and back (DOS-02 to DOS-05)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from pydantic import ValidationError

from testbed.errors import TopologyError
from testbed.model.resolve import resolve
from testbed.model.topology import Topology
from testbed.plan import compute_limits
from testbed.plan.compute_limits import DiskThrottle, observed, of_workers, throttles, wanted
from testbed.plan.controls import Walls
from testbed.plan.diff import Difference
from testbed.plan.host_config.settings import settings
from testbed.plan.libvirt_xml.guest import anonymous_guest_xml, guest_xml
from testbed.plan.libvirt_xml.limits import UNITS
from testbed.plan.resources import Key, Kind
from testbed.topology_file.loader import load
from testbed.topology_file.quantities import MIB
from testbed.topology_file.schema import LimitsSpec, Spec
from tests.shapes import lab_of

SCOPE = r"machine.slice/machine-qemu\x2d1\x2dred.web.scope"
PRINTED = """\
worker red.web
cpu.max max 100000
cpu.weight 100
cpu.max 80000 100000
cpu.weight 100
memory.max 335544320
memory.swap.max max
cpu.max max 100000
cpu.weight 100
memory.max max
memory.swap.max 0
pids.max 128
worker red.db
"""
DISK = {"group": "red.web", "iops": 500, "iops_max": 50, "bps": 4 * MIB, "bps_max": 0}
THROTTLES = [DiskThrottle("red.web", 500, 4 * MIB)] * 2
GUEST = lab_of("one-node").guests[0]


def seen(printed: str = PRINTED, disks: list[DiskThrottle] = THROTTLES) -> compute_limits.Values:
    return observed(of_workers(printed), disks, "red.web")


def _lab(limits: dict[str, object], vcpus: int = 1) -> Topology:
    guests = {"web": {"limits": limits, "vcpus": vcpus}, "db": {}}
    red = {"networks": {"app": "10.0.0.0/24"}, "guests": guests}
    return resolve(
        Spec.model_validate({"version": 1, "name": "x", "nodes": {"node": {}}, "tenants": {"red": red}})
    )


def test_a_guest_with_all_of_its_limits_equals_what_is_wanted() -> None:
    assert seen() == wanted(GUEST)


@pytest.mark.parametrize(
    ("old", "new", "name", "value"),
    [
        ("80000 100000", "max 100000", "cpu", 0),
        ("80000 100000", "garbage", "cpu", 0),
        (
            "max 100000\ncpu.weight 100\nmemory.max max",
            "40000 100000\ncpu.weight 100\nmemory.max max",
            "cpu",
            40,
        ),
        ("cpu.weight 100\nmemory.max max", "cpu.weight 10000\nmemory.max max", "cpu_weight", 10000),
        ("memory.max 335544320", "memory.max max", "memory", 0),
        ("memory.swap.max 0", "memory.swap.max max", "swap", "any"),
        ("pids.max 128", "pids.max max", "threads", 0),
    ],
)
def test_each_limit_that_differs_is_seen(old: str, new: str, name: str, value: object) -> None:
    assert old in PRINTED
    assert seen(PRINTED.replace(old, new)) == {**wanted(GUEST), name: value}


def test_a_worker_outside_of_its_groups_has_no_limit() -> None:
    found = seen("worker red.web\n")
    assert [found[name] for name in ("cpu", "memory", "swap", "threads")] == [0, 0, "any", 0]
    assert seen("worker red.db\n") == found


@pytest.mark.parametrize(
    ("disks", "operations"),
    [
        ([], 0),
        ([DiskThrottle("a", 500, 1), DiskThrottle("a", 500, 1)], 500),
        ([DiskThrottle("a", 500, 1), DiskThrottle("b", 500, 1)], 1000),
        ([DiskThrottle("a", 500, 1), DiskThrottle("b", 0, 1)], 0),
    ],
)
def test_disks_of_one_group_share_its_limit(disks: list[DiskThrottle], operations: int) -> None:
    assert seen(disks=disks)["disk_operations"] == operations


def test_throttles_are_those_of_qemu_and_a_burst_counts_as_the_limit() -> None:
    bursting = {**DISK, "iops_max": 9000}
    found = throttles([{"inserted": DISK}, {"inserted": bursting}])
    assert found == [DiskThrottle("red.web", 500, 4 * MIB), DiskThrottle("red.web", 9000, 4 * MIB)]


@pytest.mark.parametrize(
    "answer",
    [None, [None], [{}], [{"inserted": {**DISK, "iops": "500"}}], [{"inserted": {**DISK, "bps": -1}}]],
)
def test_an_answer_of_another_form_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match=r"limit|disk"):
        throttles(answer)


def test_the_command_reads_every_group_from_the_worker_to_the_slice(tmp_path: Path) -> None:
    inner = tmp_path / "cgroup" / SCOPE / "libvirt/emulator"
    inner.mkdir(parents=True)
    for path, text in (
        (inner / "cpu.max", "max 100000"),
        (inner.parent / "memory.max", "5"),
        (inner.parents[1] / "pids.max", "128"),
        (inner.parents[2] / "pids.max", "7"),  # of the slice: not the guest's own
    ):
        path.write_text(f"{text}\n")
    run, proc = tmp_path / "run", tmp_path / "proc"
    run.mkdir()
    (proc / "77").mkdir(parents=True)
    (run / "red.web.pid").write_text("77")  # libvirt writes no end of line
    (run / "red.gone.pid").write_text("78")
    (run / "driver.pid").write_text("1\n")
    (proc / "77/cgroup").write_text(f"0::/{SCOPE}/libvirt/emulator\n")
    command = compute_limits.GROUPS
    for place, own in (
        ("/run/libvirt/qemu", run),
        ("/proc/", f"{proc}/"),
        ("/sys/fs/cgroup", tmp_path / "cgroup"),
    ):
        assert place in command
        command = command.replace(place, str(own))
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    assert of_workers(done.stdout) == {"red.web": ["cpu.max max 100000", "memory.max 5", "pids.max 128"]}


def test_a_domain_carries_the_limits_of_its_guest() -> None:
    guest = _lab(
        {"cpu": "50%", "cpu_weight": 7, "memory_overhead": "64 MiB", "disk_operations": "9/s"}, 2
    ).guests[0]
    root = ET.fromstring(guest_xml(lab_of("one-node"), guest, {}))
    assert root.findtext("memtune/hard_limit") == str((224 + 64) * 1024)
    assert root.findtext("cputune/shares") == "7"
    assert root.findtext("cputune/global_quota") == root.findtext("cputune/global_period") == "100000"
    tunes = root.findall("devices/disk/iotune")
    assert len(tunes) == len(root.findall("devices/disk"))
    assert {tune.findtext("total_iops_sec") for tune in tunes} == {"9"}
    assert {tune.findtext("group_name") for tune in tunes} == {guest.domain}


def test_nodes_restore_the_files_of_their_images() -> None:
    folder = Path(__file__).parents[3] / "playbooks/roles/hypervisor/files"
    texts = [(folder / name).read_text() for name in ("machine-scope.conf", "machine-slice.conf")]
    assert list(UNITS.values()) == texts
    lab = lab_of("one-node")
    repairs = {item.name: item for item in settings(lab, lab.nodes[0])}
    assert repairs["console-logs"].value == (folder / "virtlogd-limits.conf").read_text().strip()
    assert repairs["guest-units"].value == "".join(texts).strip()


def test_the_guest_whose_memory_is_saved_has_no_limits() -> None:
    root = ET.fromstring(anonymous_guest_xml())
    assert [root.find(tag) for tag in ("memtune", "cputune", "devices/disk/iotune")] == [None] * 3


@pytest.mark.parametrize(
    "limits",
    [
        {"cpu": "0%"}, {"cpu": "101%"}, {"cpu": 50}, {"cpu_weight": 0}, {"cpu_weight": 10001},
        {"memory_overhead": "63 MiB"}, {"memory_overhead": 5}, {"disk_operations": "0/s"},
        {"disk_operations": 5}, {"disk_bandwidth": "8 Mbit/s"}, {"disk_bandwidth": "0 MiB/s"},
    ],
)  # fmt: skip
def test_a_limit_that_cannot_be_is_refused(limits: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LimitsSpec.model_validate(limits)


FILE = """\
version: 1
name: x
nodes: {node: {memory: %s}}
tenants:
  red:
    networks: {app: 10.0.0.0/24}
    guests: {web: {volumes: {data: %s}, limits: {memory_overhead: %s}}}
"""


@pytest.mark.parametrize(
    ("memory", "volume", "overhead", "fact"),
    [
        ("960 MiB", "1 MiB", "96 MiB", ""),
        ("959 MiB", "1 MiB", "96 MiB", "its guests may use 320 MiB"),
        ("2 GiB", "1 MiB", "2 GiB", "its guests may use 2272 MiB"),
        ("2 GiB", "28 GiB", "96 MiB", ""),
        ("2 GiB", "29 GiB", "96 MiB", "take up to 29 GiB"),
    ],
)
def test_guests_must_fit_the_memory_and_the_file_system_of_their_node(
    memory: str, volume: str, overhead: str, fact: str
) -> None:
    text = FILE % (memory, volume, overhead)
    if not fact:
        assert load(text, "x.yaml").spec.name == "x"
        return
    with pytest.raises(TopologyError) as caught:
        load(text, "x.yaml")
    assert fact in str(caught.value)


@pytest.mark.parametrize(
    ("name", "control"),
    [("cpu", "DOS-02"), ("memory", "DOS-03"), ("disk_bandwidth", "DOS-04"), ("threads", "DOS-05")],
)
def test_a_limit_that_differs_fails_its_control(name: str, control: str) -> None:
    lab = lab_of("one-node")
    key = Key("node", Kind.COMPUTE, GUEST.label)
    assert Walls.of_lab(lab).endangered(Difference(key, name, 0, 1)) == {control}
