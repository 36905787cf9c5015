"""What a machine trusts, and what its workers may open: how it is observed, what it must be, how it is
restored. Pure.

Each function returns what `testbed.plan.host_config.settings.Setting` needs besides a name and controls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from testbed.model.topology import IMAGES, Guest, Machine, Testbed
from testbed.plan.host_config.identity import MachineKeys, identity_files

Parts = tuple[tuple[str, ...], str, str, Callable[..., str]]

# What the outer machine gave the machine at its birth; the machine cannot change it.
_CREDENTIAL = "/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/testbed.identity/raw"
_LOADED = f"[ -e {_CREDENTIAL} ] || modprobe qemu_fw_cfg; "
# a machine that starts from saved memory makes it itself (playbooks/roles/base/files/adopt.py)
_OWN = "testbed/boot_id"
_PROFILES = "/etc/apparmor.d/libvirt"
# `Setting.observe` of what stands in every profile of a worker: lines behind the name of their file.
PROFILES = f"grep -asH '' {_PROFILES}/libvirt-*"
NORTHBOUND = "pssl:6641"


def identity(lab: Testbed, machine: Machine) -> Parts:
    """Return that a machine's keys, authorities and addresses are those that it was given, and that there are
    no others.

    Among them are the authority that signs administrators' certificates for ssh, and that of OVN's northbound
    database.
    """
    nothing = MachineKeys(b"", b"", "", b"", b"", b"", b"")
    known = frozenset(identity_files(lab, machine, nothing))
    compare = f"{_LOADED}tar --compare --directory=/run --file={_CREDENTIAL}"
    listed = "cd /run && find testbed -type f -o -type l"
    own = " ".join(f"-e {name}" for name in sorted({*known, _OWN}))
    foreign = f'{listed} | grep -vxF {own} | while read -r file; do rm -f "$file"; done'
    reload = "systemctl reload ssh; nft -f /etc/nftables.conf"
    repair = (
        f"{_LOADED}{foreign}; tar --extract --no-same-owner --directory=/run --file={_CREDENTIAL} && {{ "
        f"{reload}; }}"
    )
    return (compare, listed), "", repair, partial(differing, known=known | {_OWN})


def differing(compared: str, listed: str, known: frozenset[str]) -> str:
    """Return what differs from a machine's identity: lines of tar(1), and files that are not in the archive.

    That a file was written anew, as it was, is no difference.
    """
    differences = [line for line in compared.splitlines() if not line.endswith(": Mod time differs")]
    foreign = [
        f"{name}: not part of the identity" for name in sorted(listed.splitlines()) if name not in known
    ]
    return "\n".join((*differences, *foreign))


def profiles(lab: Testbed, machine: Machine) -> Parts:
    """Return that the profile of each guest's worker allows what libvirt writes for the guest, and nothing
    else.
    """
    guests = lab.guests_on(machine.name)
    allowed = {guest.uuid: "|".join(_rules(guest)) for guest in guests}
    repair = "; ".join(("true", *(_without_additions(uuid, rules) for uuid, rules in allowed.items())))
    return (
        (PROFILES,),
        "",
        repair,
        partial(additional, allowed=allowed, labels={guest.uuid: guest.label for guest in guests}),
    )


def _without_additions(uuid: str, rules: str) -> str:
    """Return the command that takes out of a profile what is not allowed, and puts it into force.

    It is not written anew: libvirt itself adds rules to it while a guest starts, which its helper does not
    know later.
    """
    path, kept = f"{_PROFILES}/libvirt-{uuid}", rf"^\s*(#(?!\s*include).*|{rules}|)$"
    each = (
        f"for file in {path} {path}.files; do [ -e $file ] || continue; grep -P '{kept}' $file > "
        "$file.new; cat $file.new > $file"
    )
    return f"{each}; rm $file.new; done; [ ! -e {path} ] || apparmor_parser -r {path}"


def additional(files: str, allowed: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """Return the rules in the profiles of some guests' workers that are not among those allowed, each behind
    the guest's label.

    Args:
        files: lines, each behind the name of its file and a colon.
        allowed: regular expression that a rule must match, by the guest's UUID.

    """
    found: list[str] = []
    patterns: dict[str, re.Pattern[str]] = {}
    for text in files.split("\n"):
        file, _, rule = text.partition(":")
        uuid = file.removeprefix(f"{_PROFILES}/libvirt-").removesuffix(".files")
        rule = rule.strip()
        comment = not rule or (
            rule.startswith("#") and not rule.removeprefix("#").lstrip().startswith("include")
        )
        if uuid not in allowed or comment:
            continue
        if uuid not in patterns:  # only of guests that are there: to compile it takes a millisecond
            patterns[uuid] = re.compile(allowed[uuid])
        if not patterns[uuid].fullmatch(rule):
            found.append(f"{labels[uuid]}: {rule}")
    return "\n".join(found)


def _rules(guest: Guest) -> Iterator[str]:
    """Yield regular expressions of what libvirt writes into the two files of a guest's profile
    (virt-aa-helper).
    """
    yield from map(re.escape, ("#include <tunables/global>", "#include <abstractions/libvirt-qemu>", "}"))
    yield re.escape(f"#include if exists <libvirt/libvirt-{guest.uuid}.files>")
    yield rf"profile libvirt-{guest.uuid} flags=\(attach_disconnected\) \{{"
    own, images = re.escape(guest.domain), re.escape(f"{IMAGES}/guest")
    numbered = rf"domain-[0-9]+-{own}"
    for path, access in (
        (rf"/var/log/libvirt/\*\*/{own}\.log", "w"),
        (rf"/var/lib/libvirt/qemu/domain-{own}/monitor\.sock", "rw"),
        (rf"/var/lib/libvirt/qemu/{numbered}/\*", "rw"),
        (rf"/var/lib/libvirt/qemu/{numbered}/\{{,\*\*\}}", "rwk"),
        (rf"/var/lib/libvirt/qemu/{numbered}/master-key\.aes", "rwk"),
        (rf"/run/libvirt/qemu/channel/[0-9]+-{own}/\{{,\*\*\}}", "rwk"),
        (rf"/run/libvirt/qemu/channel/[0-9]+-{own}/org\.qemu\.guest_agent\.0", "rw"),
        ("/dev/pts/[0-9]+", "rw"),
        (rf"/run/libvirt/\*\*/{own}\.pid", "rwk"),
        (rf"/run/libvirt/\*\*/\*\.tunnelmigrate\.dest\.{own}", "rw"),
        (rf"/run/testbed-waking/{own}", "rwk"),
        *((re.escape(disk), "rwk") for disk in guest.disks),
        (rf"{images}/root\.raw", "rk"),
        (rf"{images}/(vmlinux|initrd)", "r"),
        (r"/var/lib/testbed/qboot\.rom", "rwk"),
        ("/dev/vhost-net", "rw"),
        ("/dev/net/tun", "rwk"),
    ):
        yield f'"{path}" {access},'
    yield rf'deny "{images}/(root\.raw|vmlinux|initrd)" w,'
