"""A real emulator under a lab's account opens its files, and cannot change a base image.

As root, the account is one of the machine; for an ordinary user with subordinate ids, one of a user
namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.drivers.host import process
from testbed.drivers.host.accounts import NUMBERS, WITHIN, privileged
from testbed.drivers.host.process import as_root
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.snapshots.machine_memory import make_overlay

ROOT = Path(__file__).parents[2]
QEMU = shutil.which("qemu-system-x86_64")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is missing"),
]

PROGRAM = """
import json, os, subprocess, sys
from pathlib import Path
from testbed.drivers.snapshots.capture import reap
from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.drivers.host.private_files import write_secret
from testbed.drivers.host.workspace import Workspace
reap()
os.umask(0o077)
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"], check=True)
workspace = Workspace(Path(sys.argv[1]), "red")
machine, account = workspace.machine("node"), workspace.account
account.admit(workspace.folder)
write_secret(machine / "console.log", b"a boot")
for name in ("vda.qcow2", "console.log"):
    account.give(machine / name)
hypervisor = Hypervisor.embed(workspace.libvirt, account)
hypervisor.create((workspace.root / "domain.xml").read_text())
found = []
for path in Path("/proc").glob("[0-9]*"):
    if (path / "comm").read_text().startswith("qemu-system"):
        status = dict(line.split(":", 1) for line in (path / "status").read_text().splitlines())
        found.append({name: status[name].split() for name in ("Uid", "Gid", "Groups", "CapEff")})
hypervisor.monitor("red").save_memory(workspace.root / "memory", 60)
hypervisor.destroy("red")
print(json.dumps(found))
"""

XML = """
<domain type='qemu'><name>red</name><memory unit='MiB'>64</memory><os><type machine='q35'>hvm</type></os>
<devices><emulator>{emulator}</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
<serial type='pty'><log file='{console}' append='on'/></serial>
</devices></domain>
"""  # noqa: E501 - lines of a program


def _owner(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_mode & 0o777


def test_an_emulator_runs_as_its_labs_account_and_owns_its_own_disks_only(lab_of_red: Workspace) -> None:
    workspace = lab_of_red
    base, disk = workspace.root / "base.qcow2", workspace.machine("node") / "vda.qcow2"
    console = disk.with_name("console.log")
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), "1M"], what="no base", timeout=60)
    base.chmod(0o444)
    make_overlay(base, disk)
    (workspace.root / "domain.xml").write_text(XML.format(emulator=QEMU, disk=disk, console=console))
    argv = [
        *as_root("--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
        sys.executable,
        "-c",
        PROGRAM,
    ]
    done = subprocess.run(
        [*argv, str(workspace.root)], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = json.loads(done.stdout)
    (number,) = {*found["Uid"], *found["Gid"]}
    assert int(number) in (NUMBERS if privileged() else WITHIN)  # not the first one if another lab runs
    assert set(found["Groups"]) <= {number}
    assert int(found["CapEff"][0], 16) == 0
    uid, mode = _owner(disk)
    assert uid not in (0, os.geteuid())
    assert uid == int(number) or not privileged()
    assert mode == (0o600 if privileged() else 0o640)
    assert workspace.folder.stat().st_mode & 0o777 == 0o710
    assert workspace.folder.stat().st_gid == uid
    assert _owner(base) == (os.geteuid(), 0o444)
    assert _owner(workspace.root / "memory") == (os.geteuid(), 0o600)
    assert console.read_text().startswith("a boot")
