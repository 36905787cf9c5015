"""The most memory that a process has had since a moment, on the outer machine or on a node (DEV-03)."""

from __future__ import annotations

import re
from pathlib import Path

from testbed.errors import InstrumentError
from testbed.verify.fleet import MachineView

GROWTH = 96 * 2**20  # octets by which a process may grow while it reads hostile answers
_FORGET = "5"  # makes the present size the peak (proc(5), /proc/pid/clear_refs)
_SIZES = re.compile(r"^(VmHWM|VmRSS):\s+(\d+) kB$", re.MULTILINE)


def sizes(status: str) -> tuple[int, int]:
    """Return the peak and the present size of a process in octets, from its status file.

    Raises:
        InstrumentError: it has none.
    """
    found = {name: int(number) * 1024 for name, number in _SIZES.findall(status)}
    if len(found) < 2:
        raise InstrumentError(
            "the memory of a process cannot be read", fact=status[:200], remedy="repeat the check"
        )
    return found["VmHWM"], found["VmRSS"]


def grown(name: str, before: int, peak: int) -> list[str]:
    """Return whether a process has grown too much, as a text.

    Args:
        before: octets at the beginning.
        peak: octets at most since then.
    """
    more = peak - before
    return [f"the memory of {name} has grown by {more >> 20} MiB"] if more > GROWTH else []


class PeakOfProcess:
    """A process of the outer machine."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        (self._folder / "clear_refs").write_text(_FORGET, encoding="ascii")
        self._before = sizes(self._status())[1]

    def _status(self) -> str:
        return (self._folder / "status").read_text(encoding="utf-8")

    def faults(self, name: str) -> list[str]:
        """Return whether it has grown too much since this object was made."""
        return grown(name, self._before, sizes(self._status())[0])


class PeakOfNode:
    """The main process of a service of a node."""

    def __init__(self, node: MachineView, unit: str) -> None:
        self._node = node
        self._pid = node.read(f"systemctl show -P MainPID {unit}")
        if not self._pid.isdigit() or self._pid == "0":
            raise InstrumentError(
                f"{unit} of {node.name} does not run", fact=self._pid[:40], remedy="run `testbed up`"
            )
        node.read(f"echo {_FORGET} > /proc/{self._pid}/clear_refs")
        self._before = sizes(self._status())[1]

    def _status(self) -> str:
        return self._node.read(f"cat /proc/{self._pid}/status")

    def faults(self, name: str) -> list[str]:
        """Return whether it has grown too much since this object was made, or has ended."""
        done = self._node.run(f"cat /proc/{self._pid}/status")
        if done.status != 0:
            return [f"{name} has ended"]
        return grown(name, self._before, sizes(done.text)[0])
