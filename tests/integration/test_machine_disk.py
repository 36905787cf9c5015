"""A running machine's disk, read from outside by the confined reader: real libvirt, QEMU, file systems."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.drivers.host import process
from testbed.drivers.host.process import as_root
from testbed.drivers.host.workspace import Workspace

ROOT = Path(__file__).parents[2]
QEMU = shutil.which("qemu-system-x86_64")
DEBUGFS, MKE2FS = process.find("debugfs"), process.find("mke2fs")
KEY = "6b" * 32
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(QEMU is None or MKE2FS is None, reason="qemu-system-x86_64 or mke2fs is missing"),
]

PROGRAM = """
import dataclasses, json, os, subprocess, sys
from pathlib import Path
from testbed.drivers.snapshots.capture import reap
from testbed.drivers.snapshots.disk_view import read_changes
from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.drivers.host.workspace import Workspace
from testbed.errors import TestbedError
reap()
os.umask(0o077)
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"], check=True)
workspace = Workspace(Path(sys.argv[1]), "red")
machine, account = workspace.machine("node"), workspace.account
account.admit(workspace.folder)
account.give(machine / "vda.qcow2")
hypervisor = Hypervisor.embed(workspace.libvirt, account)
hypervisor.create((workspace.root / "domain.xml").read_text())
for _ in range(2):  # the second time shows that the first one has left nothing
    try:
        found = dataclasses.asdict(read_changes(hypervisor, workspace, "node", "red", "vda", sys.argv[2]))
    except TestbedError as error:
        found = {"error": f"{error.what}: {error.fact}"}
left = sorted(path.name for path in machine.iterdir())
print(json.dumps({**found, "left": left, "runs": hypervisor.runs("red")}))
hypervisor.destroy("red")
"""

XML = """
<domain type='qemu'><name>red</name><memory unit='MiB'>64</memory><os><type machine='q35'>hvm</type></os>
<devices><emulator>{emulator}</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
</devices></domain>
"""  # noqa: E501 - lines of a program


def _file_system(folder: Path, image: Path) -> None:
    assert MKE2FS is not None
    argv = [MKE2FS, "-q", "-F", "-t", "ext4", "-d", str(folder), str(image), "16M"]
    process.run(argv, what="no file system", timeout=60)


def _edit(image: Path, *commands: str) -> None:
    assert DEBUGFS is not None
    lines = "\n".join(commands)
    process.run([DEBUGFS, "-w", "-f", "-", str(image)], what="no edit", timeout=60, stdin=lines.encode())


def _looked(workspace: Workspace, base: Path, disk: Path) -> dict[str, object]:
    """Return what is told of a machine that runs with `disk` and was made from `base`, raw images."""
    below, overlay = workspace.root / "base.qcow2", workspace.machine("node") / "vda.qcow2"
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
    process.run([*convert, str(base), str(below)], what="no base", timeout=60)
    below.chmod(0o444)
    process.run([*convert, "-B", str(below), "-F", "qcow2", str(disk), str(overlay)], what="none", timeout=60)
    (workspace.root / "domain.xml").write_text(XML.format(emulator=QEMU, disk=overlay))
    argv = [
        *as_root("--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
        sys.executable,
        "-c",
        PROGRAM,
    ]
    done = subprocess.run(
        [*argv, str(workspace.root), KEY], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = json.loads(done.stdout)
    assert found.pop("runs") is True
    assert found.pop("left") == ["vda.qcow2"]
    return found


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A file system with some files, and a copy of it to change (raw images)."""
    content = tmp_path / "content"
    (content / "etc").mkdir(parents=True)
    for name in ("kept", "grown", "below"):
        (content / "etc" / name).write_bytes(name.encode() * 3000)
    (content / "etc" / "link").symlink_to("kept")
    base, disk = tmp_path / "base.raw", tmp_path / "disk.raw"
    _file_system(content, base)
    shutil.copy(base, disk)
    return base, disk


def test_only_what_has_changed_is_told(
    lab_of_red: Workspace, made: tuple[Path, Path], tmp_path: Path
) -> None:
    base, disk = made
    secret = tmp_path / "secret"
    secret.write_bytes(b"hidden")
    _edit(
        disk,
        f"write {secret} etc/new",
        "set_inode_field etc/new mode 0100600",
        "set_inode_field etc/new ctime @0x40000000",
        "symlink etc/other /bin/sh",
        "set_inode_field etc/grown mode 0104755",
    )
    found = _looked(lab_of_red, base, disk)
    changed = found["changed"]
    assert isinstance(changed, dict)
    assert (
        {"/etc/new", "/etc/other", "/etc/grown"}
        <= {*changed}
        <= {"/etc/new", "/etc/other", "/etc/grown", "/etc"}
    )
    new = changed["/etc/new"]
    assert (new["type"], new["mode"], new["size"], new["changed"]) == ("file", "0600", 6, 0x40000000)
    assert new["keyed sha256"] == hmac.new(bytes.fromhex(KEY), b"hidden", "sha256").hexdigest()
    assert changed["/etc/other"]["to"] == "/bin/sh"
    assert changed["/etc/grown"]["mode"] == "4755"
    assert changed["/etc/grown"]["sha256"] == hashlib.sha256(b"grown" * 3000).hexdigest()
    assert found["altered"] == []


def test_content_that_was_changed_below_the_file_system_is_told(
    lab_of_red: Workspace, made: tuple[Path, Path]
) -> None:
    base, disk = made
    data = disk.read_bytes()
    disk.write_bytes(data.replace(b"belowbelow", b"belowBELOW", 1))
    assert disk.read_bytes() != data
    found = _looked(lab_of_red, base, disk)
    assert found["altered"] == ["/etc/below"]
    assert found["changed"] == {}


def test_a_disk_without_a_file_system_is_an_error(lab_of_red: Workspace, made: tuple[Path, Path]) -> None:
    base, disk = made
    disk.write_bytes(b"\xff" * disk.stat().st_size)
    assert "the file system of node cannot be read" in str(_looked(lab_of_red, base, disk)["error"])
