"""The program that reads a machine before its memory is saved, in a mount namespace of its own."""

from __future__ import annotations

import base64
import json
import subprocess
import zlib
from pathlib import Path

import pytest

from testbed.drivers.snapshots import golden_inventory
from testbed.inventory.records import FORMAT

pytestmark = pytest.mark.integration
_PRINTS = f"""
import json, sys, zlib
head = json.dumps({{"format": {FORMAT}, "records": 1, "seconds": 1.0}})
record = json.dumps({{"domain": "account", "key": "root", "value": ["0"]}})
sys.stdout.buffer.write(zlib.compress(f"{{head}}\\n{{record}}\\n".encode()))
"""
# As systemd leaves it: the credential is in a folder of the manager, and in one of a service that has run.
_MACHINE = """
mount -t tmpfs work "$1"/work
mkdir "$1"/work/upper "$1"/work/inner
mount -t overlay over -o lowerdir=/usr/lib,upperdir="$1"/work/upper,workdir="$1"/work/inner /usr/lib
mkdir -p /usr/lib/testbed/before-saving.d
install -m 0700 "$1"/reader "$2"
mount -t tmpfs run /run
cd /run && mkdir -p credentials/@system credentials/systemd-tmpfiles-setup.service credentials/other.service
mount -t tmpfs system credentials/@system
echo text > credentials/@system/tmpfiles.extra
mount -o remount,ro credentials/@system
mount -t tmpfs service credentials/systemd-tmpfiles-setup.service
mount --bind "$1"/console /dev/ttyS0
"$2"
ls /run/credentials /usr/lib/testbed/before-saving.d
"""


def test_the_reader_removes_itself_and_the_credential_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden_inventory, "compose", lambda _: zlib.compress(_PRINTS.encode()))
    _, path, *_, content = golden_inventory.credential("00").split()
    (tmp_path / "reader").write_bytes(base64.b64decode(content))
    (tmp_path / "console").touch()
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", _MACHINE, "sh", str(tmp_path), path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["/run/credentials:", "other.service", "/usr/lib/testbed/before-saving.d:"]
    text = zlib.decompress(golden_inventory.take(tmp_path / "console")).decode()
    assert json.loads(text.splitlines()[1])["key"] == "root"
