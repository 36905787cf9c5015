"""`testbed audit` of a Debian with stock libvirt and two guests that plain virsh has made.

`script/audit-test` runs it, as root. It takes some minutes, so `script/test` leaves it out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .machine import PlainHost, start

# What a Debian with stock libvirt must be found to be, written down before the first look at one.
EXPECTED = {
    "ACC-05": "fail",  # every account may connect to libvirt's socket for reading
    "CMP-02": "pass",  # Debian does not merge pages
    "PRC-01": "fail",  # all guests run as libvirt-qemu
    "PRC-02": "pass",  # each has an AppArmor profile of its own
    "PRC-03": "pass",  # libvirt turns QEMU's sandbox on
    "PRC-04": "pass",  # libvirt drops capabilities and makes a /dev for each guest
    "STO-05": "fail",  # libvirt lets QEMU write core files of any size
}
GUEST = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/var/lib/libvirt/images/{name}.raw'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <console type='pty'/>
  </devices>
</domain>
"""
START_GUEST = """\
truncate --size 16M /var/lib/libvirt/images/{name}.raw
cat > /root/{name}.xml <<'END'
{xml}END
virsh --quiet define /root/{name}.xml
virsh --quiet start {name}
"""
# The logs record each login. Files of /proc and /sys are the kernel's view.
STATE = """\
find / -xdev -path /var/log -prune -o -printf '%p %y %m %u %g %s %T@ %C@ %l\\n'
find /run /etc /tmp /dev/shm -xdev ! -path '/run/log/*' -printf '%p %y %m %u %g %l\\n'
systemctl list-units --all --plain --no-legend --no-pager
dpkg-query --show
cat /proc/mounts /proc/modules /proc/sys/kernel/core_pattern /proc/sys/kernel/yama/ptrace_scope
"""
# Each login makes and ends these on a machine with systemd, whatever it does.
LOGIN = re.compile(
    r"session-\w+\.scope|user(-runtime-dir)?@|user-\d+\.slice|^/run d |/run/user|/run/utmp|/run/sudo"
    r"|/run/systemd/(sessions|users|inaccessible|journal/streams)"
)


@pytest.fixture(scope="module")
def host(disk: Path) -> Iterator[PlainHost]:
    machine, emulator = start(disk, disk / "console")
    try:
        for name in ("one", "two"):
            machine.root(START_GUEST.format(name=name, xml=GUEST.format(name=name)), timeout=600)
        yield machine
    finally:
        emulator.kill()
        emulator.wait()


def state(host: PlainHost) -> set[str]:
    time.sleep(10.0)  # logind ends sessions after their connections
    return {line for line in host.root(STATE, timeout=600).splitlines() if not LOGIN.search(line)}


def look(host: PlainHost) -> tuple[int, dict[str, Any]]:
    program = str(Path(sys.executable).with_name("testbed"))
    argv = [program, "audit", "--json", "-F", str(host.configuration), host.name]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    (found,) = json.loads(done.stdout)
    return done.returncode, found


def test_stock_libvirt_is_found_to_be_what_it_is(host: PlainHost) -> None:
    status, found = look(host)
    assert found["error"] == ""
    assert found["guests"] == 2
    assert {item["control"]: item["verdict"] for item in found["controls"]} == EXPECTED
    assert status == 1


def test_a_look_changes_nothing(host: PlainHost) -> None:
    before = state(host)
    status, _ = look(host)
    assert status == 1
    after = state(host)
    assert len(before) > 10_000
    assert sorted(before ^ after) == []


@pytest.mark.parametrize(
    ("change", "back", "control"),
    [
        (
            "echo 1 > /sys/kernel/mm/ksm/run",
            "echo 2 > /sys/kernel/mm/ksm/run; echo 0 > /sys/kernel/mm/ksm/run",
            "CMP-02",
        ),
        (
            "qemu-system-x86_64 -machine none -display none -daemonize -pidfile /run/bare",
            "kill $(cat /run/bare)",
            "PRC-03",
        ),
    ],
)
def test_a_wall_that_opens_is_seen(host: PlainHost, change: str, back: str, control: str) -> None:
    host.root(change)
    try:
        status, found = look(host)
    finally:
        host.root(back)
    verdicts = {item["control"]: item["verdict"] for item in found["controls"]}
    assert (status, verdicts[control]) == (1, "fail")
    _, found = look(host)
    assert {item["control"]: item["verdict"] for item in found["controls"]} == EXPECTED
