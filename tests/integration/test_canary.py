"""A real kernel under a real emulator: the tool's findings about this machine are true."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from testbed import data_files
from testbed.drivers.capabilities import canary
from testbed.drivers.host.workspace import cache_root
from testbed.drivers.images.cache import Image, ImageCache
from testbed.errors import InstrumentError, MachineError
from testbed.model.environment import Accelerator

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def image() -> Image:
    stored = [
        image for image in ImageCache(cache_root(), data_files.playbooks()).stored() if image.name == "node"
    ]
    if not stored:
        pytest.skip(f"{cache_root()} has no node image; `testbed image bake` makes one")
    return stored[-1]


@pytest.fixture(scope="module")
def emulator() -> str:
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        pytest.skip("qemu-system-x86_64 is missing")
    return found


def test_the_canary_boots_under_emulation(image: Image, emulator: str) -> None:
    assert 0 < canary.boot(emulator, image, Accelerator.TCG, 120) < 120


def test_a_canary_that_says_nothing_is_ended_at_its_deadline(image: Image, emulator: str) -> None:
    start = time.monotonic()
    with pytest.raises(InstrumentError, match="does not start") as caught:
        canary.boot(emulator, image, Accelerator.TCG, 0.2)
    assert "took longer" in caught.value.fact
    assert time.monotonic() - start < 10


def test_the_answer_is_what_happens_and_is_given_again_without_a_boot(
    image: Image, emulator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = canary.environment(image, tmp_path)
    if found.outer is Accelerator.KVM:
        assert canary.boot(emulator, image, Accelerator.KVM, 15) < 15
        assert found.slowness >= 1.0
    elif "did not start" in found.note:
        with pytest.raises(InstrumentError):
            canary.boot(emulator, image, Accelerator.KVM, 15)
    monkeypatch.setattr(canary, "boot", lambda *_: pytest.fail("booted again"))
    assert canary.environment(image, tmp_path) == found
    if found.outer is Accelerator.TCG:
        assert found.slowness >= 4.0
        assert "kvm" in found.note.lower()
        with pytest.raises(MachineError, match="KVM does not work here"):
            canary.environment(image, tmp_path, want=Accelerator.KVM)
