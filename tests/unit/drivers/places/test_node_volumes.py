"""Volumes that change under guests: the files, the programs and their order."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.drivers.places import luks_volumes
from testbed.drivers.places.node import Node
from testbed.model.resolve import resolve
from testbed.model.topology import LUKS_HEADER
from testbed.plan.diff import Action, Verb
from testbed.plan.resources import Key, Kind, Resource
from testbed.topology_file.loader import read
from testbed.topology_file.quantities import MIB

LAB = resolve(read(Path(__file__).parents[4] / "topologies/two-tenants.yaml").spec)
PATH = "/var/lib/testbed/pools/red/web.data.luks"


class Recorded:
    """Stands in for a node's host and its libvirt, and remembers what they were asked for."""

    def __init__(self, *, running: bool) -> None:
        self.done: list[str] = []
        self.sent: list[bytes] = []
        self._running = running

    def must(self, command: str, stdin: bytes = b"") -> None:
        self.done.append(command)
        self.sent.append(stdin)

    def runs(self, domain: str) -> bool:
        assert domain == "red.web"
        return self._running

    def destroy(self, domain: str) -> None:
        self.done.append(f"destroy {domain}")

    def resize_disk(self, domain: str, target: str, size: int) -> None:
        self.done.append(f"resize {domain} {target} {size}")


def _perform(
    verb: Verb, *changes: str, running: bool = True, file: str = "web.data.luks", size: int = 32 * MIB
) -> list[str]:
    return _performed(verb, *changes, running=running, file=file, size=size).done


def _performed(
    verb: Verb, *changes: str, running: bool = True, file: str = "web.data.luks", size: int = 32 * MIB
) -> Recorded:
    recorded = Recorded(running=running)
    world: Any = recorded
    node = Node.__new__(Node)
    node.topology, node.name, node.host, node._hypervisor, node._blank = LAB, "node-a", world, world, set()
    node._lock = threading.Lock()
    node.keys = SimpleNamespace(key=lambda node, tenant: f"key of {tenant} on {node}".encode())  # type: ignore[assignment]
    node._starter = SimpleNamespace(keeps=lambda _: False)  # type: ignore[assignment]
    key = Key("node-a", Kind.VOLUME, f"red/{file}")
    resource = Resource(key, {"owner": 64101, "mode": "600", "links": 1, "size": size})
    node.perform(Action(verb, key, "", resource, (), changes))
    return recorded


def test_a_smaller_volume_is_another_file_and_its_guest_does_not_run_meanwhile() -> None:
    recorded = _performed(Verb.REPLACE, "size")
    assert recorded.done[:2] == ["destroy red.web", luks_volumes.wipe(PATH)]
    new = f"{PATH}.new"
    assert recorded.done[-1].startswith(
        f"rm -f {new} && (umask 077 && {luks_volumes.make(new, 32 * MIB)}) && "
    )
    assert recorded.done[-1].endswith(f" && chown 64101:64101 {new} && mv {new} {PATH}")


def test_a_key_is_on_standard_input_only() -> None:
    recorded = _performed(Verb.CREATE)
    assert recorded.sent == [b"key of red on node-a"]
    assert "key of red" not in "".join(recorded.done)


def test_a_new_root_disk_has_named_formats() -> None:
    """STO-02: neither the overlay's format nor its base's is found out from content."""
    done = _perform(Verb.CREATE, file="web.qcow2", size=0)
    base = "/var/lib/testbed/images/guest/root.raw"
    assert f"qemu-img create -q -f qcow2 -F raw -b {base} " in done[-1]


def test_a_larger_volume_of_a_running_guest_is_resized_by_its_worker() -> None:
    done = _perform(Verb.UPDATE, "size")
    assert done[-1] == f"resize red.web {PATH} {32 * MIB}"
    assert not [command for command in done if "truncate" in command]


def test_a_larger_volume_of_no_running_guest_is_a_longer_file() -> None:
    assert _perform(Verb.UPDATE, "size", running=False)[-1] == f"truncate -s {32 * MIB + LUKS_HEADER} {PATH}"


@pytest.mark.parametrize("name", ["owner", "mode"])
def test_what_is_not_about_size_does_not_change_it(name: str) -> None:
    assert _perform(Verb.UPDATE, name) == [f"chown 64101:64101 {PATH} && chmod 600 {PATH}"]
