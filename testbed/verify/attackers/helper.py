"""How the helpers of a node's guests are confined, and what one that was taken over reaches (PRC-06).

A helper serves guests of several tenants. virtlogd is the only one: it holds a pipe from each guest's
console. Two walls hold it, and each is tried alone: its profile, and its privileges: the capabilities,
system-call filters, mounts and network of its unit. Together they must refuse everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from testbed.hosts.rules import UnseenError
from testbed.model.topology import POOLS
from testbed.plan.host_config.helper import PROFILE, PROGRAM, UNIT
from testbed.untrusted.text import line
from testbed.verify.attackers import programs
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.witnesses.worker_processes import observed

_TIMEOUT = 120.0  # seconds
# Programs of Debian's packages that serve guests beside their workers. One that is not declared may not run.
_PROGRAMS = (
    PROGRAM,
    "/usr/sbin/virtlockd",
    "/usr/bin/swtpm",
    "/usr/bin/qemu-nbd",
    "/usr/bin/qemu-storage-daemon",
    "/usr/bin/qemu-pr-helper",
    "/usr/lib/qemu/virtfs-proxy-helper",
    "/usr/libexec/virtiofsd",
    "/usr/sbin/dnsmasq",
    "/usr/bin/passt",
)
# Besides volumes and monitors of guests: keys and passwords, kernel and devices, what configures confinement.
_KEYS = ("/etc/shadow", "/run/testbed/ssh/host_key")
_DEVICES = ("/dev/vda", "/dev/vdc", "/dev/kvm")
_CONFIGURATION = (
    "/etc/libvirt/qemu.conf",
    "/etc/apparmor.d/usr.sbin.libvirtd",
    "/proc/sys/kernel/core_pattern",
    "/proc/sysrq-trigger",
)
# Sockets by which root manages guests, the switch and the machine itself.
_SOCKETS = (
    "/run/libvirt/libvirt-sock",
    "/run/libvirt/libvirt-admin-sock",
    "/run/openvswitch/db.sock",
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
)
_SHELL = "/usr/bin/true"
# A boot leaves sockets of guests that ran before it. Those that listen have a flag, __SO_ACCEPTCON.
_LISTENING = (
    'while read -r _ _ _ flags _ _ _ path; do case "$flags $path" in '
    '"00010000 /var/lib/libvirt/qemu/"*|"00010000 /run/libvirt/qemu/"*) echo "socket $path" ;; esac; '
    "done < /proc/net/unix"
)
_LISTED = (
    f"find {POOLS} -mindepth 2 -type f -printf 'file %p\\n'; "
    "find /var/lib/libvirt/qemu -name master-key.aes -printf 'key %p\\n'; "
    f"{_LISTENING}"
)
# What the manager would start next. An empty set of capabilities is printed as an empty value.
_PROPERTIES = {
    "AppArmorProfile": PROFILE, "CapabilityBoundingSet": "", "AmbientCapabilities": "",
    "NoNewPrivileges": "yes", "ProtectSystem": "strict", "PrivateNetwork": "yes",
}  # fmt: skip
_ASKED = f"systemctl show {UNIT} {' '.join(f'-p {name}' for name in _PROPERTIES)}"
OWN = "write its own log"
# Only privileges keep a helper from sockets with a path: kernels before 6.17 ask no profile about them. Only
# a profile keeps it from starting programs and from another profile.
_NOT_BY_PROFILE = ("connect to ",)
_NOT_BY_PRIVILEGES = ("start ", "take on the profile of libvirtd")
_REFUSED = {"EACCES", "EPERM", "ENOENT", "EROFS", "EAFNOSUPPORT"}  # ENOENT: the place is not in its mounts
_FILTERED = 2  # mode of seccomp (proc(5))
LAYERS = ("profile", "privileges", "everything")

_Outcomes = dict[str, Annotated[str, Field(max_length=40)]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Worn(_Strict):
    """What the kernel holds against a process.

    Args:
        account: effective user id.
        threads: mode of seccomp, no new privileges, capabilities, and their bounding set; alike ones once.
    """

    pid: int
    label: Annotated[str, Field(max_length=200)]
    account: int
    threads: tuple[tuple[int, int, int, int], ...]
    mounts: str
    network: str


class Tried(_Strict):
    """How attempts of one child ended, and what it wore meanwhile."""

    worn: Worn
    outcomes: _Outcomes


class Helper(Worn):
    """A helper, and the attempts in its place.

    Args:
        serves: guests whose worker it shares a pipe with.
        filters: number of its system-call filters.
    """

    program: Annotated[str, Field(max_length=4096)]
    serves: tuple[str, ...]
    filters: int
    layers: dict[str, Tried]


class Answer(_Strict):
    """The answer of a node: attempts as root before and after, and of each helper."""

    before: Tried
    helpers: tuple[Helper, ...]
    after: Tried


@dataclass(frozen=True, slots=True)
class Findings:
    """Faults of a node's helpers, as texts.

    Args:
        loose: helpers that are not confined as declared, and settings by which the next would not be.
        reached: attempts that succeeded in the place of a helper.
    """

    loose: tuple[str, ...]
    reached: tuple[str, ...]


def findings(fleet: Fleet, node: MachineView) -> Findings:
    """Return how the helpers of a node are confined, and what they reach.

    Raises:
        InstrumentError: the node does not answer, or a guest has no worker.
        UnseenError: the attempts would not have shown an open wall.
    """
    workers = {worker.name: worker.pid for worker in observed(fleet, node).workers}
    paths: dict[str, list[str]] = {"file": [], "key": [], "socket": []}
    for found in node.read(_LISTED).splitlines():
        kind, _, path = found.partition(" ")
        paths[kind].append(path)
    own = fleet.topology.guests_on(node.name)[0].console
    request = {
        "programs": _PROGRAMS,
        "workers": workers,
        "own": own,
        "read": [*paths["file"], *paths["key"], *_KEYS, *_DEVICES],
        # disks are not opened for writing: udev would read them when they are closed
        "write": [*paths["file"], *_CONFIGURATION],
        "folders": [POOLS],
        "sockets": [*paths["socket"], *_SOCKETS],
        "programs to start": [_SHELL],
    }
    configured = node.read(_ASKED)
    answer = programs.collect(node, "helper_attacks", request, _TIMEOUT)
    loose, reached = judged(answer, workers)
    return Findings((*misconfigured(configured), *loose), reached)


def misconfigured(printed: str) -> tuple[str, ...]:
    """Return the properties of the helper's unit that differ from the declared ones.

    Raises:
        UnseenError: a property is not there.
    """
    found = dict(entry.split("=", 1) for entry in printed.splitlines() if "=" in entry)
    if missing := _PROPERTIES.keys() - found.keys():
        raise UnseenError(f"the manager does not tell {', '.join(sorted(missing))} of {UNIT}")
    return tuple(
        f"the unit {UNIT} has {name}={line(found[name])}"
        for name, wanted in _PROPERTIES.items()
        if found[name].split(" ") != wanted.split(" ")
    )


def judged(answer: object, workers: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which helpers are not confined as declared, and what they reach.

    Args:
        answer: of `testbed.payload.attacks.helper_attacks`.
        workers: process ids by guest.

    Raises:
        UnseenError: attempts are missing, or root could not make them either.
    """
    try:
        found = Answer.model_validate(answer)
    except ValidationError as error:
        raise UnseenError(f"attempts of helpers: {error.error_count()} mistakes in the answer") from error
    control = found.before.outcomes
    failed = {
        name: outcome
        for tried in (found.before, found.after)
        for name, outcome in tried.outcomes.items()
        if outcome != "done"
    }
    if failed or not control or control.keys() != found.after.outcomes.keys():
        raise UnseenError(f"root cannot do it either: {failed or 'the probe broke off'}")
    if not any(item.program == PROGRAM for item in found.helpers):
        raise UnseenError(f"{PROGRAM} does not run, though {len(workers)} guests have a console")
    loose = tuple(fault for item in found.helpers for fault in _loose(item))
    try:
        reached = tuple(fault for item in found.helpers for fault in _reached(item, control))
    except UnseenError:
        if not loose:
            raise
        reached = ()  # an open wall is seen, whatever attempts would have shown
    return loose, reached


