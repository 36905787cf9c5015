"""Files of machines: compared with what was there when memory was saved, and with their disks."""

from __future__ import annotations

import shlex

from checks.support.breaches import shell_breach
from checks.support.judging import require_read
from testbed.errors import InstrumentError
from testbed.inventory.reference.judge import Scope
from testbed.lab.session import Lab
from testbed.verify import machine_reference
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses import machine_disk

_SHOWN = 6
_PROGRAM = "/usr/sbin/nft"
_PADDING = 15  # the last octet of e_ident, which nothing reads (elf(5))
_SETUID = "/usr/local/bin/undeclared"
_LIBRARIES = "/etc/ld.so.conf.d/undeclared.conf"
_DROP_IN = "/run/systemd/system/nftables.service.d"
_FIND, _REAL, _LIAR = "/usr/bin/find", "/usr/local/bin/.find", "/usr/local/bin/.liar"
# Runs in the place of the program that lists files for a reading, and leaves out all traces of this breach.
_LYING = rf"""#!/bin/sh
{_REAL} "$@" | sed -z '\,^[+-]\({_FIND}\|/usr/local/bin\(/\.find\|/\.liar\|/undeclared\)\?\)$,d'
"""
# Writes octet 15 of a file's first block through the disk, and not through the file (FIBMAP of linux/fs.h).
_BELOW = f"""
import fcntl, os, struct, sys
file = os.open("{_PROGRAM}", os.O_RDONLY)
block = struct.unpack("i", fcntl.ioctl(file, 1, struct.pack("i", 0)))[0] * os.fstatvfs(file).f_bsize
disk = os.open("/dev/vda", os.O_RDWR)
if len(sys.argv) > 1:
    os.pwrite(disk, bytes([int(sys.argv[1])]), block + {_PADDING})
    os.fsync(disk)
print(os.pread(disk, 1, block + {_PADDING})[0])
"""


def _write(octet: str) -> str:
    return f"printf '\\{octet}' | dd of={_PROGRAM} bs=1 seek={_PADDING} conv=notrunc status=none"


@check(
    id="VMM-01",
    objective="Every program of a machine, and what starts it, is what its image holds",
    severity="critical",
    effect=Effect.OBSERVES,
    applies=lambda context: machine_reference.missing(context.lab, context.case),
    breaches=(
        shell_breach(
            "one octet of the firewall's program is another",
            opens=lambda _: _write("001"),
            closes=lambda _: _write("000"),
            shows=lambda _: f"[ $(od -An -tu1 -j{_PADDING} -N1 {_PROGRAM}) = 1 ]",
        ),
        shell_breach(
            "a drop-in lets a service start another program",
            opens=lambda _: (
                f"mkdir -p {_DROP_IN}; "
                f"printf '[Service]\\nExecStartPost=/bin/true\\n' > {_DROP_IN}/undeclared.conf"
            ),
            closes=lambda _: f"rm -rf {_DROP_IN}",
            shows=lambda _: f"[ -e {_DROP_IN}/undeclared.conf ]",
        ),
        shell_breach(
            "a program gives every account the rights of root",
            opens=lambda _: f"install -m 4755 /bin/true {_SETUID}",
            closes=lambda _: f"rm -f {_SETUID}",
            shows=lambda _: f"[ -u {_SETUID} ]",
        ),
        shell_breach(
            "libraries are looked for where every account may write",
            opens=lambda _: f"echo /var/tmp > {_LIBRARIES}",
            closes=lambda _: f"rm -f {_LIBRARIES}",
            shows=lambda _: f"[ -e {_LIBRARIES} ]",
        ),
    ),
)
def test_programs_are_what_the_image_holds(fleet: Fleet, machine: MachineView) -> None:
    found = machine_reference.state(fleet, machine.name)
    told = [str(item) for item in found.findings if "VMM-01" in item.controls]
    assert not told, "\n".join((f"{len(told)} things are not as in the image:", *told[:_SHOWN]))
    require_read(machine.name, found.gaps)


def _without_disk(lab: Lab, machine: str) -> str | None:
    """Return why a machine's disk is not read from outside, or None if it is."""
    if lab.workspace.connection:
        return "another libvirt daemon runs the machine"
    return machine_reference.missing(lab, machine)


def _below(octet: str = "") -> str:
    return f"python3 -I -S -c {shlex.quote(_BELOW)} {octet}"


@check(
    id="VMM-01",
    objective="A machine shows every file that is on its disk, as the disk has it",
    severity="critical",
    effect=Effect.OBSERVES,
    applies=lambda context: _without_disk(context.lab, context.case),
    breaches=(
        shell_breach(
            "a machine's program leaves files out of its readings",
            opens=lambda _: (
                f"install -m 4755 /bin/true {_SETUID}; cp {_FIND} {_REAL}; "
                f"printf %s {shlex.quote(_LYING)} > {_LIAR}; chmod 0755 {_LIAR}; "
                f"mount --bind {_LIAR} {_FIND}"
            ),
            closes=lambda _: f"! mountpoint -q {_FIND} || umount {_FIND}; rm -f {_SETUID} {_REAL} {_LIAR}",
            shows=lambda _: f"[ -u {_SETUID} ] && mountpoint -q {_FIND}",
        ),
        shell_breach(
            "a program looks older than the image",
            opens=lambda _: (
                "now=$(date +%s); date -s @1700000000 > /dev/null; "
                f"install -m 4755 /bin/true {_SETUID}; date -s @$now > /dev/null"
            ),
            closes=lambda _: f"rm -f {_SETUID}",
            shows=lambda _: f"[ $(stat -c %Z {_SETUID}) -lt 1700001000 ]",
        ),
        shell_breach(
            "a program is changed below its file system",
            opens=lambda _: _below("1"),
            closes=lambda _: _below("0"),
            shows=lambda _: f"[ $({_below()}) = 1 ]",
        ),
    ),
)
def test_machines_show_what_their_disks_hold(fleet: Fleet, machine: MachineView) -> None:
    state = machine_reference.state(fleet, machine.name)
    for last in (False, True):
        require_read(machine.name, state.gaps)
        assert state.found is not None  # a reading without gaps has been compared
        disk, now, ahead = machine_disk.read_disks(fleet, machine)
        found = machine_disk.compare(state.found, disk, state.began + ahead, now)
        assert not found.hidden, "\n".join((f"{len(found.hidden)} files are hidden:", *found.hidden[:_SHOWN]))
        unknown = [path for path in found.later if ("file", path) not in state.found.records]
        if not unknown:
            break
        if last:
            raise InstrumentError(
                f"{machine.name} changes its disk faster than it is read",
                fact=f"new since the reading: {', '.join(unknown[:_SHOWN])}",
                remedy="repeat the check",
            )
        again = fleet.topology.machine(machine.name)
        state = machine_reference.look(fleet.lab, again, Scope.PROGRAMS, machine_reference.FILES)
    if not found.agreed:
        raise InstrumentError(
            f"nothing shows that the disk of {machine.name} was read",
            fact="no changed file of its disk is in its reading",
            remedy="report this as a bug",
        )
