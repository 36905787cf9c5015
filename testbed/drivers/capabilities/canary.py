"""Boots a canary kernel to measure how virtual machines run on this machine (D7).

``/dev/kvm`` may open, answer its ioctls and still not boot a stock kernel. So only a booted kernel counts as
evidence. How slow the machine is counts under KVM as well: KVM may itself run in an emulated machine. A boot
under KVM that takes too long proves nothing on a busy machine: how long emulation takes there tells.

The answer is stored, and measured again when kernel, QEMU, image, or the rights to the device have changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
from pathlib import Path

from testbed import timeouts
from testbed.drivers.host import process
from testbed.drivers.host.private_files import write_public
from testbed.drivers.images.cache import Image
from testbed.errors import InstrumentError, MachineError
from testbed.model.environment import Accelerator, Environment

_MARK = "testbed canary is alive"
_KVM_DEADLINE = 15.0
_TCG_DEADLINE = 120.0
_KVM_REFERENCE = (
    1.0  # seconds from QEMU's start to the canary's power-off under working KVM on a present-day core
)
_EMULATED = 4.0  # the least slowness under emulation
_TCG_USUAL = 10.0  # seconds in which an emulated canary powers off unless the machine is busy
_LATEST = 120.0  # seconds for KVM on a busy machine
_SHOWN = 200  # characters of QEMU's own message that a note quotes
_KVM = Path("/dev/kvm")


def environment(image: Image, cache: Path, *, want: Accelerator | None = None) -> Environment:
    """Return the environment of the outer machine: accelerator, slowness and versions.

    Args:
        image: an image with a kernel and a canary initramfs.
        cache: folder in which the answer is kept.
        want: accelerator that the user insists on, or None.

    Raises:
        MachineError: QEMU is missing, or no canary boots, or none under the requested accelerator.

    """
    emulator = process.require("qemu-system-x86_64", package="qemu-system-x86")
    version = process.run(
        [emulator, "--version"], what="cannot run QEMU", timeout=timeouts.VERSION, error=MachineError
    ).splitlines()[0]
    asked = "tcg" if want is Accelerator.TCG else "any"
    key = [platform.release(), version, image.key, _device(), asked]
    stored = cache / "canary.json"
    answer = _stored(stored, key)
    if answer is None:
        answer = {"key": key, **_measure(emulator, image, want)}
        with contextlib.suppress(PermissionError):  # another account's cache: measure again next time
            write_public(stored, json.dumps(answer).encode())
    if want is Accelerator.KVM and answer["outer"] != Accelerator.KVM:
        raise MachineError(
            "KVM does not work here", fact=str(answer["note"]), remedy="leave out --accelerator, or fix KVM"
        )
    versions = (("kernel", platform.release()), ("qemu", version), ("python", platform.python_version()))
    return Environment(
        Accelerator(str(answer["outer"])),
        Accelerator.KVM,
        float(str(answer["slowness"])),
        emulator,
        versions,
        str(answer["note"]),
    )


def likely(cache: Path, *, want: Accelerator | None = None) -> Environment:
    """Return the likely abilities of the outer machine, without a boot.

    They are the last answer, or a guess.

    Args:
        cache: folder in which the answer is kept.
        want: accelerator that the user insists on, or None.

    """
    emulator = shutil.which("qemu-system-x86_64") or "qemu-system-x86_64"
    answer = _last(cache / "canary.json") or {}
    try:
        found, slowness = Accelerator(str(answer["outer"])), float(str(answer["slowness"]))
        note = "as a canary kernel found it last"
    except (KeyError, ValueError):
        found, note = (
            (Accelerator.KVM if os.access(_KVM, os.R_OK | os.W_OK) else Accelerator.TCG),
            "a guess: no canary kernel was booted",
        )
        slowness = 1.0 if found is Accelerator.KVM else _EMULATED
    outer = want or found
    return Environment(outer, Accelerator.KVM, slowness if outer is found else _EMULATED, emulator, (), note)


def _last(file: Path) -> dict[str, object] | None:
    try:
        answer: dict[str, object] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def _stored(file: Path, key: list[str]) -> dict[str, object] | None:
    answer = _last(file)
    return answer if answer and answer.get("key") == key else None


def _device() -> str:
    """Return the device's number and our rights; udev makes it again at every start of the machine."""
    try:
        found = _KVM.stat()
    except OSError:
        return "absent"
    return f"{found.st_rdev} {os.access(_KVM, os.R_OK | os.W_OK)}"