def _loose(item: Helper) -> Iterator[str]:
    """Yield how a helper is less confined than declared."""
    name = f"{line(item.program)} (process {item.pid})"
    if item.program != PROGRAM:
        served = f", which serves {', '.join(map(line, item.serves))}" if item.serves else ""
        yield f"{name}{served}: no profile is declared for it"
        return
    if item.label != f"{PROFILE} (enforce)":
        yield f"{name} runs under the label '{line(item.label)}'"
    for seccomp, bound, capabilities, bounding in item.threads:
        if capabilities | bounding:
            yield f"{name} has or may gain capabilities: {capabilities:#x}, {bounding:#x}"
        if seccomp != _FILTERED or not bound:
            yield f"{name} has a thread without a system-call filter, or that can gain privileges"


def _reached(item: Helper, control: Sequence[str] | Mapping[str, str]) -> Iterator[str]:
    """Yield what attempts in the place of a helper have reached, layer by layer.

    Raises:
        UnseenError: a child broke off, did not wear what it should, or attempts ended oddly.
    """
    if item.layers.keys() != {*LAYERS}:
        raise UnseenError(f"layers of {line(item.program)} are missing")
    for layer, spared in zip(LAYERS, (_NOT_BY_PROFILE, _NOT_BY_PRIVILEGES, ()), strict=True):
        tried = item.layers[layer]
        _require_worn(item, layer, tried, set(control))
        for attempt, outcome in tried.outcomes.items():
            if attempt == OWN or attempt.startswith(spared):
                continue
            if outcome == "done":
                yield f"{line(item.program)} (process {item.pid}) can {attempt}, as far as its {layer} goes"
            elif outcome not in _REFUSED:
                raise UnseenError(f"the attempt to {attempt} by {layer} ended otherwise: {outcome}")


def _require_worn(item: Helper, layer: str, tried: Tried, attempts: set[str]) -> None:
    """Require that a child wore what the helper wears, and could do what the helper must."""
    if tried.outcomes.keys() != attempts:
        raise UnseenError(f"the probe with the {layer} of {line(item.program)} broke off")
    if layer != "privileges" and tried.worn.label != item.label:
        raise UnseenError(f"the probe wears the label '{line(tried.worn.label)}', not '{line(item.label)}'")
    if layer != "profile":
        same = (tried.worn.mounts, tried.worn.network) == (item.mounts, item.network)
        if not same or not {*tried.worn.threads} <= {*item.threads}:
            fact = f"{tried.worn.threads} and not {item.threads}"
            raise UnseenError(f"the probe with the {layer} of {line(item.program)} wears {fact}")
    if item.program == PROGRAM and tried.outcomes[OWN] != "done":
        fact = tried.outcomes[OWN]
        raise UnseenError(f"the probe with the {layer} of {line(item.program)} could not {OWN}: {fact}")
