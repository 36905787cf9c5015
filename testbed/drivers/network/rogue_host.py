"""A host that does not belong to the fleet, on one of its infrastructure networks: a network namespace inside
the lab's.

It lives as long as the block that uses it, and never longer than our own process: its first process ends with
its input, and the kernel then ends everything in it and removes its interface.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from testbed.drivers.host import process
from testbed.drivers.network.bridges import Fabric
from testbed.errors import InstrumentError, ProvisioningError
from testbed.model.exposure import Site
from testbed.model.topology import LabNetwork

ROGUE = "rogue"  # kind of its interface; `plan` neither wants nor misses it
_LIFE = 900  # seconds
_INTERFACE = "rogue0"
# A file system of its own below /run, where the probe has its pipe, and the view of its own interfaces below
# /sys. It takes its IPv6 address without asking whether anybody else has it.
_PROGRAM = (
    "mount -t sysfs sys /sys && mount -t tmpfs run /run || exit; echo 0 2>/dev/null > "
    "/proc/sys/net/ipv6/conf/default/accept_dad; "
    f"echo ready; exec timeout {_LIFE} cat"
)


@dataclass(frozen=True, slots=True)
class Rogue:
    """A rogue host that stands."""

    site: Site
    pid: int

    def run(self, argv: list[str], stdin: bytes = b"", timeout: float = 60) -> bytes:
        """Run a program there and return what it prints.

        Raises:
            InstrumentError: it fails, or takes longer than so many seconds.

        """
        enter = [
            process.require("nsenter", package="util-linux"),
            f"--target={self.pid}",
            "--net",
            "--mount",
            "--pid",
        ]
        what = f"a program on the {self.site.label} host failed"
        return process.run(
            [*enter, *argv], what=what, timeout=timeout, error=InstrumentError, stdin=stdin
        ).encode()


@contextmanager
def standing(
    fabric: Fabric, network: LabNetwork, site: Site, routes: Mapping[IPv4Address, IPv4Address]
) -> Iterator[Rogue]:
    """Let a rogue host stand on a network while a block runs.

    Args:
        routes: by address elsewhere, the neighbour that it sends packets for it to.

    Raises:
        ProvisioningError: the kernel refuses a namespace or an interface.

    """
    unshare = process.require("unshare", package="util-linux")
    argv = [
        unshare,
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--",
        "/bin/sh",
        "-c",
        _PROGRAM,
    ]
    with process.held(argv, what=f"no rogue host can stand on {network.plane}", timeout=30) as outer:
        pid = _only_child(outer)
        fabric.create_rogue(
            f"rogue-{network.plane}"[:15],
            f"{ROGUE}={network.plane}",
            network.bridge,
            _INTERFACE,
            site.mac,
            pid,
        )
        found = Rogue(site, pid)
        lines = [
            f"addr add {site.address}/{network.network.prefixlen} dev {_INTERFACE}",
            f"link set {_INTERFACE} up",
        ]
        lines += [
            f"route add {address}/32 via {neighbour} dev {_INTERFACE}"
            for address, neighbour in routes.items()
        ]
        found.run(
            [process.require("ip", package="iproute2"), "-batch", "-"], "\n".join(lines).encode() + b"\n"
        )
        yield found


def _only_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if len(children) != 1:
        fact = f"process {pid} has the children {children}"
        raise ProvisioningError("a rogue host has no first process", fact=fact, remedy="repeat the check")
    return int(children[0])
