"""Breaches that give a guest a device: what they change, and what remains when they are closed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from checks import test_guest_devices, test_image_formats, test_vsock
from checks.support import device_breaches
from testbed.errors import InstrumentError
from testbed.plan.libvirt_xml.elements import QEMU
from testbed.verify.check import ATTRIBUTE, Breach
from tests.shapes import lab_of

LAB = lab_of("two-tenants")
GUEST = LAB.guests_on("node-a")[0]


class World:
    """A node that records domains, questions to monitors, and commands."""

    def __init__(self, answers: Callable[[str], object] = lambda _: {}) -> None:
        self.made: list[str] = []
        self.done: list[str] = []
        self._answers = answers
        hypervisor = SimpleNamespace(
            create=lambda text, paused: self.made.append(text),
            destroy=lambda name: self.done.append(f"destroy {name}"),
            ask_monitor=self._ask,
            runs=lambda _: True,
        )
        host = SimpleNamespace(must=self.done.append)
        node = SimpleNamespace(name="node-a", hypervisor=hypervisor, host=host)
        self.context: Any = SimpleNamespace(topology=LAB, node=node, host=host, guest=GUEST)

    def _ask(self, _: str, command: str, arguments: object) -> object:
        self.done.append(command)
        return self._answers(command)


def _breach(check: Callable[..., object], beginning: str) -> Breach:
    breaches = getattr(check, ATTRIBUTE).breaches
    return next(breach for breach in breaches if breach.name.startswith(beginning))


@pytest.mark.parametrize(
    ("check", "name", "path", "left"),
    [
        (test_guest_devices.test_devices_are_declared, "a guest shares", "devices/shmem", "/dev/shm/breach"),
        (test_image_formats.test_formats_are_declared, "libvirt opens", "devices/disk", "breach.qcow2"),
        (test_vsock.test_vsock_leads_nowhere, "a guest has a vsock", "devices/vsock", "vhost_vsock"),
    ],
)
def test_a_guest_with_a_device_leaves_nothing_on_its_node(
    check: Callable[..., object], name: str, path: str, left: str
) -> None:
    world, breach = World(), _breach(check, name)
    breach.open(world.context)
    assert len(ET.fromstring(world.made[0]).findall(path)) == 1
    world.done.clear()
    breach.close(world.context)
    assert world.done[0].startswith("destroy ")
    assert left in world.done[-1]


def test_a_usb_controller_takes_the_place_of_the_one_that_says_none() -> None:
    world = World()
    _breach(test_guest_devices.test_devices_are_declared, "a guest has a USB").open(world.context)
    models = [
        item.get("model") for item in ET.fromstring(world.made[0]).findall("devices/controller[@type='usb']")
    ]
    assert models == ["qemu-xhci"]


def test_a_debug_console_is_an_option_of_qemu() -> None:
    world = World()
    _breach(test_guest_devices.test_devices_are_declared, "a guest has a debug").open(world.context)
    words = ET.fromstring(world.made[0]).findall(f"{{{QEMU}}}commandline/{{{QEMU}}}arg")
    assert [word.get("value") for word in words] == ["-debugcon", "null"]


def _refused(fact: str) -> InstrumentError:
    return InstrumentError("no", fact=fact, remedy="none")


def test_an_object_that_a_device_holds_is_removed_when_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_breaches, "_PAUSE", 0)
    facts = ["busy", "busy"]

    def answer(command: str) -> object:
        if command == "chardev-remove" and facts:
            raise _refused(f"Chardev 'breach' is {facts.pop()}")
        return {}

    world = World(answer)
    device_breaches.HIDDEN_PORT.close(world.context)
    assert world.done == ["device_del", *["chardev-remove"] * 3]


@pytest.mark.parametrize("fact", ["Device 'breach' not found", "Chardev 'breach' not found"])
def test_an_object_that_was_never_made_needs_no_removal(fact: str) -> None:
    def answer(_: str) -> object:
        raise _refused(fact)

    world = World(answer)
    device_breaches.HIDDEN_PORT.close(world.context)
    assert world.done == ["device_del", "chardev-remove"]


def test_an_object_that_stays_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_breaches, "_PAUSE", 0)

    def answer(_: str) -> object:
        raise _refused("busy")

    with pytest.raises(InstrumentError):
        device_breaches.HIDDEN_CHARDEV.close(World(answer).context)


@pytest.mark.parametrize(
    ("breach", "answer", "open_"),
    [
        (device_breaches.HIDDEN_PORT, [{"name": "breach", "type": "child<virtserialport>"}], True),
        (device_breaches.HIDDEN_PORT, [{"name": "breach-2"}], False),
        (device_breaches.HIDDEN_CHARDEV, [{"label": "breach"}], True),
        (device_breaches.HIDDEN_CHARDEV, [{"label": "charserial0"}], False),
        (device_breaches.HIDDEN_NETWORK, "breach: index=0,type=user", True),
        (device_breaches.HIDDEN_NETWORK, "hostnet0: index=0,type=tap", False),
    ],
)
def test_a_breach_is_in_force_when_qemu_shows_its_object(
    breach: Breach,
    answer: object,
    open_: bool,
) -> None:
    assert breach.in_force(World(lambda _: answer).context) is open_
