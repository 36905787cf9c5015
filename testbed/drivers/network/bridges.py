"""Bridges and taps of a lab, in the network namespace this process is in: the only file that imports
pyroute2.

Every interface carries the lab's name and its properties in its alias; what has no such alias is never
touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from testbed.errors import ProvisioningError

_MARK = "testbed"


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of ours as the kernel has it.

    Args:
        master: name of the bridge it is attached to, or "".
        addresses: IPv4 addresses with prefix length.

    """

    name: str
    resource: str
    master: str
    up: bool
    addresses: tuple[str, ...]
    mac: str


class Fabric:
    """Makes, lists and removes the interfaces of one lab."""

    def __init__(self, lab: str) -> None:
        self._lab = lab

    def links(self) -> list[Link]:
        """Return every interface that carries this lab's mark."""
        with IPRoute() as route:
            links = list(route.get_links())
            names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
            addresses: dict[int, list[str]] = {}
            for address in route.get_addr(family=2):
                text = f"{address.get_attr('IFA_LOCAL')}/{address['prefixlen']}"
                addresses.setdefault(address["index"], []).append(text)
            return list(self._ours(links, names, addresses))

    def _ours(self, links: list, names: dict[int, str], addresses: dict[int, list[str]]) -> Iterator[Link]:  # type: ignore[type-arg]
        for link in links:
            mark, _, resource = (link.get_attr("IFLA_IFALIAS") or "").partition(f":{self._lab}:")
            if mark == _MARK and resource:
                yield Link(
                    link.get_attr("IFLA_IFNAME"),
                    resource,
                    names.get(link.get_attr("IFLA_MASTER") or 0, ""),
                    bool(link["flags"] & 1),
                    tuple(sorted(addresses.get(link["index"], []))),
                    link.get_attr("IFLA_ADDRESS") or "",
                )

    def create_bridge(self, name: str, resource: str, address: IPv4Interface | None) -> None:
        """Make a bridge; with an address, the outer machine takes part in its network.

        Raises:
            ProvisioningError: the kernel refuses.

        """
        with _netlink(f"cannot make the bridge {name}") as route:
            route.link(
                "add", ifname=name, kind="bridge", br_stp_state=0, br_mcast_snooping=0, br_forward_delay=0
            )
            index = route.link_lookup(ifname=name)[0]
            if address is not None:
                route.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
            self._finish(route, index, resource)

    def create_tap(self, name: str, resource: str, bridge: str, outer_network: int | None = None) -> None:
        """Make a tap and attach it to a bridge.

        Args:
            outer_network: descriptor of a network namespace. If given, make a veth pair instead of a tap; its
                other end goes there under the same name, and disappears with ours.

        Raises:
            ProvisioningError: the kernel refuses.

        """
        with _netlink(f"cannot make the tap {name}") as route:
            if outer_network is None:
                route.link("add", ifname=name, kind="tuntap", mode="tap")
            else:
                route.link("add", ifname=name, kind="veth", peer={"ifname": name, "net_ns_fd": outer_network})
            index = route.link_lookup(ifname=name)[0]
            route.link("set", index=index, master=route.link_lookup(ifname=bridge)[0])
            self._finish(route, index, resource)

    def create_rogue(self, name: str, resource: str, bridge: str, peer: str, mac: str, process: int) -> None:
        """Attach a network namespace to a bridge by a veth pair, which disappears with the namespace.

        Args:
            peer: name of the end in the namespace.
            mac: its MAC address; ours gets one so high that the bridge keeps its own, which is the lowest of
                its ports'.
            process: a process in it.

        Raises:
            ProvisioningError: the kernel refuses.

        """
        with _netlink(f"cannot make the rogue host's interface {name}") as route:
            far = {"ifname": peer, "address": mac, "net_ns_pid": process}
            route.link("add", ifname=name, kind="veth", address=f"fe{mac[2:]}", peer=far)
            index = route.link_lookup(ifname=name)[0]
            route.link("set", index=index, master=route.link_lookup(ifname=bridge)[0])
            self._finish(route, index, resource)

    def _finish(self, route: IPRoute, index: int, resource: str) -> None:
        route.link("set", index=index, ifalias=f"{_MARK}:{self._lab}:{resource}", state="up")

    def delete(self, name: str) -> None:
        """Remove an interface of ours.

        Raises:
            ProvisioningError: the kernel refuses.

        """
        with _netlink(f"cannot remove the interface {name}") as route:
            for index in route.link_lookup(ifname=name):
                route.link("del", index=index)


class _netlink:  # noqa: N801 - used as a function
    """A netlink socket whose errors are ours."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._route = IPRoute()

    def __enter__(self) -> IPRoute:
        return self._route

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._route.close()
        if isinstance(error, NetlinkError | OSError | IndexError):
            raise ProvisioningError(
                self._what,
                fact=f"netlink says: {error}",
                remedy="run `testbed doctor`: /dev/net/tun and network namespaces must be permitted",
            ) from error
