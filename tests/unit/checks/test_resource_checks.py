"""What a guest has beside disks: modes and owners, and what a node must show (RES-01)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from checks.test_guest_resources import Resource, loose, resources
from testbed.errors import InstrumentError
from tests.shapes import lab_of

GUEST = lab_of("one-node").guests[0]
OWN, KVM = 64100, 104
FOLDER = "/var/lib/libvirt/qemu/domain-3-red.web"
TEXT = f"""\
d 750 {OWN} {OWN} {FOLDER}
f 600 {OWN} {OWN} {FOLDER}/master-key.aes
s 775 0 0 {FOLDER}/monitor.sock
d 750 {OWN} {OWN} /run/libvirt/qemu/channel/3-red.web
s 775 {OWN} {OWN} /run/libvirt/qemu/channel/3-red.web/org.qemu.guest_agent.0
f 600 0 0 /run/libvirt/qemu/red.web.xml
f 600 0 0 /var/log/libvirt/qemu/red.web.log
f 600 0 0 /var/log/libvirt/qemu/red.web.console.log
/dev/pts/2
"""


def read(text: str) -> tuple[list[Resource], str]:
    node: Any = SimpleNamespace(name="node", read=lambda _: text)
    return resources(node, GUEST)


def test_files_of_root_and_of_the_worker_are_not_open() -> None:
    found, terminal = read(TEXT)
    assert (len(found), terminal) == (8, "/dev/pts/2")
    assert loose(found, OWN) == []


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (f"600 {OWN} {OWN} {FOLDER}/m", f"600 {OWN} {OWN} {FOLDER}/m", ""),
        (
            "f 600 0 0 /var/log/libvirt/qemu/red.web.c",
            "f 644 0 0 /var/log/libvirt/qemu/red.web.c",
            "mode 644",
        ),
        ("f 600 0 0 /run", "f 602 0 0 /run", "mode 602"),
        ("f 600 0 0 /run", f"f 640 0 {KVM} /run", f"belongs to 0:{KVM}"),
        ("f 600 0 0 /run", f"f 600 {OWN + 1} 0 /run", f"belongs to {OWN + 1}:0"),
        (f"d 750 {OWN} {OWN} /run", f"d 750 {OWN} {KVM} /run", f"belongs to {OWN}:{KVM}"),
        (f"d 750 {OWN} {OWN} {FOLDER}", f"d 751 {OWN} {OWN} {FOLDER}", "mode 751"),
    ],
)
def test_each_way_to_others_is_a_fault(old: str, new: str, what: str) -> None:
    found = loose(read(TEXT.replace(old, new, 1))[0], OWN)
    assert bool(found) == bool(what)
    assert not what or what in found[0]


def test_a_socket_counts_as_soon_as_its_folder_is_open() -> None:
    found = loose(read(TEXT.replace(f"d 750 {OWN} {OWN} {FOLDER}", f"d 755 {OWN} {OWN} {FOLDER}"))[0], OWN)
    assert [text.split(" ")[0] for text in found] == [FOLDER, f"{FOLDER}/monitor.sock"]


def test_each_kind_is_attacked_in_its_own_way() -> None:
    assert {item.kind: item.verbs for item in read(TEXT)[0]} == {
        "d": ("list",),
        "f": ("read", "write"),
        "s": ("connect",),
    }


@pytest.mark.parametrize("gone", ["monitor.sock", "master-key.aes", "/dev/pts/2", "console.log"])
def test_a_guest_of_which_something_is_missing_is_no_pass(gone: str) -> None:
    text = "".join(line for line in TEXT.splitlines(keepends=True) if gone not in line)
    with pytest.raises(InstrumentError):
        read(text)


def test_no_answer_is_no_pass() -> None:
    with pytest.raises(InstrumentError):
        read("")
