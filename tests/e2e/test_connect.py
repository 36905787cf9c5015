"""A lab whose machines run under a libvirt daemon of the outer machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.lab.build_inputs import prepare_inputs
from tests.lab_commands import run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.turn("people"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a system daemon needs root"),
]
TOPOLOGY = "topologies/one-node.yaml"
# Nothing of this daemon is seen by another one: its folders are hidden in a mount namespace. So is a /dev/kvm
# that
# the canary has refused: where root can open it and QEMU's account can't, libvirt probes QEMU again at every
# step.
DAEMON = """
for folder in /etc/libvirt /run /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do
  mkdir -p $folder && mount -t tmpfs tmpfs $folder
done
: > "$1/nobody" && chmod 0 "$1/nobody"
[ "$2" = kvm ] || [ ! -e /dev/kvm ] || mount --bind "$1/nobody" /dev/kvm
cat > /etc/libvirt/qemu.conf <<END
stdio_handler = "file"
security_driver = "none"
namespaces = []
cgroup_controllers = []
END
printf 'unix_sock_dir = "%s"\\nunix_sock_rw_perms = "0700"\\nauth_unix_rw = "none"\\n' "$1" > /etc/libvirt/libvirtd.conf
exec /usr/sbin/libvirtd
"""  # noqa: E501 - lines of a program


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tb", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def uri(folder: Path) -> Iterator[str]:
    accelerator = prepare_inputs(lambda _: None).environment.outer
    argv = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        DAEMON,
        "sh",
        str(folder),
        str(accelerator),
    ]
    daemon = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    socket = folder / "libvirt-sock"
    for _ in range(300):
        if socket.exists():
            break
        assert daemon.poll() is None
        time.sleep(0.1)
    yield f"qemu+unix:///system?socket={socket}"
    daemon.terminate()
    daemon.wait(timeout=60)


def _testbed(folder: Path, *words: str, expect: int = 0) -> str:
    done = run({**os.environ, "TESTBED_STATE_DIR": str(folder / "s")}, *words, timeout=900)
    assert done.returncode == expect, f"{words}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def _domains(uri: str) -> list[str]:
    program = f"import libvirt; print(*[d.name() for d in libvirt.open({uri!r}).listAllDomains()])"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()


def test_a_daemon_of_the_outer_machine_runs_the_lab(folder: Path, uri: str) -> None:
    try:
        assert "machines boot, without saved memory" in _testbed(folder, "up", TOPOLOGY, "--connect", uri)
        assert sorted(_domains(uri)) == ["one-node.controller", "one-node.node"]
        assert (
            json.loads(_testbed(folder, "plan", TOPOLOGY, "--json").partition("\n}")[0] + "\n}")["empty"]
            is True
        )
        _testbed(folder, "check", "one-node", "--only", "NET-01", "--only", "PRC-01")
        refusal = _testbed(folder, "up", TOPOLOGY, "--connect", f"{uri}2", expect=4)
        assert "there is no socket" in refusal
    finally:
        _testbed(folder, "down", "one-node")
    assert _domains(uri) == []
    links = subprocess.run(["ip", "-br", "link", "show"], capture_output=True, text=True, check=True).stdout
    assert not re.search("mgmt|fabr|stor|macvtap", links)
