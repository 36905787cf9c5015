"""Formats of images: each undeclared one is a fault; an image that is not seen is not judged (STO-02)."""

from __future__ import annotations

import json
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.payload import image_probe
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.verify.storage import images
from tests.shapes import lab_of

LAB = lab_of("one-node")
GUEST = LAB.guests[0]
RECORDED = json.loads((Path(__file__).parents[1] / "devices/recorded.json").read_text())
WANTED = guest_xml(LAB, GUEST, {})
DISKS, NODES = (RECORDED["answers"][name] for name in ("disks", "images"))
ROOT, VOLUME = GUEST.disks
NAMED = "/run/named"
UNKEYED = f"looking at {VOLUME} without its key"
SIZES = {VOLUME: GUEST.volumes[0].size}
GOOD: dict[str, Any] = {
    "opened": {"control": 1, f"probing {VOLUME}": 1, UNKEYED: 0, "pools": 0, "sizes": 0, "profile": 0},
    "pools": [],
    "texts": {
        "sizes": f"Capacity:   {SIZES[VOLUME]}\nAllocation: 0",
        f"profile {VOLUME}": f'  "{VOLUME}" rwk,',
    },
}


def test_a_real_guests_images_are_as_declared() -> None:
    assert images.described(WANTED, RECORDED["xml"]) == []
    assert images.opened(WANTED, DISKS, NODES) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "name='qemu' type='raw'",
            "name='qemu' type='qcow2'",
            f"opens vdb as qcow2 {VOLUME}, and not as luks",
        ),
        ("name='qemu' type='raw'", "name='qemu'", f"opens vdb as any format {VOLUME}"),
        ("<format type='raw'/>", "<format type='qcow2'/>", "on qcow2 /var/lib/testbed/images/guest/root.raw"),
        ("images/guest/root.raw", "images/other", "on raw /var/lib/testbed/images/other"),
        ("web.data.luks", "db.data.luks", "vdb as luks"),
        ("dev='vdb'", "dev='vdc'", "opens vdc as luks"),
        ("<encryption format='luks'", "<encryption format='qcow'", "opens vdb as qcow /"),
    ],
)
def test_every_format_and_chain_of_libvirt_is_compared(old: str, new: str, told: str) -> None:
    assert old in RECORDED["xml"]
    faults = images.described(WANTED, RECORDED["xml"].replace(old, new, 1))
    assert any(told in fault for fault in faults), faults


@pytest.mark.parametrize("form", ["raw", "qcow2", "file", "nbd"])
def test_another_image_of_qemu_is_a_fault(form: str) -> None:
    """An image that QEMU has opened to find out its format is one more, whatever it has found."""
    more = {"drv": form, "image": {"filename": VOLUME}}
    faults = images.opened(WANTED, DISKS, [*NODES, more])
    assert faults == [f"QEMU has {VOLUME} open as {form}, which is not declared"]


def test_a_missing_image_is_a_fault() -> None:
    assert images.opened(WANTED, DISKS, NODES[1:]) != []
    with pytest.raises(UnseenError, match="no image"):
        images.opened(WANTED, DISKS, [])


@pytest.mark.parametrize("change", ["format", "file", "data", "device", "unknown"])
def test_every_part_of_a_disks_chain_is_compared(change: str) -> None:
    disks = deepcopy(DISKS)
    root = next(disk for disk in disks if disk["inserted"]["file"] == ROOT)
    shown = root["inserted"]
    if change == "format":
        del shown["image"]["backing-filename-format"]
    elif change == "file":
        shown["backing_file"] = "/etc/shadow"
    elif change == "data":
        shown["image"]["format-specific"]["data"]["data-file"] = "/etc/shadow"
    elif change == "device":
        del root["qdev"]
    else:
        shown["file"] = "/etc/shadow"
    (fault,) = images.opened(WANTED, disks, NODES)
    assert ("/etc/shadow" in fault) == (change in ("file", "unknown"))


@pytest.mark.parametrize(("disks", "nodes"), [({}, NODES), (DISKS, [{"drv": 1}]), ([{"inserted": 1}], NODES)])
def test_an_answer_of_another_form_is_not_judged(disks: object, nodes: object) -> None:
    with pytest.raises(UnseenError):
        images.opened(WANTED, disks, nodes)


def probed(**changed: Any) -> list[str]:
    answer = {**GOOD, **{name: {**GOOD[name], **more} for name, more in changed.items() if name != "pools"}}
    answer["pools"] = changed.get("pools", [])
    return images.probed(answer, NAMED, [VOLUME], SIZES)


def test_tools_that_open_nothing_pass() -> None:
    assert probed() == []


@pytest.mark.parametrize("tool", ["pools", "sizes", "profile"])
def test_every_tool_that_opens_the_named_file_is_a_fault(tool: str) -> None:
    assert probed(opened={tool: 2}) == [f"{NAMED} was opened for: {tool}"]


def test_a_pool_and_a_profile_with_the_named_file_are_faults() -> None:
    assert probed(pools=["red"]) == ["libvirt has the pool red, which reads each volume's format from it"]
    (fault,) = probed(texts={f"profile {VOLUME}": f'"{VOLUME}" rwk,\n"{NAMED}" rk,'})
    assert fault == f"a profile that is made for {VOLUME} would allow {NAMED}"


@pytest.mark.parametrize(
    "changed",
    [
        {"opened": {"control": 0}},
        {"opened": {f"probing {VOLUME}": 0}},
        {"texts": {"sizes": "status 1: no domain"}},
        {"texts": {"sizes": "Capacity: 4711"}},
        {"texts": {f"profile {VOLUME}": "status 1: no"}},
    ],
)
def test_a_look_that_would_not_have_seen_it_is_not_judged(changed: dict[str, Any]) -> None:
    with pytest.raises(UnseenError):
        probed(**changed)
    with pytest.raises(UnseenError):
        images.probed({"opened": {}}, NAMED, [VOLUME], SIZES)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="there is no qemu-img")
def test_the_header_is_what_a_tool_that_guesses_believes(tmp_path: Path) -> None:
    named, volume = tmp_path / "named", tmp_path / "volume.raw"
    named.write_text("x")
    volume.write_bytes(images.hostile_header(str(named), 1 << 20).ljust(1 << 20, b"\0"))
    done = subprocess.run(
        ["qemu-img", "info", "--output=json", volume], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert (found["format"], found["backing-filename"]) == ("qcow2", str(named))


def test_openings_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program counts a real opening of the file, and removes the file."""
    tools = tmp_path / "bin"
    tools.mkdir()
    named, volume = tmp_path / "named", tmp_path / "volume"
    for name, text in {
        "virsh": "",
        "qemu-img": f"cat {named}",
        "qemu-io": f"cat {named}",
        "helper": f"cat {named}",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(image_probe, "_HELPER", str(tools / "helper"))
    answer: Any = image_probe.collect(
        {"named": str(named), "volumes": [["red.web", "uuid", "vdb", str(volume), "64", "<a/>", "key"]]}
    )
    unkeyed = f"looking at {volume} without its key"
    assert answer["opened"] == {
        "control": 1, "pools": 0, unkeyed: 1, f"probing {volume}": 1, "sizes": 0, "profile": 1,
    }  # fmt: skip
    assert not named.exists()
