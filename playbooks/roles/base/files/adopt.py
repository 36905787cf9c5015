"""Pauses the boot until the machine has been saved and restored, then applies its identity.

A machine that boots with ``testbed.golden`` on its kernel command line has no identity. Its boot pauses here,
and the outer machine saves its memory. A machine that starts from that memory notices that devices are
plugged in, which never happens in the saved one. It reads its identity from the credential that a cold boot
would use, and continues to boot. Keys, ids and random numbers from before the save are replaced.
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
# Services that may run when memory is saved: they keep no keys, ids or random numbers.
HARMLESS = ("auditd.service", "systemd-journald.service", "systemd-udevd.service", OURSELVES)
PLUGGED = {b"ACTION=add", b"SUBSYSTEM=pci"}
FIRMWARE = Path("/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/testbed.identity/raw")
IDENTITY = Path("/run/testbed")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MACHINE_ID = Path("/etc/machine-id")
JOURNAL = Path("/var/log/journal")
PREPARATIONS = Path("/usr/lib/testbed/before-saving.d")
SPARE = 64 * 2**20  # bytes of free memory that are left alone
PATIENCE = 400.0  # seconds; an emulated machine may boot a guest in this time
SEED = Path("/var/lib/systemd/random-seed")
SWITCH_ID = Path("/etc/openvswitch/system-id.conf")
NETLINK_KOBJECT_UEVENT = 15
KERNEL_EVENTS = 1  # multicast group
RTC_RD_TIME = 0x80247009
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
FRESH = 512  # bytes; up to 128 of them may have been fetched before the memory was saved


def run(*argv: str, timeout: float = 120) -> str:
    """Run a program and return its standard output.

    Args:
        argv: program and arguments.
        timeout: seconds.

    Raises:
        SubprocessError: the program fails or does not end in time.

    """
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=timeout).stdout


def say(text: str) -> None:
    """Print a line on the serial console, which the outer machine reads."""
    with Path("/dev/ttyS0").open("w") as console:
        console.write(f"testbed: {text}\n")


def wait_for_quiet() -> None:
    """Wait until two successive looks show no running job of systemd except our own."""
    quiet = 0
    while quiet < 2:
        run("udevadm", "settle")
        jobs = [line.split() for line in run("systemctl", "list-jobs", "--no-legend", "--plain").splitlines()]
        quiet = 0 if any(job[3] == "running" and job[1] != OURSELVES for job in jobs) else quiet + 1
        time.sleep(1)


def prepare() -> None:
    """Run the programs of the roles that prepare a machine before it is saved.

    They load kernel modules and fill caches that stay valid; on a node, they also save a guest's memory.
    """
    for program in sorted(PREPARATIONS.iterdir()):
        run(str(program), timeout=PATIENCE)


def forget() -> None:
    """Make the kernel clear free memory, whose old content would be saved and loaded, too.

    The page cache stays: an emulated machine would need longer to read the disk again than to load it.
    """
    # A populated anonymous mapping makes the kernel zero the pages; QEMU saves zero pages in a few octets.
    words = Path("/proc/meminfo").read_text().split()
    size = int(words[words.index("MemFree:") + 1]) * 1024 - SPARE
    if size > 0:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def refuse_strangers() -> None:
    """Fail if a service runs that may hold secrets which machines must not share."""
    lines = run(
        "systemctl", "list-units", "--no-legend", "--plain", "--type=service", "--state=activating,running"
    ).splitlines()
    strangers = [name for name in (line.split()[0] for line in lines) if name not in HARMLESS]
    if strangers:
        raise OSError(
            f"would be saved with it: {', '.join(strangers)}; add to Before= of {OURSELVES}, or to HARMLESS"
        )


def wait_for_devices(events: socket.socket) -> None:
    """Wait until the kernel reports the first plugged-in device."""
    while not set(events.recv(65536).split(b"\0")) >= PLUGGED:
        pass


def reseed() -> None:
    """Mix random bytes of the outer machine into the kernel's generator and rekey it at once.

    The kernel does the same when it sees a new generation id of the virtual machine; this function does not
    rely on it. Half of the bits are credited as entropy.
    """
    # struct rand_pool_info (linux/random.h): bits of entropy, octets of data, data
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
    """Set the system clock from the hardware clock, which continued to run.

    Half a second is added, as the kernel does at boot.
    """
    with Path("/dev/rtc0").open("rb", buffering=0) as chip:
        second, minute, hour, day, month, year, *_ = struct.unpack(
            "9i", fcntl.ioctl(chip, RTC_RD_TIME, bytes(36))
        )
    told = datetime(year + 1900, month + 1, day, hour, minute, second, tzinfo=UTC)
    time.clock_settime(time.CLOCK_REALTIME, told.timestamp() + 0.5)


def take_identity() -> None:
    """Unpack the credential of the present virtual machine."""
    run("modprobe", "qemu_fw_cfg")
    run("tar", "--extract", "--no-same-owner", "--directory=/run", f"--file={FIRMWARE}")


def become() -> None:
    """Replace names and ids that were made before the save."""
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
    """Prepare for the save, wait for the restore, and apply the identity."""
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
    """Run `live_twice` and report an error on the serial console."""
    try:
        live_twice()
    except (OSError, subprocess.SubprocessError) as error:
        say(f"failed: {error} {getattr(error, 'stderr', '')}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
