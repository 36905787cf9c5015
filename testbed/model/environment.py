"""The environment found at run time: accelerators, versions, slowness of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Accelerator(StrEnum):
    """How a level runs its virtual machines."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Environment:
    """The outer machine as a canary found it (D7).

    Args:
        outer: accelerator of the nodes.
        inner: accelerator of the guests; KVM in a node works on emulated SVM too.
        slowness: factor by which deadlines are stretched, as measured; 1.0 at least.
        emulator: path of the QEMU binary.
        versions: name and version of the programs that matter for a verdict.
        note: the reason for this accelerator.

    """

    outer: Accelerator
    inner: Accelerator
    slowness: float
    emulator: str
    versions: tuple[tuple[str, str], ...] = ()
    note: str = ""

    def vcpus(self, declared: int) -> int:
        """Return the virtual CPUs that a machine really gets.

        Under emulation several vCPUs corrupt nodes that run KVM, as long runs have shown; so there is one.
        """
        return declared if self.outer is Accelerator.KVM else 1
