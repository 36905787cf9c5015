"""Rules about encrypted volumes, on what a real guest shows and on answers that are wrong in one place."""

from __future__ import annotations

import copy
import json
import os
import secrets
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from testbed.drivers.places import luks_volumes
from testbed.hosts.rules import UnseenError
from testbed.model.topology import volume_secret
from testbed.payload import volume_encryption
from testbed.plan.libvirt_xml.guest import anonymous_guest_xml, guest_xml
from testbed.verify.devices.declared import file_of, secret_names
from testbed.verify.storage import encryption
from tests.shapes import lab_of

LAB = lab_of("one-node")
GUEST = LAB.guests[0]
RECORDED = json.loads((Path(__file__).parents[1] / "devices/recorded.json").read_text())
XML, DISKS = RECORDED["xml"], RECORDED["answers"]["disks"]
PATH = GUEST.disks[1]
UUID = volume_secret("red")
HELD = {UUID: f"<secret ephemeral='yes' private='yes'><uuid>{UUID}</uuid></secret>"}
GOOD: dict[str, Any] = {
    "opened": {PATH: {encryption.OWN: [True, "41"], "any key": [False, "Invalid password"]}},
    "found": {"": ["/run/.control-1", "/etc/.control-2"], "canary": [], "key": []},
    "controls": ["/run/.control-1", "/etc/.control-2"],
}


def test_a_real_guests_volume_is_encrypted() -> None:
    assert encryption.graph(GUEST, XML, DISKS) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("<encryption format='luks'", "<other format='luks'", "without encryption"),
        (UUID, volume_secret("blue"), "with another secret"),
        (PATH, "/elsewhere", "does not have it"),
    ],
)
def test_every_part_of_libvirts_domain_counts(old: str, new: str, fault: str) -> None:
    assert old in XML
    xml = XML.replace(old, new).replace("</encryption>", "</other>" if "<other" in new else "</encryption>")
    (found,) = encryption.graph(GUEST, xml, DISKS)
    assert fault in found


def _disk() -> tuple[list[Any], Any]:
    disks = copy.deepcopy(DISKS)
    return disks, next(disk["inserted"] for disk in disks if disk["inserted"]["drv"] == "luks")


def test_every_part_of_qemus_graph_counts() -> None:
    disks, shown = _disk()
    shown["image"]["format-specific"]["data"]["slots"][1]["active"] = True
    assert encryption.graph(GUEST, XML, disks) == [f"{PATH}: 2 keys open it, and not one"]
    disks, shown = _disk()
    shown["drv"], shown["file"] = "file", PATH
    assert f"{PATH}: QEMU opens it without encryption" in encryption.graph(GUEST, XML, disks)
    disks, shown = _disk()
    disks.remove(next(disk for disk in disks if disk["inserted"] is shown))
    assert encryption.graph(GUEST, XML, disks) == [f"{PATH}: QEMU does not have it open"]
    disks, shown = _disk()
    more = copy.deepcopy(shown)
    more["drv"], more["file"] = "raw", "/elsewhere"
    disks.append({"inserted": more})
    assert encryption.graph(GUEST, XML, disks) == ["red.web has /elsewhere open as raw"]
    disks, shown = _disk()
    shown["image"]["format-specific"]["data"] = {}
    with pytest.raises(UnseenError):
        encryption.graph(GUEST, XML, disks)


def test_secrets_are_there_ephemeral_private_and_no_others() -> None:
    assert encryption.secrets(["red"], HELD, {UUID: False}) == []
    for held, told, fault in (
        ({}, {}, "there is no secret of red"),
        ({UUID: HELD[UUID].replace("ephemeral='yes'", "")}, {UUID: False}, "kept on disk"),
        ({UUID: HELD[UUID].replace("private='yes'", "")}, {UUID: False}, "can be read"),
        (HELD, {UUID: True}, "can be read"),
    ):
        (found,) = encryption.secrets(["red"], held, told)
        assert fault in found
    assert encryption.secrets([], HELD, {UUID: False}) == [f"the secret {UUID} belongs to no tenant"]
    for held, told in ((HELD, {}), ({UUID: "<secret"}, {UUID: False})):
        with pytest.raises(UnseenError):
            encryption.secrets(["red"], held, told)


