"""`testbed host record`, `diff` and `restore` with a plain Debian that is changed in between.

`script/audit-test` runs it, as root.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import PlainHost, start

# Changes of each kind, as roles and packages make them. The package has a service, a conffile and an account.
CHANGE = """\
mkdir -p /root/p/DEBIAN /root/p/usr/sbin /root/p/usr/lib/systemd/system /root/p/etc/stranger
cat > /root/p/DEBIAN/control <<'END'
Package: stranger
Version: 1
Architecture: all
Maintainer: test <test@example.org>
Description: a package that was not there
END
echo /etc/stranger/settings > /root/p/DEBIAN/conffiles
echo settings > /root/p/etc/stranger/settings
printf '#!/bin/sh\\nexec sleep infinity\\n' > /root/p/usr/sbin/strangerd
cat > /root/p/usr/lib/systemd/system/stranger.service <<'END'
[Service]
ExecStart=/usr/sbin/strangerd
[Install]
WantedBy=multi-user.target
END
cat > /root/p/DEBIAN/postinst <<'END'
#!/bin/sh
set -e
useradd --system --no-create-home stranger || true
systemctl daemon-reload
systemctl enable --now stranger.service
END
cat > /root/p/DEBIAN/prerm <<'END'
#!/bin/sh
set -e
systemctl disable --now stranger.service
END
chmod 755 /root/p/DEBIAN/postinst /root/p/DEBIAN/prerm /root/p/usr/sbin/strangerd
dpkg-deb --build /root/p /root/stranger.deb
dpkg --install /root/stranger.deb
rm -r /root/p /root/stranger.deb

useradd --create-home --home-dir /home/admin --shell /bin/bash admin
echo 'admin ALL=(ALL:ALL) NOPASSWD: ALL' > /etc/sudoers.d/testbed
printf 'PrintMotd no\\nMaxSessions 3\\n' > /etc/ssh/sshd_config.d/testbed.conf
echo 'UsePAM no' >> /etc/ssh/sshd_config
systemctl restart ssh.service
: > /etc/machine-id
echo 'vm.swappiness = 10' > /etc/sysctl.d/90-testbed.conf
sysctl --quiet vm.swappiness=10 kernel.kptr_restrict=2
rm /etc/apparmor.d/usr.sbin.libvirtd
chmod u-s /usr/bin/su
chmod 751 /var/lib/libvirt
systemctl disable --now apt-daily.timer
systemctl mask e2scrub_all.timer
ln -sf /run/testbed/hosts /etc/hosts
mkdir -p /usr/lib/testbed/before-saving.d /var/lib/testbed/images
echo x > /usr/lib/testbed/before-saving.d/10-x
modprobe dummy
"""
# Times of changes of inodes, and what dpkg, systemd and logs keep for themselves, cannot be given back.
STATE = """\
find / -xdev \\( -path /var/log -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/apt \\
  -o -path /var/lib/systemd \\
  -o -path /var/tmp -o -path /tmp -o -path /var/backups \\) -prune -o -type d -printf '%p %y %m %u %g\\n' \\
  -o -printf '%p %y %m %u %g %s %T@ %l\\n'
find /etc /usr/local -xdev -type f -exec sha256sum '{}' +
systemctl list-unit-files --no-legend --no-pager
systemctl list-units --plain --no-legend --no-pager --type=service,socket,timer,mount --state=active
dpkg-query --show
cut -d ' ' -f 1 /proc/modules
sysctl vm.swappiness kernel.kptr_restrict
sshd -T
"""
LOGIN = re.compile(
    r"user(-runtime-dir)?@|run-user-|session-|/root/\\.|systemd-tmpfiles|dpkg-db-backup\\.service"
)


@pytest.fixture(scope="module")
def host(disk: Path) -> Iterator[PlainHost]:
    machine, emulator = start(disk, disk / "console-give-back")
    try:
        yield machine
    finally:
        emulator.kill()
        emulator.wait()


def command(host: PlainHost, folder: Path, *words: str) -> subprocess.Popen[str]:
    program = str(Path(sys.executable).with_name("testbed"))
    environment = {**os.environ, "TESTBED_STATE_DIR": str(folder)}
    argv = [program, "host", words[0], "-F", str(host.configuration), *words[1:], host.name]
    return subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=1800)
    return process.returncode, output, errors


def state(host: PlainHost) -> set[str]:
    return {line for line in host.root(STATE, timeout=900).splitlines() if not LOGIN.search(line)}


def test_a_changed_host_is_given_back(host: PlainHost, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    host.root("systemctl is-system-running --wait || true", timeout=900)
    before = state(host)
    status, output, errors = done(command(host, folder, "record"))
    assert status == 0, errors
    assert re.search(r"plain: \d{3} packages, \d{4,5} files", output)
    assert sorted(before ^ state(host)) == []  # a record changes nothing
    status, output, _ = done(command(host, folder, "diff", "--json", "--detailed-exitcode"))
    assert (status, json.loads(output)) == (0, [])
    status, _, errors = done(command(host, folder, "record"))
    assert (status, "has a record already" in errors) == (2, True)

    host.root(CHANGE, timeout=900)
    status, output, _ = done(command(host, folder, "diff", "--json", "--detailed-exitcode"))
    found = {(item["kind"], item["subject"]): item["step"] for item in json.loads(output)}
    assert status == 6
    assert {
        ("package", "stranger"): "purge",
        ("unit", "stranger.service"): "stop",
        ("unit", "apt-daily.timer"): "start",
        ("file", "/etc/apparmor.d/usr.sbin.libvirtd"): "write",
        ("file", "/etc/shadow"): "write",
        ("file", "/etc/machine-id"): "write",
        ("file", "/etc/sudoers.d/testbed"): "delete",
        ("file", "/usr/bin/su"): "set mode and owner",
        ("file", "/var/lib/libvirt"): "set mode and owner",
        ("file", "/home/admin"): "delete",
        ("sysctl", "vm/swappiness"): "set",
        ("module", "dummy"): "unload",
    }.items() <= found.items()
    status, _, errors = done(command(host, folder, "restore"))  # without consent and terminal
    assert (status, "add --yes" in errors) == (2, True)

    killed = command(host, folder, "restore", "--yes")
    end = time.monotonic() + 600
    while not list(folder.glob(".hosts/*/journal.json")):
        assert time.monotonic() < end
        assert killed.poll() is None
        time.sleep(0.1)
    time.sleep(3.0)  # the program on the host works
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    status, output, errors = done(command(host, folder, "restore"))  # goes on; consent was given
    assert "going on with the restore" in errors
    assert status == 0, output + errors
    assert sorted(before ^ state(host)) == []
    assert list(folder.glob(".hosts/*")) == []
