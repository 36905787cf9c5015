"""The verdict about storage that is used again, from answers of machines and guests (STO-04)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from checks import test_recycled_storage as checked
from testbed.errors import InstrumentError, ProvisioningError
from testbed.model.topology import POOLS, Guest
from testbed.verify.cleanup import Leavings
from tests.shapes import lab_of

LAB = lab_of("one-node")
KEYS = {"the header": "ab" * 52, "the salt of slot 0": "cd" * 32}
DISKS = [{"inserted": {"drv": "luks", "file": "x", "detect_zeroes": "off", "image": {"filename": "x"}}}]
XML = "<domain><devices><disk><driver name='qemu'/></disk></devices></domain>"


class World:
    """A node, its guests, and a guest that comes and goes.

    Args:
        wrong: what it does in another way than a sound lab.
    """

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong
        self.name = "node"
        self.here: Guest | None = None
        self.searches: list[bool] = []  # whether a guest was there
        self.gone: list[str] = []
        self.domains = lambda: [SimpleNamespace(name=guest.domain, xml=XML) for guest in LAB.guests]
        self.ask_monitor = lambda *_: DISKS
        self.record = lambda *_: None

    @property
    def fleet(self) -> Any:
        lab = SimpleNamespace(nodes={"node": SimpleNamespace(hypervisor=self)})
        return SimpleNamespace(
            topology=LAB, machines={"node": self}, lab=lab, evidence=self, leavings=Leavings(),
            in_guest=self.in_guest,
        )  # fmt: skip

    def read(self, command: str) -> str:
        if command.startswith("findmnt"):
            return json.dumps({"filesystems": [{"target": POOLS, "fstype": "ext4", "options": "rw"}]})
        return "\0".join(f"1 {path}" for guest in LAB.guests for path in guest.disks)

    def python(self, _: str, request: Any, __: float = 0, *, function: str) -> object:
        if function == "container":
            return {"texts": KEYS}
        if function == "files":
            return {"files": {path: self._file(path) for path in request["files"]}}
        self.searches.append(self.here is not None)
        names = request["enough"] if self.here and self.wrong != "blind" else []
        if not self.here and self.wrong in request["texts"]:
            names = [self.wrong]
        found = {"": [1], **{name: [7] if name in names else [] for name in request["texts"]}}
        return {"size": 9, "chosen": 9, "read": 9, "found": found}

    def _file(self, path: str) -> dict[str, object]:
        content = 4096 if self.wrong == "full" and path.endswith(".luks") else None
        return {"size": 9, "used": 0, "content": content, "found": []}

    def in_guest(self, guest: Guest, _: object, program: bytes, __: float) -> bytes:
        text = program.decode()
        assert guest is self.here
        function = text.rpartition("json.dumps(")[2].partition("(")[0]
        written = {
            name for name in (checked._VOLUME, checked._TRIMMED, checked._LATER) if function == "write"
        }
        written -= {self.wrong}
        if self.wrong == guest.tenant and function == "search":
            written = {checked._VOLUME}
        names = re.findall(r"'(the canary of [^']*)': '", text)
        found = {name: int(name in written) for name in names}
        size = guest.volumes[0].size
        files = {checked._FILE: 1, f"{checked._FILE}.2": 1} if function == "write" else {}
        return json.dumps({"size": size, "read": size, "found": found, "files": files}).encode()


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the check in a world."""

    def run(wrong: str = "") -> World:
        world = World(wrong)

        class Passing:
            def __init__(self, _: object, guest: Guest) -> None:
                self.guest, self.node = guest, world

            def arrive(self) -> None:
                world.here = self.guest

            def grow(self, size: int) -> None:
                volumes = tuple(replace(volume, size=size) for volume in self.guest.volumes)
                self.guest = world.here = replace(self.guest, volumes=volumes)

            def leave(self) -> None:
                if world.wrong == "stays":
                    raise ProvisioningError("a guest stays", fact="busy", remedy="look")
                world.gone += [self.guest.tenant] if world.here else []
                world.here = None

        monkeypatch.setattr(checked, "Passing", Passing)
        checked.test_recycled_storage_is_clean(world.fleet, world)  # type: ignore[arg-type]
        return world

    return run


def test_a_clean_node_passes_after_guests_of_both_tenants(judged: Any) -> None:
    world = judged()
    assert world.gone == ["red", "red", "blue"]
    assert world.searches == [True, False]


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (checked._ROOT, "after the removal: the canary of the root disk is on the device"),
        ("the salt of slot 0 of its container", "after the removal: the salt of slot 0 of its container"),
        (checked._TRIMMED, "after the removal: blocks that a guest discards leave its volume"),
        ("full", "a new guest of red: .* has content before its guest has written"),
        ("red", "a new guest of red: it reads the canary of the volume"),
        ("blue", "a new guest of blue: it reads the canary of the volume"),
    ],
)
def test_a_remnant_is_a_fail(judged: Any, wrong: str, fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        judged(wrong)


def test_a_search_that_finds_nothing_of_a_running_guest_is_inconclusive(judged: Any) -> None:
    with pytest.raises(InstrumentError, match="cannot be judged"):
        judged("blind")


def test_a_guest_that_cannot_be_removed_is_inconclusive(judged: Any) -> None:
    with pytest.raises(ProvisioningError):
        judged("stays")
