"""What stands behind guests has one owner each: rules over what workers hold (CMP-01, DEV-02)."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from testbed.hosts.ownership import Holdings, Mapped, Opened, Ownership, not_private, owned_twice, parsed
from testbed.hosts.rules import UnseenError

MIB = 1 << 20
BASE = Opened("file", "254:16:14", "read", "/images/guest/root.raw", True)
LIBRARY = Mapped("r-xp", "254:1:7", "/usr/lib/libc.so.6", True)
DATA = Mapped("rw-p", "254:1:7", "/usr/lib/libc.so.6", True)
TABLE = Mapped("r--s", "254:1:8", "/usr/lib/gconv/gconv-modules.cache", True)
PROCESSOR = Mapped("rw-s", "0:16:97", "anon_inode:kvm-vcpu:0", False)


def holdings(number: int) -> Holdings:
    """Return what a worker holds whose objects have numbers of their own."""
    return Holdings(
        objects=(
            BASE,
            Opened("file", f"254:32:{number}", "write", f"/pools/{number}/web.qcow2", False),
            Opened("interface", f"tap{number}", "write", "/dev/net/tun", False),
            Opened("device", "10:232", "write", "/dev/kvm", False),
            Opened("terminal", f"{number}", "write", "/dev/ptmx", False),
            Opened("socket", f"0:9:{number}", "write", f"socket:[{number}]", False),
        ),
        mapped=(LIBRARY, DATA, TABLE, PROCESSOR),
        anonymous=64 * MIB,
        pages=64 * MIB // 4096,
    )


CLEAN = Ownership({"red.web": holdings(1), "red.db": holdings(2), "blue.web": holdings(3)}, (), 16)
TENANTS = {"red.web": "red", "red.db": "red", "blue.web": "blue"}
FILES = {f"254:32:{number}": {tenant} for number, tenant in ((1, "red"), (2, "red"), (3, "blue"))}
COMMON = ("/usr", "/images")


def changed(worker: str, **changes: Any) -> Ownership:
    return replace(CLEAN, workers={**CLEAN.workers, worker: replace(CLEAN.workers[worker], **changes)})


def opened(worker: str, held: Opened) -> list[str]:
    found = changed(worker, objects=(*CLEAN.workers[worker].objects, held))
    return owned_twice(found, TENANTS, FILES, COMMON)


def test_workers_with_objects_of_their_own_have_no_fault() -> None:
    assert not_private(CLEAN, COMMON) == []
    assert owned_twice(CLEAN, TENANTS, FILES, COMMON) == []


@pytest.mark.parametrize(
    ("mapped", "fault"),
    [
        (Mapped("rw-s", "0:1:5", "/memfd:ram (deleted)", False), "shares the memory of /memfd:ram (deleted)"),
        (Mapped("rw-s", "254:1:7", "/usr/lib/libc.so.6", True), "shares the memory of /usr/lib/libc.so.6"),
        (Mapped("r--s", "0:26:9", "/run/memory", False), "shares the memory of /run/memory"),
        (Mapped("rw-p", "0:26:9", "/run/memory", True), "has in its memory a part of /run/memory"),
        (Mapped("rw-p", "0:26:9", "/run/memory", False), "has in its memory a part of /run/memory"),
        (Mapped("r--p", "0:26:9", "/run/memory", False), "has in its memory a part of /run/memory"),
    ],
)
def test_memory_that_is_a_file_is_a_fault(mapped: Mapped, fault: str) -> None:
    found = changed("red.db", mapped=(*CLEAN.workers["red.db"].mapped, mapped))
    assert not_private(found, COMMON) == [f"red.db {fault}"]


def test_common_frames_are_a_fault_within_one_tenant_too() -> None:
    found = replace(CLEAN, common=(("red.db", "red.web", 256, 250), ("blue.web", "red.web", 1, 0)))
    assert not_private(found, COMMON) == [
        "red.db and red.web have 256 frames in common, 250 of them merged",
        "blue.web and red.web have 1 frames in common",
    ]


@pytest.mark.parametrize(
    "found",
    [
        replace(CLEAN, control=15),
        changed("red.web", pages=64 * MIB // 4096 * 8 // 10),
        changed("red.web", pages=0, anonymous=0),
    ],
)
def test_frames_that_were_not_seen_are_no_pass(found: Ownership) -> None:
    with pytest.raises(UnseenError):
        not_private(found, COMMON)


@pytest.mark.parametrize(
    "held",
    [
        Opened("file", "254:32:1", "read", "/pools/1/web.qcow2", False),
        Opened("socket", "0:9:1", "read", "socket:[1]", False),
        Opened("pipe", "0:9:1", "write", "pipe:[1]", False),
        Opened("interface", "tap1", "write", "/dev/net/tun", False),
        Opened("terminal", "1", "write", "/dev/ptmx", False),
    ],
)
def test_an_object_of_two_tenants_is_named_whatever_its_kind(held: Opened) -> None:
    (fault,) = opened("blue.web", held)
    assert fault.endswith("belongs to blue and red")


def test_a_mapping_of_anothers_volume_counts_as_well() -> None:
    volume = Mapped("r--p", "254:32:1", "/pools/1/web.qcow2", False)
    found = changed("blue.web", mapped=(*CLEAN.workers["blue.web"].mapped, volume))
    assert owned_twice(found, TENANTS, FILES, COMMON) == ["/pools/1/web.qcow2 belongs to blue and red"]


def test_a_volume_that_is_linked_into_another_pool_counts_without_a_worker() -> None:
    files = {**FILES, "254:32:1": {"red", "blue"}}
    assert owned_twice(CLEAN, TENANTS, files, COMMON) == ["/pools/1/web.qcow2 belongs to blue and red"]


def test_guests_of_one_tenant_may_have_objects_in_common() -> None:
    assert opened("red.db", Opened("file", "254:32:1", "read", "/pools/1/web.qcow2", False)) == []


@pytest.mark.parametrize(
    "changes",
    [{"access": "write"}, {"fixed": False}, {"path": "/images.old/root.raw"}, {"path": "/pools/root.raw"}],
)
def test_a_base_image_is_common_only_for_reading_and_while_it_is_fixed(changes: dict[str, Any]) -> None:
    base = BASE._replace(**changes)
    workers = {
        name: replace(worker, objects=(base, *worker.objects[1:])) for name, worker in CLEAN.workers.items()
    }
    (fault,) = owned_twice(replace(CLEAN, workers=workers), TENANTS, FILES, COMMON)
    assert fault == f"{base.path} belongs to blue and red"


def test_a_disk_of_the_node_is_no_empty_device() -> None:
    disk = Opened("device", "21:0", "read", "/dev/sg0", False)
    workers = {
        name: replace(worker, objects=(*worker.objects, disk)) for name, worker in CLEAN.workers.items()
    }
    assert owned_twice(replace(CLEAN, workers=workers), TENANTS, FILES, COMMON) == [
        "/dev/sg0 belongs to blue and red"
    ]


def test_an_answer_of_another_form_is_refused() -> None:
    answer = asdict(CLEAN)
    assert parsed(answer) == CLEAN
    for other in ({}, {**answer, "more": 1}, {**answer, "common": [["red.web", "red.db"]]}):
        with pytest.raises(ValueError, match="loc"):
            parsed(other)
