"""The setting that no account makes the kernel load a module: its readings, and what the image brings."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.model.topology import Role
from testbed.plan.host_config import kernel_modules as modules

ROLES = Path(__file__).parents[4] / "playbooks/roles"


def _printed(role: Role) -> str:
    """Return what a machine prints that is as declared."""
    files = modules.texts_of(role)
    lines = [f"{path}:{line}" for path, text in files.items() for line in text.splitlines()]
    return "\n".join([*lines, f"{modules.DISCIPLINES}:0", "/etc/group:root:x:0:"])


GOOD = _printed(Role.NODE)


@pytest.mark.parametrize(
    ("file", "text"), [("base", modules.TEXT), ("switch", modules.TEXT_OF_NODES)], ids=["all", "nodes"]
)
def test_the_image_brings_the_declared_text(file: str, text: str) -> None:
    assert (ROLES / file / "files/modprobe.conf").read_text() == text


@pytest.mark.parametrize("role", Role)
def test_what_is_declared_is_the_value(role: Role) -> None:
    assert modules.told(_printed(role), role) == modules.CLOSED


def test_a_controller_has_nothing_of_a_node() -> None:
    told = modules.told(GOOD, Role.CONTROLLER).splitlines()
    assert told == [*modules.CLOSED.splitlines(), f"changed by {modules.OF_NODES}"]


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        (GOOD.replace("net-pf-* off", "net-pf-3 off"), "configuration not as declared"),
        (GOOD.replace("modprobe.d/testbed.conf", "other/testbed.conf"), "configuration not as declared"),
        (GOOD.replace("modprobe.d/testbed-node", "other/testbed"), "configuration not as declared"),
        (GOOD.replace("autoload:0", "autoload:1"), "line disciplines"),
        (GOOD.replace(f"{modules.DISCIPLINES}:0", ""), "line disciplines"),
        (f"{GOOD}\n/run/modprobe.d/x.conf:alias net-pf-41 kcm", "changed by /run/modprobe.d/x.conf"),
        (f"{GOOD}\n/etc/modprobe.d/x.conf:# nothing", "changed by /etc/modprobe.d/x.conf"),
        (f"{GOOD}\n/etc/modprobe.d/testbed.conf:alias net-pf-41 kcm", "configuration not as declared"),
    ],
)
def test_each_difference_is_named(texts: str, fault: str) -> None:
    told = modules.told(texts, Role.NODE)
    assert told != modules.CLOSED
    assert fault in told.splitlines()
