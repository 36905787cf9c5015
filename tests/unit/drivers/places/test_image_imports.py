"""Images of a topology: the copy in the lab's folder, the node's answer, and the container (STO-03)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from testbed.drivers.places import image_import, luks_volumes
from testbed.drivers.ssh.client import Host
from testbed.errors import ProvisioningError, UsageError
from testbed.model.resolve import resolve
from testbed.model.topology import LUKS_HEADER, Image, Topology
from testbed.topology_file.loader import read

LAB = resolve(read(Path(__file__).parents[4] / "topologies/one-node.yaml").spec)
IMAGE = Image("disk.qcow2", "qcow2")
SIZE = 1 << 20
KEY = b"k" * 64


def with_image(image: Image, size: int = SIZE) -> Topology:
    """Return a lab whose first guest has a volume with an image."""
    tenant, *others = LAB.tenants
    guest, *rest = tenant.guests
    volume = replace(guest.volumes[0], image=image, size=size)
    return replace(LAB, tenants=(replace(tenant, guests=(replace(guest, volumes=(volume,)), *rest)), *others))


def test_a_copy_of_an_image_is_kept_for_later_commands(tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").write_bytes(b"octets")
    image_import.copy(with_image(IMAGE), tmp_path, tmp_path / "lab/imported")
    assert image_import.stored(tmp_path / "lab/imported", IMAGE) == b"octets"
    assert image_import.copied(tmp_path / "lab/imported", IMAGE).stat().st_mode & 0o777 == 0o600
    with pytest.raises(ProvisioningError, match=r"other\.raw cannot be imported"):
        image_import.stored(tmp_path / "lab/imported", Image("other.raw", "raw"))


def test_a_lab_without_images_has_no_folder_of_them(tmp_path: Path) -> None:
    image_import.copy(LAB, tmp_path, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("kind", ["missing", "link", "fifo", "folder", "large", "zero\0octet"])
def test_only_a_regular_file_that_fits_is_copied(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    if kind == "link":
        (tmp_path / "other").write_bytes(b"x")
        path.symlink_to("other")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.touch()
        os.truncate(path, SIZE + (16 << 20) + 1)
    image = Image(kind, "raw") if "\0" in kind else IMAGE
    with pytest.raises(UsageError) as caught:
        image_import.copy(with_image(image), tmp_path, tmp_path / "imported")
    assert caught.value.fact
    assert caught.value.remedy
    assert not (tmp_path / "imported").exists()


class Node:
    """Answers as a node does, and keeps what it was sent."""

    name = "node"

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.command, self.stdin = "", b""

    def must(self, command: str, *, stdin: bytes = b"", timeout: float = 0) -> str:
        assert timeout > 0
        self.command, self.stdin = command, stdin
        return self.answer


def made(answer: str) -> Node:
    """Import an image on a node with this answer."""
    node: Any = Node(answer)
    image_import.make_volume(cast(Host, node), IMAGE, b"octets", SIZE, "/pools/red/a b.new", KEY)
    return cast(Node, node)


def test_the_key_is_sent_behind_the_image_and_on_no_command_line() -> None:
    node = made(json.dumps({"refused": ""}))
    assert node.stdin == b"octets" + KEY
    assert KEY.decode() not in node.command
    assert "rm -f '/pools/red/a b.new'" in node.command


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        ('{"refused": "it has a backing file"}', "it has a backing file"),
        ('{"refused": "", "failed": "no space"}', "no space"),
        ('{"refused": 7}', "7"),
        ("{}", "the node has no answer"),
        ("[]", "the node has no answer"),
        ("garbage", "the node has no answer"),
    ],
)
def test_a_refusal_is_an_error_with_its_reason(answer: str, fact: str) -> None:
    with pytest.raises(ProvisioningError) as caught:
        made(answer)
    assert caught.value.fact == fact
    assert "qemu-img convert" in caught.value.remedy


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
def test_a_container_has_every_octet_of_the_disk(tmp_path: Path) -> None:
    disk = os.urandom(4096) + bytes(SIZE - 8192) + b"end".ljust(4096, b"\0")
    raw, container, back = (tmp_path / name for name in ("raw", "container", "back"))
    raw.write_bytes(disk)
    subprocess.run(luks_volumes.filled(str(raw), str(container)), input=KEY, check=True)
    assert container.stat().st_size == SIZE + LUKS_HEADER
    options = f"driver=luks,key-secret=key,file.filename={container}"
    secret = ["--object", "secret,id=key,file=/dev/stdin"]
    subprocess.run(
        ["qemu-img", "convert", *secret, "--image-opts", options, "-O", "raw", str(back)],
        input=KEY,
        check=True,
    )
    assert back.read_bytes() == disk
