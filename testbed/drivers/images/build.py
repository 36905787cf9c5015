"""Builds an image from a Debian root file system.

This runs as a program: ``python -m testbed.drivers.images.build JOB`` reads one JSON job, unpacks the
archive, applies the playbook in a chroot with ansible-runner, and writes disk, kernel and initramfs into the
job's folder. It needs a mount namespace, so that its mounts are not visible elsewhere, and uid 0, at least in
a user namespace.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ansible_runner

from testbed import timeouts
from testbed.drivers.host import process
from testbed.errors import ImageError, TestbedError

_INIT = r"""#!/bin/busybox sh
# Loads the disk driver, mounts the disks that the kernel command line names, and starts the real init.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$module; done
wait_for() { n=0; while [ ! -b "$1" ] && [ $n -lt 600 ]; do /bin/busybox usleep 50000; n=$((n+1)); done; }
wait_for /dev/vda
/bin/busybox mount -t ext4 -o noatime /dev/vda /root || exec /bin/busybox sh
for word in $(/bin/busybox cat /proc/cmdline); do
  case "$word" in
    testbed.mount=*)
      entry=${word#testbed.mount=}; disk=${entry%%:*}; entry=${entry#*:}
      wait_for "$disk"
      /bin/busybox mount -t ext4 -o "${entry#*:}" "$disk" "/root${entry%%:*}" ;;
  esac
done
/bin/busybox umount /proc
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""
_ZSTANDARD = bytes.fromhex("28b52ffd")  # RFC 8878, 3.1.1
# The text that testbed.drivers.capabilities.canary looks for, then power-off, so that QEMU ends.
_CANARY = r"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox echo "testbed canary is alive" > /dev/ttyS0
/bin/busybox poweroff -f
"""


@dataclass(frozen=True, slots=True)
class BuildJob:
    """One image to assemble; all paths absolute.

    Args:
        name: name of the image.
        archive: tar of the root file system, as mmdebstrap wrote it.
        target: folder that receives the results; must exist.
        playbooks: folder of playbooks and roles.
        playbook: file name in it.
        size: size of the disk, in the format of mke2fs.
        modules: kernel modules that the initramfs loads.
        busybox: a static busybox.

    """

    name: str
    archive: str
    target: str
    playbooks: str
    playbook: str
    size: str
    modules: tuple[str, ...]
    busybox: str

    def dump(self, file: Path) -> None:
        """Write the job to a file."""
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, file: Path) -> BuildJob:
        """Read a job that `dump` wrote."""
        values: dict[str, Any] = json.loads(file.read_text())
        return cls(**{**values, "modules": tuple(values["modules"])})


def assemble(job: BuildJob) -> None:
    """Write ``disk.qcow2``, ``vmlinuz``, ``initrd`` and ``packages`` into the job's folder.

    Raises:
        ImageError: a step failed; the message holds the end of its output.

    """
    target = Path(job.target)
    root = target / "root"
    root.mkdir()
    _run(
        "tar",
        "--extract",
        "--file",
        job.archive,
        "--directory",
        str(root),
        "--exclude=./dev/*",
        "--numeric-owner",
    )
    _bind(root)
    _offer_terminals()
    _play(job, root)
    _unbind(root)
    release = _kernel(root, target)
    _initramfs(job, root, release, target)
    _shrink(root)
    packages = _run("dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show")
    (target / "packages").write_text(packages)
    _disk(target, root, job.size, "disk")
    shutil.rmtree(root)


def assemble_guest_volume(target: Path) -> None:
    """Wrap a guest image into a volume that nodes mount read-only: ``volume.qcow2``.

    Workers run as accounts of their own and never write here, so everything is 0444 and root's (STO-07).
    """
    content = target / "content"
    folder = content / "guest"
    folder.mkdir(parents=True)
    _run(
        "qemu-img",
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        "-S",
        "4k",
        str(target / "disk.qcow2"),
        f"{folder}/root.raw",
    )
    shutil.copy(target / "initrd", folder / "initrd")
    packed = target / "vmlinux.zst"
    packed.write_bytes(packed_kernel((target / "vmlinuz").read_bytes()))
    _run("zstd", "--decompress", "--quiet", "--rm", str(packed), "-o", str(folder / "vmlinux"))
    for path in folder.iterdir():
        path.chmod(0o444)
    for path in (content, folder):
        path.chmod(0o755)
    _disk(target, content, "4G", "volume")
    shutil.rmtree(content)


def packed_kernel(image: bytes) -> bytes:
    """Return the compressed payload of a bzImage: an ELF kernel, which QEMU can start directly.

    Source: the Linux/x86 boot protocol, 1.3 (setup_sects, payload_offset and payload_length).

    Raises:
        ImageError: the file is not a bzImage, or its payload is not compressed with Zstandard.

    """
    if image[0x202:0x206] != b"HdrS":
        raise _odd_kernel("it has no header of the Linux boot protocol")
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    payload = image[start : start + length - 4]  # the last four octets are the uncompressed length
    if not payload.startswith(_ZSTANDARD):
        raise _odd_kernel(f"what is packed in it begins with {payload[:4].hex()}, and not as Zstandard does")
    return payload


def _odd_kernel(fact: str) -> ImageError:
    return ImageError(
        "the guests' kernel cannot be unpacked", fact=fact, remedy="use a kernel package of Debian 13"
    )


def assemble_pool_volume(target: Path) -> None:
    """Make the empty file system that holds a node's tenant volumes: ``pool.qcow2``."""
    content = target / "empty"
    content.mkdir(mode=0o711)
    _disk(target, content, "32G", "pool")
    content.rmdir()


def _run(*argv: str) -> str:
    return process.run(argv, what="cannot assemble the image", timeout=timeouts.IMAGE_STEP, error=ImageError)


def _bind(root: Path) -> None:
    for source in ("/proc", "/dev", "/sys"):
        _run("mount", "--rbind", source, str(root / source[1:]))


def _unbind(root: Path) -> None:
    """Unmount the trees that `_bind` has mounted.

    Each is unmounted as a whole: in a user namespace, the kernel does not permit to unmount its parts.
    """
    for source in ("sys", "dev", "proc"):
        _run("umount", "--lazy", str(root / source))


def _offer_terminals() -> None:
    """Let pseudo-terminals be opened, in one of which ansible-runner starts Ansible.

    A machine may hide /dev/pts below a second /dev. This process has a mount namespace of its own, so another
    /dev/pts stays here.
    """
    try:
        for descriptor in os.openpty():
            os.close(descriptor)
    except OSError:
        _run("mount", "-t", "devpts", "-o", "mode=600", "devpts", "/dev/pts")


def _play(job: BuildJob, root: Path) -> None:
    project = Path(job.target) / "ansible"
    project.mkdir()
    failed: list[str] = []

    def listen(event: dict[str, Any]) -> bool:
        if event.get("event") == "runner_on_failed":
            result = event["event_data"].get("res", {})
            failed.append(f"{event['event_data'].get('task')}: {result.get('stderr') or result.get('msg')}")
        return False

    done = ansible_runner.run(
        private_data_dir=str(project),
        project_dir=job.playbooks,
        playbook=job.playbook,
        inventory={"all": {"hosts": {job.name: {"ansible_host": str(root)}}}},
        extravars={
            "ansible_connection": "community.general.chroot",
            "ansible_python_interpreter": "/usr/bin/python3",
        },
        envvars={
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_CONFIG": f"{job.playbooks}/ansible.cfg",
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        },
        event_handler=listen,
        quiet=True,
        settings={"suppress_ansible_output": True},
    )
    if done.rc != 0:
        output = done.stdout.read()[-1500:] if done.stdout else ""
        fact = "; ".join(failed) or output or f"ansible ended with status {done.rc}"
        msg = f"the playbook {job.playbook} failed on the image {job.name}"
        raise ImageError(msg, fact=fact, remedy="correct the playbook, then run the command again")
    shutil.rmtree(project)


def _kernel(root: Path, target: Path) -> str:
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise ImageError(
            "the image has no kernel", fact="nothing matches /boot/vmlinuz-*", remedy="add a kernel package"
        )
    shutil.copy(kernels[-1], target / "vmlinuz")
    return kernels[-1].name.removeprefix("vmlinuz-")


def _initramfs(job: BuildJob, root: Path, release: str, target: Path) -> None:
    tree = target / "initramfs"
    for folder in ("bin", "dev", "proc", "root", "modules"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(job.busybox, tree / "bin/busybox")
    order = []
    for path in _module_files(root / "usr/lib/modules" / release, job.modules):
        name = path.name.removesuffix(".xz")
        content = path.read_bytes()
        (tree / "modules" / name).write_bytes(lzma.decompress(content) if path.suffix == ".xz" else content)
        order.append(name)
    (tree / "modules/order").write_text("\n".join(order))
    _cpio(tree, _INIT, target / "initrd")
    _cpio(tree, _CANARY, target / "canary")
    shutil.rmtree(tree)


def _cpio(tree: Path, init: str, archive: Path) -> None:
    (tree / "init").write_text(init)
    (tree / "init").chmod(0o755)
    _run(
        "sh", "-c", 'cd "$1" && find . | cpio --quiet -o -H newc -R 0:0 > "$2"', "sh", str(tree), str(archive)
    )


def _module_files(modules: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files of modules and their dependencies, in loading order.

    Modules that are built into the kernel have no file.

    Raises:
        ImageError: the kernel does not have one of the modules.

    """
    builtin = {
        Path(line).name.removesuffix(".ko") for line in (modules / "modules.builtin").read_text().splitlines()
    }
    dependencies: dict[str, tuple[str, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, needed = line.partition(":")
        dependencies[re.sub(r"\.ko(\.\w+)?$", "", Path(file).name)] = (file, needed.split())
    seen: set[str] = set()
    for name in names:
        if name in builtin:
            continue
        if name not in dependencies:
            raise ImageError(
                f"the kernel has no module {name}",
                fact=f"{modules} does not list it",
                remedy="correct images.yaml",
            )
        module, needed_first = dependencies[name]
        for item in (*reversed(needed_first), module):
            if item not in seen:
                seen.add(item)
                yield modules / item


def _shrink(root: Path) -> None:
    for pattern in ("boot/*", "var/cache/apt/*", "var/lib/apt/lists/*", "usr/share/doc/*", "usr/share/man/*"):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _disk(target: Path, content: Path, size: str, name: str) -> None:
    raw = target / f"{name}.raw"
    _run(
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-L",
        name,
        "-m",
        "0",
        "-E",
        "root_owner=0:0,lazy_itable_init=1",
        "-O",
        "^has_journal" if name == "volume" else "has_journal",
        "-d",
        str(content),
        str(raw),
        size,
    )
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(target / f"{name}.qcow2"))
    raw.unlink()


def main(file: str) -> int:
    """Run the job in a file; return 0, or 1 after printing the error to standard error."""
    try:
        job = BuildJob.load(Path(file))
        assemble(job)
        if job.name == "guest":
            assemble_guest_volume(Path(job.target))
        if job.name == "node":
            assemble_pool_volume(Path(job.target))
    except TestbedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