def _measure(emulator: str, image: Image, want: Accelerator | None) -> dict[str, object]:
    note, late = f"{_KVM} is missing", False
    if want is not Accelerator.TCG and os.access(_KVM, os.R_OK | os.W_OK):
        found, note, late = _under_kvm(emulator, image, _KVM_DEADLINE)
        if found:
            return found
    elif _KVM.exists():
        note = (
            f"{_KVM} is there and not used"
            if want is Accelerator.TCG
            else f"{_KVM} cannot be opened by this user"
        )
    try:
        seconds = boot(emulator, image, Accelerator.TCG, _TCG_DEADLINE)
    except InstrumentError as error:
        what = "a canary kernel does not start under emulation"
        raise MachineError(what, fact=_brief(error.fact), remedy=error.remedy) from error
    if late and seconds > _TCG_USUAL:
        patience = min(_LATEST, _KVM_DEADLINE * seconds / _TCG_USUAL)
        found, note, _ = _under_kvm(emulator, image, patience)
        if found:
            return found
    return {
        "outer": Accelerator.TCG,
        "slowness": round(max(_EMULATED, seconds / _KVM_REFERENCE), 1),
        "note": note,
    }


def _under_kvm(emulator: str, image: Image, deadline: float) -> tuple[dict[str, object], str, bool]:
    """Return the answer if nodes can run under KVM; else why not, and whether the canary was only late."""
    start = time.monotonic()
    try:
        seconds = boot(emulator, image, Accelerator.KVM, deadline)
    except InstrumentError as error:
        note = f"{_KVM} opens, but a canary kernel did not start under it: {_brief(error.fact)}"
        return {}, note, time.monotonic() - start >= deadline
    if not _nested():
        return {}, "KVM works, but without nested virtualisation; nodes could not run guests", False
    slowness = round(max(1.0, seconds / _KVM_REFERENCE), 1)
    note = "a canary kernel started under KVM"
    return {"outer": Accelerator.KVM, "slowness": slowness, "note": note}, note, False


def _brief(fact: str) -> str:
    """Return QEMU's messages in one line, shortened, without warnings."""
    lines = [" ".join(line.split()) for line in fact.splitlines() if "warning:" not in line]
    return "; ".join(line for line in lines if line)[:_SHOWN]


def boot(emulator: str, image: Image, accelerator: Accelerator, deadline: float) -> float:
    """Boot the canary and return the seconds until it had printed its mark and powered off.

    The processor model is that of nodes. The emulator is killed at the deadline (seconds).

    Raises:
        InstrumentError: QEMU failed, or the canary did not print its mark and power off in time.

    """
    cpu = "host" if accelerator is Accelerator.KVM else "EPYC"
    argv = [
        emulator,
        "-M",
        "q35",
        "-accel",
        str(accelerator),
        "-cpu",
        cpu,
        "-m",
        "256",
        "-display",
        "none",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-serial",
        "stdio",
        "-kernel",
        str(image.file("vmlinuz")),
        "-initrd",
        str(image.file("canary")),
        "-append",
        "console=ttyS0 quiet panic=-1",
    ]
    what = "the canary does not start"
    start = time.monotonic()
    output = process.run(argv, what=what, timeout=deadline, error=InstrumentError)
    seconds = time.monotonic() - start
    if _MARK not in output:
        last = " ".join(output.split())[-_SHOWN:] or "nothing"
        fact = f"QEMU ended after {seconds:.1f} s; the kernel said: {last}"
        raise InstrumentError(what, fact=fact, remedy="bake the images again, or see QEMU's own requirements")
    return seconds


def _nested() -> bool:
    for module in ("kvm_amd", "kvm_intel"):
        file = Path(f"/sys/module/{module}/parameters/nested")
        if file.exists() and file.read_text().strip() in ("1", "Y"):
            return True
    return False
