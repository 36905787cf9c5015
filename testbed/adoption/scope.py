"""Which parts of a host are recorded, and which of them only our roles make."""

from __future__ import annotations

# Trees whose files are copied: they are given back with their content.
COPIED = ("/etc", "/usr/local", "/root/.ssh", "/var/spool/cron")
# Trees whose files are described by size, time, mode and owner. Packages fill them.
NOTED = ("/boot", "/opt", "/usr")
# Folders whose entries alone are described: below them is data of services and people.
LISTED = ("/", "/home", "/srv", "/var", "/var/lib", "/var/lib/libvirt", "/var/spool")
# Parts of these trees that are left out: documents, which are many, and a lock.
LEFT = (
    "/etc/.pwd.lock",
    "/usr/share/doc",
    "/usr/share/icons",
    "/usr/share/info",
    "/usr/share/locale",
    "/usr/share/man",
    "/usr/src",
)
# What playbooks/roles make outside of copied trees and packages; deleted with all that is below.
MADE_BY_ROLES = ("/home/admin", "/usr/lib/testbed", "/usr/sbin/guard-neighbours", "/var/lib/testbed")
OWN_LINKS = ("br-int", "genev_sys_6081", "ovs-netdev", "ovs-system")  # of Open vSwitch
OWN_TABLES = ("inet testbed", "netdev neighbours")


def request(*, contents: bool) -> dict[str, list[str]]:
    """Return what the recording program is asked for.

    Args:
        contents: whether it copies files.
    """
    return {
        "copied": list(COPIED),
        "noted": list(NOTED),
        "listed": list(LISTED),
        "left": list(LEFT),
        "contents": ["yes"] if contents else [],
    }
