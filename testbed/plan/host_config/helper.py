"""The confinement of virtlogd, the process that serves the consoles of all guests of a node (PRC-06). Pure.

The image brings a profile and an addition to Debian's unit (playbooks/roles/hypervisor). Their texts are here
as well: a node is compared with them and not with its own files.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from testbed.plan.host_config import parsers

PROGRAM, PROFILE, UNIT = "/usr/sbin/virtlogd", "virtlogd", "virtlogd.service"
PROFILE_FILE = "/etc/apparmor.d/usr.sbin.virtlogd"
UNIT_FILE = f"/etc/systemd/system/{UNIT}.d/testbed.conf"
PROFILE_TEXT = """\
# PRC-06: what virtlogd needs. It is root by its number alone, reads the consoles of all tenants' guests, and
# opens nothing but their logs. It may start itself again, by which it keeps its pipes, and nothing else.
abi <abi/4.0>,

profile virtlogd /usr/sbin/virtlogd flags=(attach_disconnected) {
  /usr/sbin/virtlogd mrix,
  /etc/ld.so.cache r,
  /usr/lib/** mr,
  /etc/gnutls/config r,
  /etc/libvirt/libvirt.conf r,
  /etc/libvirt/virtlogd.conf r,
  /etc/{group,nsswitch.conf,passwd} r,
  /dev/null rw,
  /proc/sys/crypto/fips_enabled r,
  /proc/sys/kernel/cap_last_cap r,
  /proc/filesystems r,
  /proc/[0-9]*/{stat,status} r,
  /sys/devices/system/cpu/possible r,
  /sys/devices/system/node/ r,

  /run/virtlogd.pid rwk,
  /run/virtlogd-restart-exec.json rw,
  /run/libvirt/ rw,
  /run/libvirt/virtlogd{,-admin}-sock rw,
  /run/libvirt/common/ rw,
  /run/libvirt/common/system.token rwk,
  /var/log/libvirt/qemu/ rw,
  /var/log/libvirt/qemu/*.log{,.[0-9]*} rw,

  network unix stream,
  network unix dgram,
  /run/systemd/{notify,journal/socket} w,
  signal (receive) peer=unconfined,
  ptrace (readby, tracedby) peer=unconfined,
  ptrace (readby) peer=libvirtd,
}
"""
UNIT_TEXT = """\
# PRC-06: what Debian's unit leaves: capabilities by which root reads files of others, connections to sockets
# that take orders from root, and folders of tenants.
[Service]
ExecReload=
ExecReload=+/bin/kill -USR1 $MAINPID
AppArmorProfile=virtlogd
CapabilityBoundingSet=
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/run /var/log/libvirt/qemu
InaccessiblePaths=-/etc/shadow -/home -/root -/tmp -/var/tmp -/var/lib/libvirt -/var/lib/testbed
InaccessiblePaths=-/run/dbus -/run/libvirt/qemu -/run/openvswitch -/run/systemd/private -/run/testbed
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
SystemCallErrorNumber=EPERM
SystemCallFilter=~@aio @keyring @resources @sandbox connect
"""
# Files that this setting needs of `testbed.plan.host_config.settings.TEXTS`: the profile, and every place in
# which systemd.unit(5) finds a unit or an addition to it before Debian's.
_PLACES = " ".join(
    f"/{top}/systemd/system{more}/{name}"
    for top, more in (("etc", ""), ("etc", ".control"), ("run", ""), ("run", ".control"))
    for name in (UNIT, f"{UNIT}.d/*", "service.d/*")
)
FILES = f"{PROFILE_FILE} {_PLACES}"
_UNITS = re.compile(
    rf"(/(?:etc|run)/systemd/system(?:\.control)?/(?:{re.escape(UNIT)}(?:\.d/[^:]+)?|service\.d/[^:]+)):(.*)"
)
_POLICY = f"/sys/kernel/security/apparmor/policy/profiles/{PROFILE}.*"
# Mode of the loaded profile, and whether it is what the parser has kept of the file: to compile it takes an
# emulated machine a second. VMM-01 looks at the kept ones. A second line is a second profile of that name.
LOADED = (
    f"wanted=$(sha256sum /var/cache/apparmor/*/{PROFILE_FILE.rpartition('/')[2]}); "
    f"for profile in {_POLICY}; do "
    "read -r mode < $profile/mode && read -r loaded < $profile/raw_sha256 && "
    '{ [ "$loaded" = "${wanted%% *}" ] && echo $mode as in the file || echo $mode not as in the file; }; '
    "done; true"
)
# Of each process of the program: its number, capabilities and their bounding set, no new privileges, mode of
# seccomp, and label. Processes are found by the program's inode (test(1), -ef).
PROCESSES = (
    f"for exe in /proc/[0-9]*/exe; do [ $exe -ef {PROGRAM} ] || continue; from=${{exe%/exe}}; held=; "
    'while read -r name value _; do case $name in Cap*|NoNewPrivs:|Seccomp:) held="$held $value" ;; esac; '
    "done < $from/status; read -r label < $from/attr/current; echo ${from#/proc/}$held $label; done; true"
)
CONFINED = f"{' '.join(['0' * 16] * 5)} 1 2 {PROFILE} (enforce)"
CLOSED = "profile as declared\nenforce as in the file\nunit as declared"
_WAIT = 20  # tenths of a second in which virtlogd starts itself again

