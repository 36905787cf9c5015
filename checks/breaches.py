"""Parts that checks and their breaches are built from."""

from __future__ import annotations

from collections.abc import Callable

from testbed.model.testbed import Guest
from testbed.verify.declare import Breach
from testbed.verify.stage import Stage


def command(
    name: str, *, opens: Callable[[Stage], str], closes: Callable[[Stage], str], shows: Callable[[Stage], str]
) -> Breach:
    """Return a breach made of shell commands that run as root on the machine of the case.

    Args:
        shows: commands that succeed exactly while the wall is open.

    """
    return Breach(
        name,
        open=lambda stage: _do(stage, opens(stage)),
        close=lambda stage: _do(stage, closes(stage)),
        in_force=lambda stage: stage.host.sudo(shows(stage)).status == 0,
    )


def _do(stage: Stage, commands: str) -> None:
    stage.host.must(commands)


def needs_guest(stage: Stage) -> str | None:
    """Return why a check has nothing to look at on a node without guests."""
    return None if stage.guests else f"{stage.case} has no guest"


def needs_strangers(stage: Stage) -> str | None:
    """Return why a check has nothing to look at on a node where one tenant is alone."""
    tenants = {guest.tenant for guest in stage.guests}
    return None if len(tenants) > 1 else f"fewer than two tenants have guests on {stage.case}"


def profile(guest: Guest) -> str:
    """Return the path of a guest's AppArmor profile on its node."""
    return f"/etc/apparmor.d/libvirt/libvirt-{guest.uuid}"


def rules(guest: Guest) -> str:
    """Return the path of the file of a guest's profile that names what its worker may open."""
    return f"{profile(guest)}.files"


def load(guest: Guest) -> str:
    """Return the command that puts a guest's profile into force as it stands on disk."""
    return f"apparmor_parser -r {profile(guest)}"
