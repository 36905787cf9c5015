"""A machine with a plain Debian and stock libvirt, emulated by QEMU; nothing of this tool has touched it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from testbed.drivers.host import process

ACCOUNT = "keeper"  # may become root by sudo; root itself has no login
_PACKAGES = (
    "apparmor,ca-certificates,dbus,iproute2,libvirt-clients,libvirt-daemon-system,linux-image-cloud-amd64,"
    "openssh-server,polkitd,python3,qemu-system-x86,sudo,systemd-sysv,udev"
)
_NETWORK = "[Match]\nType=ether\n[Network]\nDHCP=yes\n"
_STEP_S, _LOGIN_S = 1800, 900  # seconds for the packages, and to boot under emulation on a busy machine
_ACCOUNT = """\
useradd --create-home --shell /bin/bash --password '*' {name}
install -d -m 700 -o {name} -g {name} /home/{name}/.ssh
cat > /home/{name}/.ssh/authorized_keys
systemctl enable systemd-networkd
"""
_CONFIGURATION = """\
Host {name}
  HostName 127.0.0.1
  Port {port}
  User {account}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
"""


@dataclass(frozen=True, slots=True)
class PlainHost:
    """A running machine.

    Args:
        name: its name in the configuration.
        configuration: file for ``ssh -F``.
    """

    name: str
    configuration: Path

    def root(self, script: str, timeout: float = 300) -> str:
        """Return the output of a shell script that root runs on the machine."""
        argv = ["ssh", "-F", str(self.configuration), "-o", "BatchMode=yes", self.name, "sudo -n sh -eu -s"]
        return process.run(argv, what="the plain host does not obey", timeout=timeout, stdin=script.encode())


def make_disk(folder: Path) -> None:
    """Write a disk, its kernel and initramfs, and the keys of the account and the machine, into a folder."""
    root = folder / "root"
    _run("mmdebstrap", "--variant=minbase", f"--include={_PACKAGES}", "trixie", str(root))
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key"))
    (root / "etc/systemd/network/wired.network").write_text(_NETWORK)
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    (root / "etc/hostname").write_text("plain\n")
    (root / f"etc/sudoers.d/{ACCOUNT}").write_text(f"{ACCOUNT} ALL=(ALL) NOPASSWD: ALL\n")
    _run("chroot", str(root), "sh", "-euc", _ACCOUNT.format(name=ACCOUNT), stdin=folder / "key.pub")
    shutil.copy(root / "etc/ssh/ssh_host_ed25519_key.pub", folder / "host.pub")
    for name in ("vmlinuz", "initrd.img"):
        shutil.copy(max((root / "boot").glob(f"{name}-*")), folder / name)
    _run("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(folder / "disk"), "6G")
    shutil.rmtree(root)


def _run(program: str, *words: str, stdin: Path | None = None) -> None:
    given = stdin.read_bytes() if stdin else b""
    process.run([program, *words], what="the plain host cannot be made", timeout=_STEP_S, stdin=given)


def start(folder: Path, console: Path, *, outward: bool = False) -> tuple[PlainHost, subprocess.Popen[bytes]]:
    """Start the machine of a folder, and return it when it takes logins.

    Args:
        folder: of its disk.
        console: file that receives its serial console.
        outward: whether it reaches package archives.

    Raises:
        TimeoutError: it takes none after 900 s.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    host = PlainHost("plain", folder / "ssh_config")
    words = _CONFIGURATION.format(name=host.name, port=port, account=ACCOUNT, folder=folder)
    host.configuration.write_text(words)
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    emulator = subprocess.Popen(
        [
            process.require("qemu-system-x86_64", package="qemu-system-x86"),
            *("-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "2048", "-display", "none"),
            *("-drive", f"file={folder}/disk,format=raw,if=virtio,snapshot=on"),
            *(
                "-netdev",
                f"user,id=net,restrict={'off' if outward else 'on'},hostfwd=tcp:127.0.0.1:{port}-:22",
            ),
            *("-device", "virtio-net,netdev=net", "-device", "virtio-rng"),
            *("-kernel", f"{folder}/vmlinuz", "-initrd", f"{folder}/initrd.img"),
            *("-append", "root=/dev/vda rw console=ttyS0", "-serial", f"file:{console}"),
        ],
        stdin=subprocess.DEVNULL,
    )
    end = time.monotonic() + _LOGIN_S
    argv = ["ssh", "-F", str(host.configuration), "-o", "BatchMode=yes", "-o", "ConnectTimeout=60", host.name]
    while subprocess.run([*argv, "true"], stderr=subprocess.DEVNULL, check=False).returncode != 0:
        if time.monotonic() > end or emulator.poll() is not None:
            emulator.kill()
            raise TimeoutError(f"the plain host takes no login; its console is {console}")
        time.sleep(2.0)
    return host, emulator