Parts = tuple[tuple[str, ...], str, str, Callable[..., str]]


def confinement(texts: str) -> Parts:
    """Return the setting that virtlogd is confined as declared: how it is observed, its value, its repair.

    Args:
        texts: the command that prints small files, each line behind the name of its file.
    """
    return ((texts, LOADED, PROCESSES), CLOSED, _REPAIR, told)


def told(texts: str, loaded: str, processes: str) -> str:
    """Return how the confinement differs from the declared one; `CLOSED` if it does not."""
    profile = parsers.lines(texts, f"{PROFILE_FILE}:") + "\n"
    units = [found for found in map(_UNITS.fullmatch, texts.split("\n")) if found]
    own = "".join(f"{found[2]}\n" for found in units if found[1] == UNIT_FILE)
    foreign = sorted({found[1] for found in units if found[1] != UNIT_FILE})
    return "\n".join(
        (
            "profile as declared" if profile == PROFILE_TEXT else "profile not as declared",
            loaded or "no profile is loaded",
            "unit as declared" if own == UNIT_TEXT else "unit not as declared",
            *(f"unit changed by {path}" for path in foreign),
            *(f"process {line}" for line in processes.splitlines() if line.partition(" ")[2] != CONFINED),
        )
    )


def _write(text: str, path: str) -> str:
    return f"printf %s {shlex.quote(text)} > {path}"


# virtlogd keeps its pipes when it starts itself again, and takes on the profile then. It keeps capabilities
# as well, so that the manager starts it if it has any.
_REPAIR = (
    f"for file in {_PLACES}; do [ ! -e $file ] || [ $file = {UNIT_FILE} ] || rm -f $file; done; "
    f"mkdir -p {UNIT_FILE.rpartition('/')[0]} && {_write(UNIT_TEXT, UNIT_FILE)} && "
    f"{_write(PROFILE_TEXT, PROFILE_FILE)} && apparmor_parser -r -W {PROFILE_FILE} && "
    f"systemctl daemon-reload && main=$(systemctl show -P MainPID {UNIT}) && "
    f"loose() {{ {PROCESSES.removesuffix('; true')} | grep -v ' {CONFINED}$'; }}; "
    f"loose | while read -r process _; do [ $process = $main ] || kill $process; done; "
    f"! loose | grep -q . || {{ systemctl reload {UNIT}; for round in $(seq {_WAIT}); do "
    f"loose | grep -q . || exit 0; sleep 0.1; done; systemctl restart {UNIT}; }}"
)
