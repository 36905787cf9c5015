"""Breaches of storage that is used again, each of which takes away one mechanism that cleans it (STO-04)."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from typing import Any
from xml.etree import ElementTree as ET

from checks.support.breaches import shell_breach
from checks.support.device_breaches import booted_breach
from testbed.model.topology import POOLS
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach

_FOLDER = "/usr/local/lib/breach"  # of programs and of what they keep; not in the file system of volumes
_SNAPSHOT = "breach"
# Scripts that lie over a program of the node, whose name and arguments they get.
_REAL = f'exec {_FOLDER}/"${{0##*/}}" "$@"'
_NOTHING = "exit 0"
_NO_SLOTS = f'case " $* " in *" of="*.luks" "*) exit 0 ;; esac; {_REAL}'
_COPY = f'for file; do :; done; cp --sparse=always "$file" "$file.copy"; {_REAL}'
_KEEP = (
    'for word; do case "$word" in of=*.luks) file="${word#of=}"; pool="${file%/*}"; '
    f'cp --sparse=always "$file" {_FOLDER}/kept."${{pool##*/}}" ;; esac; done; {_REAL}'
)
_HAND_OUT = (
    f'{_FOLDER}/"${{0##*/}}" "$@" || exit; for word; do file="$last"; last="$word"; done; '
    f'pool="${{file%/*}}"; kept={_FOLDER}/kept."${{pool##*/}}"; [ ! -e "$kept" ] || '
    '[ "$(stat -c %s "$kept")" != "$(stat -c %s "$file")" ] || cp --sparse=always "$kept" "$file"'
)


def _instead(name: str, programs: Mapping[str, str], undone: str = ":") -> Breach:
    """Return a breach by scripts that lie over programs of the node.

    Args:
        programs: commands of a shell by the name of a program in /usr/bin.
        undone: takes away what they have made.
    """

    def laid(program: str) -> str:
        return f"grep -q ' /usr/bin/{program} ' /proc/self/mountinfo"

    opens = "".join(
        f"cp /usr/bin/{program} {_FOLDER}/{program} && "
        f"printf '#!/bin/sh\\n%s\\n' {quote(script)} > {_FOLDER}/{program}.sh && "
        f"chmod 755 {_FOLDER}/{program}.sh && mount --bind {_FOLDER}/{program}.sh /usr/bin/{program} && "
        for program, script in programs.items()
    )
    closes = "".join(
        f"while {laid(program)}; do umount /usr/bin/{program} || exit 1; done; " for program in programs
    )
    return shell_breach(
        name,
        opens=lambda _: f"install -d {_FOLDER} && {opens}:",
        closes=lambda _: f"{closes}rm -rf {_FOLDER}; {undone}",
        shows=lambda _: " && ".join(laid(program) for program in programs),
    )


def _unmapped() -> Breach:
    def change(root: ET.Element, _: str) -> None:
        for driver in root.findall("devices/disk/driver"):
            driver.set("discard", "unmap")

    return booted_breach(
        "blocks that a guest discards leave its disks", change, lambda xml: "discard='unmap'" in xml
    )


def _root_disk(context: BreachContext) -> Any:  # noqa: ANN401 - JSON
    """Return what the QEMU of the first guest has open as its root disk."""
    disks = context.node.hypervisor.ask_monitor(context.guest.domain, "query-block", {})
    opened = (disk["inserted"] for disk in disks if "inserted" in disk)
    return next(image for image in opened if context.guest.root_disk in image["file"])


def _snapshot() -> Breach:
    def ask(context: BreachContext, command: str) -> None:
        arguments = {"device": _root_disk(context)["node-name"], "name": _SNAPSHOT}
        context.node.hypervisor.ask_monitor(context.guest.domain, command, arguments)

    def in_force(context: BreachContext) -> bool:
        return any(item["name"] == _SNAPSHOT for item in _root_disk(context)["image"].get("snapshots", ()))

    def close(context: BreachContext) -> None:
        while in_force(context):
            ask(context, "blockdev-snapshot-delete-internal-sync")

    return Breach(
        "a snapshot stays in the root disk of a guest",
        open=lambda context: ask(context, "blockdev-snapshot-internal-sync"),
        close=close,
        in_force=in_force,
    )


BREACHES = (
    _instead("a removed root disk is not overwritten", {"shred": _NOTHING}),
    _instead("the slots of a removed container stay", {"dd": _NO_SLOTS}),
    _instead(
        "a removed volume is handed to the next guest of its tenant", {"dd": _KEEP, "qemu-img": _HAND_OUT}
    ),
    _instead("a copy of a removed root disk stays", {"shred": _COPY}, undone=f"rm -f {POOLS}/*/*.qcow2.copy"),
    _unmapped(),
    _snapshot(),
)
