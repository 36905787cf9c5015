"""Packs an image into a box of Vagrant for libvirt, with a catalogue that has version and digest.

The disk of the box has two partitions: a small FAT file system with SYSLINUX, kernel and initramfs, and the
root file system. It is put together in plain files: without loop device, mount or root.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from testbed import timeouts
from testbed.drivers.host import process
from testbed.drivers.host.content_store import file_digest
from testbed.drivers.images.cache import Image
from testbed.errors import ImageError, MachineError, UsageError

NAME = "testbed/outer"
CATALOGUE = "box.json"
# Files of the checkout that the box is made of, besides the recipe of its image.
_SOURCES = ("pyproject.toml", "setup.py", "script/setup", "testbed/drivers/images/vagrant_box.py")
_MIB = 2**20
_BOOT = 1 * _MIB  # where the partition with the kernel begins; the first sectors are the boot record's
_ROOT = 65 * _MIB  # where the root file system begins
_SECTOR = 512
# In front of the initramfs that an image has: later files of the same name win.
_INIT = """#!/bin/busybox sh
# Loads the disk driver, mounts the second partition, and starts the real init.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$module; done
n=0; while [ ! -b /dev/vda2 ] && [ $n -lt 1200 ]; do /bin/busybox usleep 50000; n=$((n+1)); done
/bin/busybox mount -t ext4 -o noatime /dev/vda2 /root || exec /bin/busybox sh
/bin/busybox umount /proc
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""
_SYSLINUX = """DEFAULT linux
LABEL linux
  KERNEL vmlinuz
  INITRD initrd
  APPEND root=/dev/vda2 rw quiet net.ifnames=0
"""
# What every machine of this box needs; the Vagrantfile of a project comes after it.
_VAGRANTFILE = """Vagrant.configure("2") do |config|
  config.vm.guest = :debian
end
"""
_OURS = re.compile(r"testbed-[0-9a-f]{16}\.box")
_MBR = ("/usr/lib/syslinux/mbr/mbr.bin", "/usr/share/syslinux/mbr.bin")


@dataclass(frozen=True, slots=True)
class Box:
    """A packed box.

    Args:
        file: the box, a tar archive whose name has the key of its inputs.
        catalogue: the JSON file that ``config.vm.box_url`` names.
        version: a number that changes with the content, as Vagrant identifies boxes by it.

    """

    file: Path
    catalogue: Path
    version: str


