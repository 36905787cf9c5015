"""Boots a canary kernel to find out how virtual machines really run here (D7).

``/dev/kvm`` may open, answer its ioctls and still not boot a stock kernel; so only a kernel that came up
counts. The answer is kept, and asked for again when the kernel, QEMU, the image or the device changed.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

from testbed.drivers import process
from testbed.drivers.images import Image
from testbed.errors import InstrumentError, MachineError
from testbed.model.facts import Accelerator, Environment

_MARK = "testbed canary is alive"
_KVM_DEADLINE = 15.0
_TCG_DEADLINE = 120.0
_KVM_REFERENCE = 1.0  # seconds that a canary takes under working KVM on a present-day core
_KVM = Path("/dev/kvm")


def environment(image: Image, cache: Path, *, want: Accelerator | None = None) -> Environment:
    """Return what the outer machine can do.

    Args:
        image: an image with a kernel and a canary initramfs.
        cache: folder in which the answer is kept.
        want: accelerator that the user insists on, or None.

    Raises:
        MachineError: QEMU is missing, no canary comes up, or not under the accelerator wanted.

    """
    emulator = process.require("qemu-system-x86_64", package="qemu-system-x86")
    version = process.run([emulator, "--version"], what="cannot run QEMU", timeout=30, error=MachineError).splitlines()[0]
    key = [platform.release(), version, image.key, _device(), str(want)]
    stored = cache / "canary.json"
    answer = _stored(stored, key)
    if answer is None:
        answer = {"key": key, **_measure(emulator, image, want)}
        stored.write_text(json.dumps(answer))
    if want is Accelerator.KVM and answer["outer"] != Accelerator.KVM:
        raise MachineError("KVM does not work here", fact=str(answer["note"]), remedy="leave out --accelerator, or fix KVM")
    versions = (("kernel", platform.release()), ("qemu", version), ("python", platform.python_version()))
    return Environment(
        Accelerator(str(answer["outer"])), Accelerator.KVM, float(str(answer["slowness"])), emulator, versions,
        str(answer["note"]),
    )  # fmt: skip


def _stored(file: Path, key: list[str]) -> dict[str, object] | None:
    try:
        answer: dict[str, object] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return answer if isinstance(answer, dict) and answer.get("key") == key else None


def _device() -> str:
    try:
        found = _KVM.stat()
    except OSError:
        return "absent"
    return f"{found.st_ino} {found.st_rdev} {found.st_mtime_ns} {os.access(_KVM, os.R_OK | os.W_OK)}"


def _measure(emulator: str, image: Image, want: Accelerator | None) -> dict[str, object]:
    note = f"{_KVM} is missing"
    if want is not Accelerator.TCG and os.access(_KVM, os.R_OK | os.W_OK):
        if boot(emulator, image, Accelerator.KVM, _KVM_DEADLINE) is None:
            note = f"{_KVM} opens, but a canary kernel did not start under it within {_KVM_DEADLINE:.0f} s"
        elif not _nested():
            note = "KVM works, but without nested virtualisation; nodes could not run guests"
        else:
            return {"outer": Accelerator.KVM, "slowness": 1.0, "note": "a canary kernel started under KVM"}
    elif _KVM.exists():
        note = f"{_KVM} is there and not used" if want is Accelerator.TCG else f"{_KVM} cannot be opened by this user"
    seconds = boot(emulator, image, Accelerator.TCG, _TCG_DEADLINE)
    if seconds is None:
        fact = f"no sign of life within {_TCG_DEADLINE:.0f} s"
        raise MachineError("a canary kernel does not start under emulation", fact=fact, remedy="run `testbed doctor`")
    return {"outer": Accelerator.TCG, "slowness": round(max(4.0, seconds / _KVM_REFERENCE), 1), "note": note}


def boot(emulator: str, image: Image, accelerator: Accelerator, deadline: float) -> float | None:
    """Boot the canary and return the seconds until it spoke, or None if it did not before the deadline."""
    cpu = "host" if accelerator is Accelerator.KVM else "EPYC"
    argv = [
        emulator, "-M", "q35", "-accel", str(accelerator), "-cpu", cpu, "-m", "256", "-display", "none",
        "-nodefaults", "-no-user-config", "-no-reboot", "-serial", "stdio", "-kernel", str(image.file("vmlinuz")),
        "-initrd", str(image.file("canary")), "-append", "console=ttyS0 quiet panic=-1",
    ]  # fmt: skip
    start = time.monotonic()
    try:
        output = process.run(argv, what="the canary does not start", timeout=deadline, error=InstrumentError)
    except InstrumentError:
        return None
    return time.monotonic() - start if _MARK in output else None


def _nested() -> bool:
    for module in ("kvm_amd", "kvm_intel"):
        file = Path(f"/sys/module/{module}/parameters/nested")
        if file.exists() and file.read_text().strip() in ("1", "Y"):
            return True
    return False
