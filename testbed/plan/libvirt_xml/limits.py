"""Limits of compute in the domain of a guest: CPU, memory, disks (DOS-02, DOS-03, DOS-04). Pure.

libvirt writes those of CPU and memory into the control group of the worker, with all of its threads
(cgroup-v2: cpu.max, cpu.weight, memory.max), and QEMU throttles disks. What is the same for all guests, swap
and the number of threads, is in a drop-in file of their systemd units: libvirt has no element for the number,
and sets no limit of swap below that of memory.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from testbed.model.topology import Guest
from testbed.plan.libvirt_xml.elements import sub
from testbed.topology_file.quantities import KIB

PERIOD = 100_000  # microseconds of the CPU's quota
# Slice of all guests; its weight against a hundred of each slice of the root partition.
SLICE, SLICE_WEIGHT = "machine.slice", 10
THREADS = 128  # of a worker; QEMU's pool for disk operations has 64 at most
UNITS = {  # drop-in files for the units of guests, as playbooks/roles/hypervisor/files has them
    "/etc/systemd/system/machine-.scope.d/testbed.conf": (
        "# The worker of a guest with all its threads (DOS-05), of which QEMU's thread pool may have 64; "
        "and no swap (DOS-03): the memory limit\n"
        "# of a domain bounds its RAM alone.\n"
        f"[Scope]\nTasksMax={THREADS}\nMemorySwapMax=0\n"
    ),
    "/etc/systemd/system/machine.slice.d/testbed.conf": (
        "# DOS-02: all guests together have a tenth of the weight of the root partition's services, which "
        "have 100 each.\n"
        f"[Slice]\nCPUWeight={SLICE_WEIGHT}\n"
    ),
}


def quota(guest: Guest) -> int:
    """Return the microseconds of CPU time that a guest's worker may use in a `PERIOD`."""
    return PERIOD * guest.most_cpu // 100


def add_limits(root: ET.Element, guest: Guest) -> None:
    """Add the limits of memory and CPU to a domain; a limit of 0 is left out."""
    limits = guest.limits
    if limits.memory_overhead:
        sub(sub(root, "memtune"), "hard_limit", str(guest.most_memory // KIB), unit="KiB")
    if limits.cpu:
        tune = sub(root, "cputune")
        sub(tune, "shares", str(limits.cpu_weight))
        sub(tune, "global_period", str(PERIOD))
        sub(tune, "global_quota", str(quota(guest)))


def add_disk_limits(devices: ET.Element, guest: Guest) -> None:
    """Add the limits of disks, which all disks of the guest share as one group."""
    limits = guest.limits
    for disk in devices.findall("disk") if limits.disk_operations else ():
        tune = sub(disk, "iotune")
        sub(tune, "total_bytes_sec", str(limits.disk_bandwidth))
        sub(tune, "total_iops_sec", str(limits.disk_operations))
        sub(tune, "group_name", guest.domain)
