"""A real emulator under an account of a lab's own: it opens its files, and can change no image under its disks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.drivers import process
from testbed.drivers.accounts import FREEZER, NUMBERS, privileged
from testbed.drivers.golden import make_overlay
from testbed.drivers.process import as_root

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not privileged(), reason="without root, emulators run as the user"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is missing"),
]

PROGRAM = """
import json, os, subprocess, sys
from pathlib import Path
from testbed.drivers.accounts import Account
from testbed.drivers.freeze import reap
from testbed.drivers.hypervisor import Hypervisor
from testbed.drivers.private import write_secret
reap()
os.umask(0o077)
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"], check=True)
folder, number = Path(sys.argv[1]), int(sys.argv[2])
account = Account(number, number)
write_secret(folder / "lab/console.log", b"")
for name in ("vda.qcow2", "console.log"):
    account.give(folder / "lab" / name)
account.admit(folder / "lab")
hypervisor = Hypervisor.embed(folder / "lab/v", account)
hypervisor.create((folder / "domain.xml").read_text())
found = []
for path in Path("/proc").glob("[0-9]*"):
    if (path / "comm").read_text().startswith("qemu-system"):
        status = dict(line.split(":", 1) for line in (path / "status").read_text().splitlines())
        found.append({name: status[name].split() for name in ("Uid", "Gid", "Groups", "CapEff")})
hypervisor.monitor("red").save_memory(folder / "memory", 60)
hypervisor.destroy("red")
print(json.dumps(found))
"""

XML = """
<domain type='qemu'><name>red</name><memory unit='MiB'>64</memory><os><type machine='q35'>hvm</type></os>
<devices><emulator>{emulator}</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
<serial type='pty'><log file='{console}' append='on'/></serial>
</devices></domain>
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other accounts pass through, as pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def test_an_emulator_runs_as_its_labs_account_and_owns_its_own_disks_only(folder: Path) -> None:
    base, disk = folder / "base.qcow2", folder / "lab/vda.qcow2"
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), "1M"], what="no base", timeout=60)
    base.chmod(0o444)
    disk.parent.mkdir()
    make_overlay(base, disk)
    emulator = shutil.which("qemu-system-x86_64")
    text = XML.format(emulator=emulator, disk=disk, console=folder / "lab/console.log")
    (folder / "domain.xml").write_text(text)
    number = NUMBERS[-1]
    argv = [*as_root("--net", "--pid", "--fork", "--kill-child", "--mount-proc"), sys.executable, "-c", PROGRAM]
    root = Path(__file__).parents[2]
    done = subprocess.run([*argv, str(folder), str(number)], capture_output=True, text=True, timeout=120, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = json.loads(done.stdout)
    assert set(found["Uid"]) == set(found["Gid"]) == {str(number)}
    assert set(found["Groups"]) <= {str(number)}
    assert int(found["CapEff"][0], 16) == 0
    assert (disk.stat().st_uid, disk.stat().st_mode & 0o777) == (number, 0o600)
    assert (base.stat().st_uid, base.stat().st_mode & 0o777) == (0, 0o444)
    assert ((folder / "memory").stat().st_uid, (folder / "memory").stat().st_mode & 0o777) == (0, 0o600)
    assert number != FREEZER
    assert (folder / "lab").stat().st_mode & 0o777 == 0o710
