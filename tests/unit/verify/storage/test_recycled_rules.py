"""Rules about storage that is used again: each fault is named, and each blind look is no pass (STO-04)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.model.topology import LUKS_HEADER, POOLS
from testbed.verify.storage import recycled
from tests.shapes import lab_of

GUESTS = lab_of("one-node").guests
GUEST = GUESTS[0]
MOUNT = {"target": POOLS, "fstype": "ext4", "options": "rw,noatime"}
XML = "<domain><devices><disk><driver name='qemu'{}/></disk></devices></domain>"
DEVICE = {"size": 100, "chosen": 50, "read": 50, "found": {"": [1], "canary": []}}
DISK = {"size": 100, "read": 100, "found": {"canary": 0}, "files": {}}


def _mounts(**changes: str) -> dict[str, list[dict[str, str]]]:
    return {"filesystems": [{**MOUNT, **changes}]}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"target": "/"}, "no file system of its own"),
        ({"fstype": "btrfs"}, "btrfs does not overwrite in place"),
        ({"options": "rw,data=journal"}, "the journal of the file system has copies"),
    ],
)
def test_the_file_system_must_overwrite_in_place(changes: dict[str, str], fault: str) -> None:
    assert bool(fault) == bool(recycled.overwritten_in_place(_mounts(**changes)))
    assert fault in "".join(recycled.overwritten_in_place(_mounts(**changes)))


def test_every_file_belongs_to_a_guest_and_has_one_name() -> None:
    listed = [f"1 {path}" for guest in GUESTS for path in guest.disks]
    assert recycled.undeclared(listed, GUESTS) == []
    assert recycled.undeclared([*listed, f"1 {POOLS}/red/x.copy"], GUESTS) == [
        f"{POOLS}/red/x.copy is in no topology"
    ]
    assert recycled.undeclared([listed[0].replace("1", "2", 1), *listed[1:]], GUESTS) == [
        f"{GUEST.root_disk} has 2 names"
    ]
    for other in (listed[1:], [*listed, "x"]):
        with pytest.raises(UnseenError):
            recycled.undeclared(other, GUESTS)


def _disks(zeroes: str = "off", **image: Any) -> list[dict[str, Any]]:
    disk = {"drv": "luks", "file": "x", "detect_zeroes": zeroes, "image": {"filename": "x", **image}}
    return [{"inserted": disk}, {"device": "empty"}]


@pytest.mark.parametrize(
    ("words", "disks", "fault"),
    [
        ("", _disks(), ""),
        (" discard='ignore' detect_zeroes='off'", _disks(), ""),
        (" discard='unmap'", _disks(), "discard is unmap for a disk of red.web"),
        (" detect_zeroes='unmap'", _disks(), "detect_zeroes is unmap for a disk of red.web"),
        ("", _disks("unmap"), "QEMU looks for zeros that red.web writes: unmap"),
        ("", _disks(snapshots=[{"name": "one"}]), "x has 1 snapshots"),
    ],
)
def test_a_disk_keeps_its_blocks_and_has_no_snapshot(words: str, disks: Any, fault: str) -> None:
    assert recycled.kept_whole("red.web", XML.format(words), disks) == ([fault] if fault else [])


@pytest.mark.parametrize(
    ("xml", "disks"),
    [
        ("<domain>", _disks()),
        ("<domain/>", _disks()),
        (XML.format(""), []),
        (XML.format(""), [{"inserted": {}}]),
    ],
)
def test_a_domain_that_does_not_show_its_disks_is_not_judged(xml: str, disks: Any) -> None:
    with pytest.raises(UnseenError):
        recycled.kept_whole("red.web", xml, disks)


def test_a_guest_reads_its_whole_disk() -> None:
    assert recycled.of_disk("red/web", DISK, 100, ["canary"]).found == {"canary": 0}
    for changes in ({"read": 99}, {"size": 99}, {"found": {}}, {"found": {"canary": -1}}, {"more": 1}):
        with pytest.raises(UnseenError):
            recycled.of_disk("red/web", {**DISK, **changes}, 100, ["canary"])


def test_a_search_finds_its_own_text_or_does_not_count() -> None:
    assert recycled.left(recycled.of_device(DEVICE, ["canary"])) == []
    for found in ({"": [], "canary": []}, {"": [1]}, {"canary": []}, {"": [1], "canary": "x"}):
        with pytest.raises(UnseenError):
            recycled.of_device({**DEVICE, "found": found}, ["canary"])


def test_what_is_found_after_a_removal_is_a_fault_and_a_part_of_a_search_is_none() -> None:
    found = {**DEVICE, "found": {"": [1], "canary": [7, 8, 9]}}
    assert recycled.left(recycled.of_device(found, ["canary"])) == ["canary is on the device, at 7, 8"]
    with pytest.raises(UnseenError, match="49 of 50 octets"):
        recycled.left(recycled.of_device({**DEVICE, "read": 49}, ["canary"]))


def test_what_is_there_must_be_found() -> None:
    recycled.require_found({"a": [1], "b": 2}, ["a", "b"], "node")
    with pytest.raises(UnseenError, match="node does not show b, c of the running guest"):
        recycled.require_found({"a": [1], "b": []}, ["a", "b", "c"], "node")


def test_what_identifies_a_container_is_long_enough() -> None:
    assert recycled.identity({"texts": {"the header": "ab" * 16}}) == {"the header": "ab" * 16}
    for text in ("ab" * 15, "xy" * 16, 7):
        with pytest.raises(UnseenError):
            recycled.identity({"texts": {"the header": text}})


def test_new_disks_hold_nothing_and_are_sparse() -> None:
    guest = replace(GUEST, volumes=GUEST.volumes[:1])
    root, volume = guest.disks
    clean = {
        root: {"size": 9, "used": 9, "content": 0, "found": []},
        volume: {"size": 9, "used": 4096, "content": None, "found": []},
    }

    def judged(path: str = "", **changes: object) -> list[str]:
        files = {name: {**file, **(changes if name == path else {})} for name, file in clean.items()}
        return recycled.handed_out({"files": files}, guest)

    assert judged() == []
    assert judged(root, found=["canary"]) == [f"{root} holds canary"]
    assert judged(volume, content=LUKS_HEADER) == [f"{volume} has content before its guest has written"]
    assert judged(volume, used=LUKS_HEADER + 1) == [
        f"{volume} has {LUKS_HEADER + 1} octets of blocks, and is not sparse"
    ]
    with pytest.raises(UnseenError, match="1 of 2 disks"):
        recycled.handed_out({"files": {root: clean[root]}}, guest)
    with pytest.raises(UnseenError):
        judged(root, size=-1)