def _judged(**changed: Any) -> list[str]:
    answer = {**copy.deepcopy(GOOD), **changed}
    return encryption.searched(answer, {PATH: "41"}, ["canary", "key"], 2)


def test_keys_that_open_too_much_and_files_that_hold_too_much_are_faults() -> None:
    assert _judged() == []
    opened = {PATH: {encryption.OWN: [True, "41"], "the key of blue": [True, "41"]}}
    assert _judged(opened=opened) == [f"{PATH} opens with the key of blue"]
    found = {**GOOD["found"], "canary": [PATH], "key": ["/etc/x"]}
    assert _judged(found=found) == [f"{PATH} holds canary", "/etc/x holds key"]


@pytest.mark.parametrize(
    "changed",
    [
        {"opened": {}},
        {"opened": {PATH: {encryption.OWN: [True, "41"]}}},
        {"opened": {PATH: {encryption.OWN: [False, "no"], "any key": [False, "no"]}}},
        {"opened": {PATH: {encryption.OWN: [True, "42"], "any key": [False, "no"]}}},
        {"found": {**GOOD["found"], "": ["/run/.control-1"]}},
        {"found": {"": GOOD["controls"], "canary": []}},
        {"controls": ["/run/.control-1"]},
        {"more": 1},
    ],
)
def test_a_look_that_would_have_seen_nothing_is_not_judged(changed: dict[str, Any]) -> None:
    with pytest.raises(UnseenError):
        _judged(**changed)


def test_only_a_plain_container_is_called_by_its_file() -> None:
    inner = {"driver": "file", "filename": "/a"}
    whole = {"driver": "luks", "key-secret": "s", "file": inner}
    assert file_of(f"json:{json.dumps(whole)}") == "/a"
    for other in (
        {**whole, "driver": "qcow2"},
        {**whole, "more": 1},
        {**whole, "file": {**inner, "driver": "nbd"}},
        {**whole, "file": "/a"},
    ):
        name = f"json:{json.dumps(other)}"
        assert file_of(name) == name
    assert (file_of("/a"), file_of("json:{")) == ("/a", "json:{")


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="there is no qemu-io")
def test_the_program_opens_searches_and_removes_its_controls(tmp_path: Path) -> None:
    path, key, other = tmp_path / "x.luks", secrets.token_hex(32), secrets.token_hex(32)
    subprocess.run(["/bin/sh", "-c", luks_volumes.make(str(path), 2**20)], input=key.encode(), check=True)
    (tmp_path / "plain").write_bytes(bytes(2**20 - 5) + b"a canary of a guest" + bytes(9))
    answer: Any = volume_encryption.collect(
        {
            "volumes": [[str(path), {encryption.OWN: key, "other": other}]],
            "head": 64,
            "texts": {"canary": b"a canary of a guest".hex(), "key": key.encode().hex()},
            "places": [str(tmp_path)],
        }
    )
    own, wrong = answer["opened"][str(path)].values()
    assert own[0] is True
    assert len(own[1]) == 128
    assert wrong[0] is False
    assert answer["found"]["canary"] == [str(tmp_path / "plain")]
    assert answer["found"]["key"] == []
    assert answer["found"][""] == answer["controls"]
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="environments of other accounts are shown to root only")
def test_the_program_sees_a_key_on_a_command_line() -> None:
    key = secrets.token_hex(32)
    with subprocess.Popen(["sleep", "60"], env={"KEY": key, "PATH": os.environ["PATH"]}) as process:
        answer: Any = volume_encryption.collect(
            {"volumes": [], "head": 0, "texts": {"key": key.encode().hex()}, "places": []}
        )
        process.kill()
    assert answer["found"]["key"] == [f"/proc/{process.pid}/environ"]


def test_libvirts_names_of_keys_count_from_the_last_disk() -> None:
    more = replace(GUEST, volumes=(*GUEST.volumes, replace(GUEST.volumes[0], name="x", file="web.x.luks")))
    names = secret_names(ET.fromstring(guest_xml(LAB, more, {})))
    assert names == [f"libvirt-{number}-format-encryption-secret0" for number in (1, 2)]
    assert secret_names(ET.fromstring(anonymous_guest_xml())) == []