def key(recipe_key: str, checkout: Path) -> str:
    """Return the key of a box: a digest (hexadecimal) of all its inputs.

    Args:
        recipe_key: the key of its image.
        checkout: the folder that has the files that its virtual environment is made of.

    Raises:
        UsageError: the folder is not a checkout of the project.

    """
    absent = [name for name in _SOURCES if not (checkout / name).is_file()]
    if absent:
        raise UsageError(
            "cannot make a box of an installed package",
            fact=f"{checkout} has no {absent[0]}",
            remedy="run script/vagrant box in a checkout of the project",
        )
    digest = hashlib.sha256(recipe_key.encode())
    for name in _SOURCES:
        digest.update(name.encode() + b"\0" + (checkout / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find(folder: Path, box_key: str) -> Box | None:
    """Return the box of a key if the folder has it, whole and as its catalogue describes it; else None."""
    file, catalogue = folder / f"testbed-{box_key}.box", folder / CATALOGUE
    try:
        version = json.loads(catalogue.read_text())["versions"][0]
        wanted = version["providers"][0]["checksum"], version["providers"][0]["url"]
        if (file_digest(file), file.resolve().as_uri()) != wanted:
            return None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Box(file, catalogue, str(version["version"]))


def pack(image: Image, folder: Path, box_key: str) -> Box:
    """Make a box of an image, and its catalogue; older boxes of ours in the folder are removed.

    Nothing else in the folder is changed. Root may make the box of another account's checkout, so everybody
    may read it, and a folder that did not exist.

    Raises:
        ImageError: a step failed; the message holds the end of its output.
        MachineError: a program is missing.

    """
    folder = folder.absolute()
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o755)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial_folder:
        work = Path(partial_folder)
        size = _disk(image, work)
        metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": -(-size // 2**30)}
        (work / "metadata.json").write_text(json.dumps(metadata))
        (work / "Vagrantfile").write_text(_VAGRANTFILE)
        partial = work / "box"
        with tarfile.open(partial, "w") as archive:
            for name in ("metadata.json", "Vagrantfile", "box.img"):
                archive.add(work / name, name, filter=_anonymous)
        box = _publish(partial, folder, box_key)
    for old in folder.glob("testbed-*.box"):
        if _OURS.fullmatch(old.name) and old != box.file:
            old.unlink()
    return box


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = "root"
    member.mode = 0o644
    return member


def _publish(partial: Path, folder: Path, box_key: str) -> Box:
    digest = file_digest(partial)
    file = folder / f"testbed-{box_key}.box"
    partial.rename(file)
    version = f"0.1.{int(digest[:7], 16)}"
    provider = {
        "name": "libvirt",
        "url": file.resolve().as_uri(),
        "checksum": digest,
        "checksum_type": "sha256",
        "architecture": "amd64",
        "default_architecture": True,
    }
    content = {"name": NAME, "versions": [{"version": version, "providers": [provider]}]}
    catalogue = folder / CATALOGUE
    fresh = catalogue.with_suffix(".partial")
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    for path in (file, fresh):
        path.chmod(0o644)
    fresh.rename(catalogue)
    return Box(file, catalogue, version)


def _disk(image: Image, work: Path) -> int:
    """Write ``box.img``; return the size of the disk in bytes."""
    boot, whole = _boot(image, work), work / "disk.raw"
    described = json.loads(_run("qemu-img", "info", "--output=json", str(image.file("disk.qcow2"))))
    size = int(described["virtual-size"])
    with whole.open("wb") as stream:
        stream.truncate(_ROOT + size)
        stream.seek(_BOOT)
        stream.write(boot.read_bytes())
    target = f"driver=raw,offset={_ROOT},size={size},file.driver=file,file.filename={whole}"
    source = str(image.file("disk.qcow2"))
    _run(
        "qemu-img", "convert", "-n", "--target-is-zero", "-f", "qcow2", "--target-image-opts", source, target
    )
    _partitions(whole)
    packed = ("-c", "-m", "2", "-o", "compression_type=zstd")
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *packed, str(whole), str(work / "box.img"))
    whole.unlink()
    return _ROOT + size


def _boot(image: Image, work: Path) -> Path:
    """Return a FAT file system with the boot loader, the kernel and the initramfs."""
    tree, file = work / "init", work / "boot.fat"
    tree.mkdir()
    (tree / "init").write_text(_INIT)
    (tree / "init").chmod(0o755)
    initrd = work / "initrd"
    shutil.copyfile(image.file("initrd"), initrd)
    script = 'cd "$1" && echo init | cpio --quiet -o -H newc -R 0:0 >> "$2"'
    _run("sh", "-c", script, "sh", str(tree), str(initrd))
    (work / "syslinux.cfg").write_text(_SYSLINUX)
    with file.open("wb") as stream:
        stream.truncate(_ROOT - _BOOT)
    hidden = str(_BOOT // _SECTOR)
    _run(_program("mkfs.vfat", "dosfstools"), "-F", "16", "-h", hidden, "-n", "BOOT", str(file))
    mcopy = _program("mcopy", "mtools")
    for path in (image.file("vmlinuz"), initrd, work / "syslinux.cfg"):
        _run(mcopy, "-i", str(file), str(path), f"::{path.name}")
    _run(_program("syslinux", "syslinux"), "--install", str(file))
    return file


def _partitions(disk: Path) -> None:
    record = next((Path(name) for name in _MBR if Path(name).is_file()), None)
    if record is None:
        raise MachineError(
            "the boot record of SYSLINUX is missing",
            fact=f"there is no {_MBR[0]}",
            remedy="install the Debian package syslinux-common",
        )
    plan = (
        f"label: dos\nstart={_BOOT // _SECTOR}, size={(_ROOT - _BOOT) // _SECTOR}, type=e, bootable\n"
        f"start={_ROOT // _SECTOR}, type=83\n"
    )
    _run(_program("sfdisk", "fdisk"), "--quiet", str(disk), stdin=plan.encode())
    with disk.open("r+b") as stream:
        stream.write(record.read_bytes()[:440])  # the code; signature and table of partitions follow


def _program(name: str, package: str) -> str:
    return process.require(name, package=package)


def _run(*argv: str, stdin: bytes = b"") -> str:
    return process.run(
        argv, what="cannot pack the box", timeout=timeouts.IMAGE_STEP, error=ImageError, stdin=stdin
    )
