"""Imported images, made by an attacker, and the gate of a node that reads them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from uuid import uuid4

from checks.support.breaches import shell_breach
from checks.support.judging import judging
from testbed.model.topology import POOLS
from testbed.payload.images.hostile_images import MOST
from testbed.payload.images.node_import import HERE
from testbed.plan.host_config import image_import
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.storage import imports

_TIMEOUT = 400.0  # seconds
_SEED = 20261130
_SHOWN = 6
_FOLDER = f"/run/systemd/system/{image_import.PREFIX}.service.d"
_FILE = f"{_FOLDER}/breach.conf"
_GATE = "/run/breach-gate"
_SECRETS = (
    "/etc/shadow",
    "/etc/passwd",
    "/etc/hostname",
    POOLS,
    "/run/libvirt",
    "/dev/kvm",
    "/dev/vda",
    "/proc/1/environ",
)


def _drop_in(
    name: str, lines: tuple[str, ...], shown: str, program: Callable[[str], str] | None = None
) -> Breach:
    """Return a breach by a drop-in of the gate's unit.

    Args:
        lines: of its section ``Service``.
        shown: properties and a command that succeeds in a unit with that drop-in only.
        program: changes the gate, which the drop-in then starts.
    """
    text = "\n".join(("[Service]", *lines, ""))
    lay = ""
    if program:
        changed = imports.import_gate(program)
        lay = (
            f"install -d -m 755 {_GATE} && printf %s {shlex.quote(changed)} >{_GATE}/gate.py && "
            f"chmod 644 {_GATE}/gate.py && "
        )
    unit = f"systemd-run -q --collect --pipe --wait --unit={image_import.PREFIX}shown"
    return shell_breach(
        name,
        opens=lambda _: (
            f"{lay}mkdir -p {_FOLDER} && printf %s {shlex.quote(text)} >{_FILE} && systemctl daemon-reload"
        ),
        closes=lambda _: f"rm -rf {_FOLDER} {_GATE}; systemctl daemon-reload",
        shows=lambda _: f"[ -e {_FILE} ] && {'!' if program else ''} {unit} {shown} >/dev/null 2>&1",
    )


def _program(name: str, old: str, new: str) -> Breach:
    """Return a breach by another gate; while it is open, its unit runs no other program."""

    def changed(text: str) -> str:
        assert old in text, f"the gate has no {old!r}"
        return text.replace(old, new)

    lines = (f"BindReadOnlyPaths={_GATE}", "ExecStart=", f"ExecStart=/usr/bin/python3 -IS {_GATE}/gate.py")
    return _drop_in(name, lines, "true", changed)


@check(
    id="STO-03",
    objective="Imported images are hostile: a confined gate refuses them, or takes them as octets alone",
    severity="high",
    effect=Effect.PROBES,
    local=True,
    breaches=(
        _program("the gate reads no header", "virtual_size(file, form, most)", "pass"),
        _program(
            "the gate finds out the format of an image", "source(path, form), target]", "path, target]"
        ),
        _drop_in(
            "a drop-in lifts the limits of the gate",
            (
                "LimitAS=infinity", "LimitCPU=infinity", "LimitFSIZE=infinity", "LimitNOFILE=4096",
                "MemoryMax=infinity", "TasksMax=infinity", "RuntimeMaxSec=infinity",
            ),
            "-p LimitNOFILE=64 sh -c '[ $(ulimit -n) = 4096 ]'",
        ),
        _drop_in(
            "a drop-in shows the gate the files of its node",
            ("BindReadOnlyPaths=/etc /run",),
            "-p TemporaryFileSystem=/:ro -p 'BindReadOnlyPaths=/usr /usr/lib:/lib /usr/lib64:/lib64' "
            "test -e /etc/passwd",
        ),
        _drop_in(
            "a drop-in gives the gate the network of its node",
            ("PrivateNetwork=no", "SystemCallFilter="),
            "-p PrivateNetwork=yes ip link show br-int",
        ),
    ),
)  # fmt: skip
def test_hostile_images_are_refused(fleet: Fleet, node: MachineView) -> None:
    named = f"/run/{uuid4()}"
    name = "check"
    request = {
        "gate": imports.import_gate(),
        "taken": imports.TAKEN,
        "command": image_import.command(name, HERE, MOST, imports.SECONDS),
        "unit": f"{image_import.PREFIX}{name}",
        "seed": _SEED,
        "named": named,
        "paths": [named, *_SECRETS],
        "seconds": imports.SECONDS,
    }
    answer = node.python(imports.ATTACK, request, _TIMEOUT, function="collect", libraries=imports.LIBRARIES)
    with judging(f"the import of images on {node.name}"):
        faults = imports.judged(answer, MOST)
    assert not faults, f"{len(faults)} faults: {'; '.join(faults[:_SHOWN])}"
