"""The credentials that a machine trusts, and the files that its workers may open. Pure.

Each function returns the parts of a `testbed.plan.host_config.settings.Setting` besides its name and
controls: how it is observed, its value, and how it is restored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from testbed.model.topology import IMAGES, Guest, Machine, Topology
from testbed.plan.host_config.identity import MachineKeys, identity_files

Parts = tuple[tuple[str, ...], str, str, Callable[..., str]]

# The archive of the machine's identity, from the outer machine; the machine cannot change it.
_CREDENTIAL = "/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/testbed.identity/raw"
_LOADED = f"[ -e {_CREDENTIAL} ] || modprobe qemu_fw_cfg; "
# a machine that starts from saved memory makes it itself (playbooks/roles/base/files/adopt.py)
_OWN = "testbed/boot_id"
_PROFILES = "/etc/apparmor.d/libvirt"
# `Setting.observe` for the rules in every worker's profile: lines behind the name of their file.
PROFILES = f"grep -asH '' {_PROFILES}/libvirt-*"
NORTHBOUND = "pssl:6641"


def identity(topology: Topology, machine: Machine) -> Parts:
    """Return the setting that a machine has only its own keys, authorities and addresses.

    Among them are the authority that signs administrators' certificates for ssh, and that of OVN's northbound
    database.
    """
    nothing = MachineKeys(b"", b"", "", b"", b"", b"", b"")
    known = frozenset(identity_files(topology, machine, nothing))
    compare = f"{_LOADED}tar --compare --directory=/run --file={_CREDENTIAL}"
    listed = "cd /run && find testbed -type f -o -type l"
    own = " ".join(f"-e {name}" for name in sorted({*known, _OWN}))
    # tar only compares files of the archive; so others below /run/testbed are listed, and removed one by one.
    foreign = f'{listed} | grep -vxF {own} | while read -r file; do rm -f "$file"; done'
    reload = "systemctl reload ssh; nft -f /etc/nftables.conf"
    repair = (
        f"{_LOADED}{foreign}; tar --extract --no-same-owner --directory=/run --file={_CREDENTIAL} && {{ "
        f"{reload}; }}"
    )
    return (compare, listed), "", repair, partial(differing, known=known | {_OWN})


def differing(compared: str, listed: str, known: frozenset[str]) -> str:
    """Return the differences from a machine's identity: tar(1)'s lines, and foreign files.

    A file that was written again with the same content is no difference.
    """
    differences = [line for line in compared.splitlines() if not line.endswith(": Mod time differs")]
    foreign = [
        f"{name}: not part of the identity" for name in sorted(listed.splitlines()) if name not in known
    ]
    return "\n".join((*differences, *foreign))


def profiles(topology: Topology, machine: Machine) -> Parts:
    """Return the setting that profiles of workers hold libvirt's rules for each guest only."""
    guests = topology.guests_on(machine.name)
    allowed = {guest.uuid: "|".join(_rules(guest)) for guest in guests}
    repair = "; ".join(("true", *(_without_additions(uuid, rules) for uuid, rules in allowed.items())))
    return (
        (PROFILES,),
        "",
        repair,
        partial(additional, allowed=allowed, labels={guest.uuid: guest.label for guest in guests}),
    )


def _without_additions(uuid: str, rules: str) -> str:
    """Return the command that removes foreign rules from a guest's profile, and loads it.

    The profile is not generated again: libvirt adds rules to it while a guest starts, and libvirt's helper
    does not add them later.
    """
    path, kept = f"{_PROFILES}/libvirt-{uuid}", rf"^\s*(#(?!\s*include).*|{rules}|)$"
    # The file is overwritten in place, so that it keeps its owner and mode.
    each = (
        f"for file in {path} {path}.files; do [ -e $file ] || continue; grep -P '{kept}' $file > "
        "$file.new; cat $file.new > $file"
    )
    return f"{each}; rm $file.new; done; [ ! -e {path} ] || apparmor_parser -r {path}"


def additional(files: str, allowed: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """Return the rules in guests' profiles that are not allowed, each behind the guest's label.

    Args:
        files: lines, each behind the name of its file and a colon.
        allowed: regular expression that a rule must match, by the guest's UUID.
        labels: label of each guest, by its UUID.
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
    """Yield regular expressions of libvirt's rules in the two files of a guest's profile.

    Their source is virt-aa-helper.
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
