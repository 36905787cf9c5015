"""A rogue host: a host on an infrastructure network that does not belong to the fleet.

It is a network namespace inside the lab's, and exists during the block that uses it. It never outlives our
process: its first process ends with its standard input, and the kernel then kills all processes in the
namespace and removes its interface.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from testbed import timeouts
from testbed.drivers.host import process
from testbed.drivers.network.bridges import Fabric
from testbed.errors import InstrumentError, ProvisioningError
from testbed.model.exposure import InfraEndpoint
from testbed.model.topology import LabNetwork

ROGUE = "rogue"  # kind of its interface; no plan contains this kind
_LIFE = int(timeouts.ROGUE_LIFE)
_INTERFACE = "rogue0"
# Mounts a sysfs that shows its own interfaces, and a tmpfs on /run, where the probe has its pipe. Duplicate
# address detection is off, so that the IPv6 address can be used at once.
_PROGRAM = (
    "mount -t sysfs sys /sys && mount -t tmpfs run /run || exit; echo 0 2>/dev/null > "
    "/proc/sys/net/ipv6/conf/default/accept_dad; "
    f"echo ready; exec timeout {_LIFE} cat"
)


@dataclass(frozen=True, slots=True)
class Rogue:
    """A running rogue host."""

    site: InfraEndpoint
    pid: int

    def run(self, argv: list[str], stdin: bytes = b"", timeout: float = 60) -> bytes:
        """Run a program on the rogue host and return its standard output.

        Args:
            argv: program and arguments.
            stdin: standard input of the program.
            timeout: seconds.

        Raises:
            InstrumentError: the program fails or does not end in time.

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
def rogue_host(
    fabric: Fabric, network: LabNetwork, site: InfraEndpoint, routes: Mapping[IPv4Address, IPv4Address]
) -> Iterator[Rogue]:
    """Run a rogue host on a network during the block.

    Args:
        fabric: interfaces of the lab.
        network: network that the host is attached to.
        site: name and addresses of the host.
        routes: gateway on the network for each remote address.

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
    with process.held(
        argv, what=f"no rogue host can stand on {network.plane}", timeout=timeouts.ROGUE_HOST
    ) as outer:
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
