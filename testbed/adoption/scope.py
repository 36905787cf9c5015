"""Which parts of a host are recorded, and which of them only our roles make."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Scope:
    """The recorded parts of a host; a record keeps its own, which a later release may have changed.

    Args:
        copied: trees whose files are copied. They are given back with their content.
        noted: trees whose files are described by size, time, mode and owner. Packages fill them.
        listed: folders whose entries alone are described: below them is data of services and people.
        left: parts of these trees that are left out.
    """

    copied: tuple[str, ...]
    noted: tuple[str, ...]
    listed: tuple[str, ...]
    left: tuple[str, ...]


SCOPE = Scope(
    copied=("/etc", "/usr/local", "/root/.ssh", "/var/spool/cron"),
    noted=("/boot", "/opt", "/usr"),
    listed=("/", "/home", "/root", "/srv", "/var", "/var/lib", "/var/lib/libvirt", "/var/spool"),
    left=(  # documents, which are many, and a lock
        "/etc/.pwd.lock",
        "/usr/share/doc",
        "/usr/share/icons",
        "/usr/share/info",
        "/usr/share/locale",
        "/usr/share/man",
        "/usr/src",
    ),
)
# Left outside of copied trees by playbooks/roles, their packages and Ansible; deleted with all that is below.
MADE_BY_ROLES = (
    "/home/admin",
    "/root/.ansible",
    "/usr/lib/testbed",
    "/usr/sbin/guard-neighbours",
    "/var/lib/libuuid",
    "/var/lib/openvswitch",
    "/var/lib/ovn",
    "/var/lib/testbed",
)
OWN_LINKS = ("br-int", "genev_sys_6081", "ovs-netdev", "ovs-system")  # of Open vSwitch
OWN_TABLES = ("inet testbed", "netdev neighbours")


def request(scope: Scope, *, contents: bool) -> dict[str, list[str]]:
    """Return what the recording program is asked for.

    Args:
        scope: the parts.
        contents: whether it copies files.
    """
    return {**{name: list(trees) for name, trees in asdict(scope).items()}, "contents": ["yes"] * contents}
