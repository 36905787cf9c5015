"""Parts that breaches are built from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

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


def profile(uuid: str) -> PurePosixPath:
    """Return the path of a guest's AppArmor profile on its node."""
    return PurePosixPath(f"/etc/apparmor.d/libvirt/libvirt-{uuid}")
