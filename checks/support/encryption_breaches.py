"""Breaches of encryption at rest, each of which takes away one of its mechanisms."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

from checks.support.breaches import has_strangers, shell_breach
from checks.support.device_breaches import booted_breach
from testbed.errors import InstrumentError
from testbed.model.topology import Guest, volume_secret
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach

_NAME = "breach"
_PLAIN = "breach.raw"
_SIZE = "8M"
_STORE = "/etc/libvirt/secrets"
_KEY_FILE = "/etc/libvirt/breach.key"
_LOOKS, _PAUSE = 120, 0.5  # at a job, and seconds between them


def _victim(context: BreachContext) -> Guest:
    """Return a guest with a volume on the node of the case."""
    found = next((guest for guest in context.guests if guest.volumes), None)
    if found is None:
        raise InstrumentError(
            "there is no volume",
            fact=f"no guest on {context.node.name} has one",
            remedy="choose another topology",
        )
    return found


def has_volume(context: BreachContext) -> bool:
    """Return whether a guest on the node of the case has a volume."""
    return any(guest.volumes for guest in context.guests)


def has_other_key(context: BreachContext) -> bool:
    """Return whether two tenants have volumes on the node of the case."""
    return has_strangers(context) and len({guest.tenant for guest in context.guests if guest.volumes}) > 1


def _key(context: BreachContext, tenant: str = "") -> bytes:
    return context.node.keys.key(context.node.name, tenant or _victim(context).tenant)


def _plain_volume() -> Breach:
    """Return the breach by which the first guest of the node boots with a volume that is not encrypted."""

    def path(context: BreachContext) -> str:
        return f"{context.guest.pool}/{_PLAIN}"

    def change(root: ET.Element, _: str) -> None:
        source = root.find("devices/disk/source/encryption/..")
        assert source is not None
        source.remove(source.findall("encryption")[0])
        source.set("file", f"{source.get('file', '').rpartition('/')[0]}/{_PLAIN}")

    breach = booted_breach("a guest's volume is not encrypted", change, lambda xml: _PLAIN in xml)

    def open_(context: BreachContext) -> None:
        file, uid = path(context), context.guest.uid
        context.host.must(f"truncate -s {_SIZE} {file} && chmod 600 {file} && chown {uid}:{uid} {file}")
        breach.open(context)

    def close(context: BreachContext) -> None:
        breach.close(context)
        context.host.must(f"rm -f {path(context)}")

    return replace(
        breach,
        open=open_,
        close=close,
        applies=lambda context: bool(context.guests and context.guest.volumes),
    )


def _second_key(context: BreachContext) -> bytes:
    """Return the key of another tenant's volumes on the node."""
    own = _victim(context).tenant
    return _key(
        context, next(guest.tenant for guest in context.guests if guest.volumes and guest.tenant != own)
    )


def _ask(context: BreachContext, command: str, arguments: dict[str, object]) -> Any:  # noqa: ANN401 - JSON
    return context.node.hypervisor.ask_monitor(_victim(context).domain, command, arguments)


def _lend(context: BreachContext) -> None:
    """Give the second key to the QEMU of the victim."""
    _ask(context, "object-add", {"qom-type": "secret", "id": _NAME, "data": _second_key(context).decode()})


def _amend(context: BreachContext, options: dict[str, object]) -> None:
    """Change the slots of the first volume's container, and wait until that is done.

    Raises:
        InstrumentError: QEMU refuses, or does not end it.
    """
    nodes = _ask(context, "query-named-block-nodes", {"flat": True})
    path = _victim(context).disks[1]
    name = next(node["node-name"] for node in nodes if node["drv"] == "luks" and path in node["file"])
    arguments = {"job-id": _NAME, "node-name": name, "options": {"driver": "luks", **options}}
    _ask(context, "x-blockdev-amend", arguments)
    for _ in range(_LOOKS):
        job = next((job for job in _ask(context, "query-jobs", {}) if job["id"] == _NAME), None)
        if job is not None and job["status"] == "concluded":
            _ask(context, "job-dismiss", {"id": _NAME})
            if not job.get("error"):
                return
            raise InstrumentError("a slot does not change", fact=str(job["error"])[:200], remedy="repeat it")
        time.sleep(_PAUSE)
    raise InstrumentError("a slot does not change", fact="the job does not end", remedy="repeat it")


def _opens_twice(context: BreachContext) -> bool:
    options = f"driver=luks,key-secret=key,file.filename={_victim(context).disks[1]}"
    # "qemu-img info" would not tell: it opens a container without its key
    command = f"qemu-io -r -U --object secret,id=key,file=/dev/stdin --image-opts {options} -c 'read 0 512'"
    return context.host.sudo(command, stdin=_second_key(context)).status == 0


def _share(context: BreachContext) -> None:
    _lend(context)
    _amend(context, {"state": "active", "new-secret": _NAME, "iter-time": 10})


def _unshare(context: BreachContext) -> None:
    if _opens_twice(context):
        with suppress(InstrumentError):
            _lend(context)
        _amend(context, {"state": "inactive", "old-secret": _NAME})
    with suppress(InstrumentError):
        _ask(context, "object-del", {"id": _NAME})


def _secret(name: str, shows: Callable[[str], str], **attributes: str) -> Breach:
    """Return a breach by which the secret of a tenant is defined with other attributes."""

    def define(context: BreachContext, **given: str) -> None:
        context.node.define_key(_victim(context).tenant, **given)

    def close(context: BreachContext) -> None:
        uuid = volume_secret(_victim(context).tenant)
        context.host.must(f"shred -uf {_STORE}/{uuid}.base64 2>/dev/null; true")
        define(context)

    return Breach(
        name,
        open=lambda context: define(context, **attributes),
        close=close,
        in_force=lambda context: context.host.sudo(shows(volume_secret(_victim(context).tenant))).status == 0,
        applies=has_volume,
    )


def _on_disk() -> Breach:
    def open_(context: BreachContext) -> None:
        context.host.must(f"umask 077; cat > {_KEY_FILE}", stdin=_key(context))

    breach = shell_breach(
        "the key of a tenant is in a file of the node",
        opens=lambda _: "",
        closes=lambda _: f"shred -uf {_KEY_FILE} 2>/dev/null; [ ! -e {_KEY_FILE} ]",
        shows=lambda _: f"test -s {_KEY_FILE}",
    )
    return replace(breach, open=open_, applies=has_volume)


def _folders_on_disk() -> Breach:
    place, other = "/var/lib/libvirt/qemu", "/var/lib/breach.qemu"
    kind = f"$(findmnt -no FSTYPE {place} | tail -n 1)"
    return shell_breach(
        "libvirt's folders of domains are on a disk",
        opens=lambda _: f"install -d -m 0711 {other} && mount --bind {other} {place}",
        closes=lambda _: f"[ {kind} = tmpfs ] || umount {place}; rm -rf {other}",
        shows=lambda _: f"[ {kind} != tmpfs ]",
    )


BREACHES = (
    _plain_volume(),
    Breach(
        "another tenant's key opens a volume",
        open=_share,
        close=_unshare,
        in_force=_opens_twice,
        applies=has_other_key,
    ),
    _secret(
        "libvirt keeps the secret of a tenant on disk",
        lambda uuid: f"test -s {_STORE}/{uuid}.base64",
        ephemeral="no",
    ),
    _secret(
        "libvirt gives the secret of a tenant to its clients",
        lambda uuid: f"virsh -q secret-get-value {uuid} >/dev/null",
        private="no",
    ),
    _on_disk(),
    _folders_on_disk(),
)
