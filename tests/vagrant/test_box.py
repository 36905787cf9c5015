"""A box, packed from a small image, and read by other programs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from testbed.drivers.host import process
from testbed.drivers.images import vagrant_box
from testbed.drivers.images.cache import Image

pytestmark = pytest.mark.integration


def read(*argv: str | Path) -> str:
    program, *rest = map(str, argv)
    found = process.find(program)
    assert found is not None
    return subprocess.run([found, *rest], capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def image(tmp_path: Path) -> Image:
    for program in ("syslinux", "mkfs.vfat", "mcopy", "sfdisk", "mke2fs", "qemu-img"):
        if process.find(program) is None:
            pytest.skip(f"{program} is not installed: run script/setup --box")
    folder = tmp_path / "image"
    content = folder / "content"
    content.mkdir(parents=True)
    (content / "hello").write_text("from the root file system")
    (folder / "vmlinuz").write_bytes(b"kernel")
    (folder / "initrd").write_bytes(b"")
    read("mke2fs", "-q", "-t", "ext4", "-d", content, folder / "raw", "16M")
    read("qemu-img", "convert", "-O", "qcow2", folder / "raw", folder / "disk.qcow2")
    return Image("outer", "0" * 16, folder, {}, "")


def test_a_box_boots_from_one_partition_and_has_the_image_in_the_other(image: Image, tmp_path: Path) -> None:
    box = vagrant_box.pack(image, tmp_path / "box", "0123")
    assert sorted(path.name for path in box.file.parent.iterdir()) == ["box.json", "testbed-0123.box"]
    with tarfile.open(box.file) as archive:
        assert archive.getnames() == ["metadata.json", "Vagrantfile", "box.img"]
        for name in ("metadata.json", "box.img"):
            found = archive.extractfile(name)
            assert found is not None
            (tmp_path / name).write_bytes(found.read())
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert metadata == {"provider": "libvirt", "format": "qcow2", "virtual_size": 1}
    disk = tmp_path / "disk"
    read("qemu-img", "convert", "-O", "raw", tmp_path / "box.img", disk)
    table = json.loads(read("sfdisk", "--json", disk))["partitiontable"]
    boot, root = table["partitions"]
    assert (table["label"], boot["bootable"], boot["type"], root["type"]) == ("dos", True, "e", "83")
    whole = disk.read_bytes()
    assert whole[:440].strip(b"\0"), "there is no boot record"
    assert whole[510:512] == b"\x55\xaa"
    assert b"SYSLINUX" in whole[boot["start"] * 512 :][:512]
    listing = read("mdir", "-a", "-b", "-i", f"{disk}@@{boot['start'] * 512}", "::")
    assert {"::/vmlinuz", "::/initrd", "::/syslinux.cfg", "::/ldlinux.sys"} <= set(listing.split())
    part = tmp_path / "part"
    part.write_bytes(whole[root["start"] * 512 :][: root["size"] * 512])
    assert read("debugfs", "-R", "cat /hello", part) == "from the root file system"
    initrd = tmp_path / "initrd"
    read("mcopy", "-i", f"{disk}@@{boot['start'] * 512}", "::initrd", initrd)
    assert b"/dev/vda2" in initrd.read_bytes()


def test_a_box_that_is_made_again_replaces_the_older_one_and_nothing_else(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("mine")
    (folder / "partial").mkdir(parents=True)
    (folder / "partial" / "text").write_text("a text")
    (folder / "testbed-other.box").write_text("another box")
    folder.chmod(0o700)
    vagrant_box.pack(image, folder, "0123" * 4)
    box = vagrant_box.pack(image, folder, "4567" * 4)
    item = json.loads((folder / "box.json").read_text())["versions"][0]["providers"][0]
    assert item["checksum"] == hashlib.sha256(box.file.read_bytes()).hexdigest()
    assert {path.name for path in folder.iterdir()} == {
        "box.json", "partial", "testbed-other.box", f"testbed-{'4567' * 4}.box"
    }  # fmt: skip
    assert (folder / "partial" / "text").read_text() == "a text"
    assert folder.stat().st_mode & 0o777 == 0o700
