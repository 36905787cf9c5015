"""Waits in the middle of the boot until this memory has been started a second time, then becomes somebody.

A machine that boots with ``testbed.golden`` on its kernel command line has no identity. It stops here, and
the outer machine saves its memory. Whoever starts from that memory notices that devices are plugged in, which
the saved machine never saw; takes its identity from the credential that a cold boot would have taken it from,
and goes on booting. What made keys, ids or random numbers before the memory was saved is made anew.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

OURSELVES = "testbed-adoption.service"
# What may run already when memory is saved: nothing that draws keys, ids or random numbers to keep them.
HARMLESS = ("auditd.service", "systemd-journald.service", "systemd-udevd.service", OURSELVES)
PLUGGED = {b"ACTION=add", b"SUBSYSTEM=pci"}
FIRMWARE = Path("/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/testbed.identity/raw")
IDENTITY = Path("/run/testbed")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MACHINE_ID = Path("/etc/machine-id")
JOURNAL = Path("/var/log/journal")
PREPARATIONS = Path("/usr/lib/testbed/before-saving.d")
SPARE = 64 * 2**20  # bytes of free memory that are left alone
PATIENCE = 400.0  # seconds; a machine that is emulated may boot a guest meanwhile
SEED = Path("/var/lib/systemd/random-seed")
SWITCH_ID = Path("/etc/openvswitch/system-id.conf")
NETLINK_KOBJECT_UEVENT = 15
KERNEL_EVENTS = 1  # multicast group
RTC_RD_TIME = 0x80247009
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
FRESH = 512  # bytes; up to 128 of them may have been fetched before the memory was saved


def run(*argv: str, timeout: float = 120) -> str:
    """Run a program to its end, which must be a success and come within so many seconds, and return what it
    printed.
    """
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=timeout).stdout


def say(text: str) -> None:
    """Tell the outer machine, which reads the serial console."""
    with Path("/dev/ttyS0").open("w") as console:
        console.write(f"testbed: {text}\n")


def wait_for_quiet() -> None:
    """Return when the boot waits for us alone, twice in a row."""
    quiet = 0
    while quiet < 2:
        run("udevadm", "settle")
        jobs = [line.split() for line in run("systemctl", "list-jobs", "--no-legend", "--plain").splitlines()]
        quiet = 0 if any(job[3] == "running" and job[1] != OURSELVES for job in jobs) else quiet + 1
        time.sleep(1)


def prepare() -> None:
    """Run what roles want to have done once and for all: kernel modules, and what is found out about what is
    on the disk.
    """
    for program in sorted(PREPARATIONS.iterdir()):
        run(str(program), timeout=PATIENCE)


def forget() -> None:
    """Let the kernel clear memory that is free: what stood there would be saved, and loaded anew.

    What was read from the disk stays: an emulated machine needs longer to read it again than any other to
    load it.
    """
    words = Path("/proc/meminfo").read_text().split()
    size = int(words[words.index("MemFree:") + 1]) * 1024 - SPARE
    if size > 0:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def refuse_strangers() -> None:
    """Fail if a service runs that may hold something that no two machines may share."""
    lines = run(
        "systemctl", "list-units", "--no-legend", "--plain", "--type=service", "--state=activating,running"
    ).splitlines()
    strangers = [name for name in (line.split()[0] for line in lines) if name not in HARMLESS]
    if strangers:
        raise OSError(
            f"would be saved with it: {', '.join(strangers)}; add to Before= of {OURSELVES}, or to HARMLESS"
        )


def wait_for_devices(events: socket.socket) -> None:
    """Return when the kernel tells that the first device has been plugged in."""
    while not set(events.recv(65536).split(b"\0")) >= PLUGGED:
        pass


def reseed() -> None:
    """Mix fresh bytes of the outer machine into the kernel's generator, and let it draw new keys at once.

    The kernel has done as much already, since the virtual machine's generation changed; this does not depend
    on that.
    """
    with Path("/dev/hwrng").open("rb", buffering=0) as source:
        fresh = b""
        while len(fresh) < FRESH:
            fresh += source.read(FRESH - len(fresh))
    with Path("/dev/urandom").open("wb", buffering=0) as generator:
        fcntl.ioctl(generator, RNDADDENTROPY, struct.pack(f"ii{FRESH}s", 4 * FRESH, FRESH, fresh))
        fcntl.ioctl(generator, RNDRESEEDCRNG)
    if SEED.exists():
        SEED.write_bytes(os.urandom(512))


def set_clock() -> None:
    """Set the clock from the clock chip, which did not stand still; half a second is added, as the kernel
    does at boot.
    """
    with Path("/dev/rtc0").open("rb", buffering=0) as chip:
        second, minute, hour, day, month, year, *_ = struct.unpack(
            "9i", fcntl.ioctl(chip, RTC_RD_TIME, bytes(36))
        )
    told = datetime(year + 1900, month + 1, day, hour, minute, second, tzinfo=UTC)
    time.clock_settime(time.CLOCK_REALTIME, told.timestamp() + 0.5)


def take_identity() -> None:
    """Unpack the credential of the virtual machine that we run in now."""
    run("modprobe", "qemu_fw_cfg")
    run("tar", "--extract", "--no-same-owner", "--directory=/run", f"--file={FIRMWARE}")


def become() -> None:
    """Replace every name and id that was made before."""
    socket.sethostname((IDENTITY / "hostname").read_text().strip())
    before = MACHINE_ID.read_text().strip()
    mine = (IDENTITY / "machine-id").read_text()
    MACHINE_ID.write_text(mine)
    if (JOURNAL / before).exists():
        (JOURNAL / before).rename(JOURNAL / mine.strip())
    (IDENTITY / "boot_id").write_text(f"{uuid.UUID(bytes=os.urandom(16), version=4)}\n")
    run("mount", "--bind", "-o", "ro", str(IDENTITY / "boot_id"), str(BOOT_ID))
    SWITCH_ID.unlink(missing_ok=True)


def live_twice() -> None:
    """Wait to be saved, wait to be woken, and become somebody."""
    run("modprobe", "--all", "virtio_net", "virtio_rng")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT) as events:
        wait_for_quiet()
        prepare()
        forget()
        wait_for_quiet()
        refuse_strangers()
        run("modprobe", "--remove", "qemu_fw_cfg")  # it lists the credentials once, when it is loaded
        events.bind((0, KERNEL_EVENTS))
        os.sync()
        say("memory can be saved")
        wait_for_devices(events)
    reseed()
    set_clock()
    take_identity()
    become()
    run("systemctl", "restart", "--no-block", "systemd-journald.service")
    run("udevadm", "control", "--reload")
    run("udevadm", "trigger", "--action=add", "--subsystem-match=net", "--settle")
    say("identity taken")


def main() -> int:
    """Do it, and tell the outer machine if it goes wrong; nothing of this stays."""
    try:
        live_twice()
    except (OSError, subprocess.SubprocessError) as error:
        say(f"failed: {error} {getattr(error, 'stderr', '')}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
