"""A probe with a worker's identity: the powers of an attacker who controls one QEMU process.

The probe joins the worker's mount namespace, takes its uid, groups and AppArmor profile, drops every
capability, and then uses shell built-ins only. The shell itself changes to the profile, since the profile
allows it to start nothing. Its positive control is the worker's own volume: it must open before and after
all attempts, or nothing was observed.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.errors import InstrumentError
from testbed.model.topology import IMAGES, Guest
from testbed.verify.fleet import MachineView

# Shell functions of built-ins. A redirection alone opens a file; one to a socket ends with ENXIO where a
# connection would be allowed, since permissions are looked at first (open(2)); `exec` in a subshell returns
# status 126 or 127 if the program could not be started; signal 0 only checks the permission (kill(2)).
_BUILTINS = """\
r() { if { :; } 2>/dev/null <"$1"; then echo "read yes $1"; else echo "read no $1"; fi; }
w() { if { :; } 2>/dev/null >>"$1"; then echo "write yes $1"; else echo "write no $1"; fi; }
c() { case $(LC_ALL=C; { :; } 2>&1 >>"$1") in *"No such device or address"*) echo "connect yes $1" ;; *) echo "connect no $1" ;; esac; }
l() { found=no; for entry in "$1"/*; do if [ "$entry" != "$1/*" ]; then found=yes; fi; done; echo "list $found $1"; }
e() { (exec "$1") >/dev/null 2>&1 </dev/null; case $? in 126|127) echo "execute no $1" ;; *) echo "execute yes $1" ;; esac; }
k() { if kill -0 "$1" 2>/dev/null; then echo "signal yes $1"; else echo "signal no $1"; fi; }
"""  # noqa: E501 - lines of a program
# $0 is the profile's name; the kernel changes the profile of the process that writes (aa_change_profile(2)).
_PUT_ON = 'echo "changeprofile $0" > /proc/$$/attr/current || exit 1\n'


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt: ``read``, ``write``, ``list``, ``execute``, ``connect`` to a path; ``signal`` a process."""

    verb: str
    target: str

    def __str__(self) -> str:
        return f"{self.verb} {self.target}"

    @property
    def shell(self) -> str:
        """The attempt as a call of a shell function."""
        return f"{self.verb[0] if self.verb != 'signal' else 'k'} {shlex.quote(self.target)}"


def pid(machine: MachineView, guest: Guest) -> int:
    """Return the process id of a guest's worker.

    Raises:
        InstrumentError: it does not run.

    """
    text = machine.read(f"cat /run/libvirt/qemu/{guest.domain}.pid")
    if not text.isdigit():
        raise InstrumentError(f"{guest.label} has no worker", fact=repr(text[:80]), remedy="run `testbed up`")
    return int(text)


def processes(machine: MachineView, guests: Sequence[Guest]) -> dict[str, int]:
    """Return the process id of every worker of a machine's libvirt, by domain.

    Workers that the topology does not know are included. A machine without guests may have none.

    Args:
        machine: a node.
        guests: the topology's guests on it.

    Raises:
        InstrumentError: there are guests and no worker, or the process id of one cannot be read.
    """
    text = machine.read(
        "cd /run/libvirt/qemu && for file in *.pid; do [ $file = driver.pid ] || echo ${file%.pid} "
        "$(cat $file); done"
    )
    lines = [line.split() for line in text.splitlines()]
    odd = [line for line in lines if len(line) != 2 or not line[1].isdecimal()]
    if odd or (guests and not lines):
        fact = f"{len(odd)} of {len(lines)} process ids cannot be read: {odd[:2]}" if odd else repr(text[:80])
        raise InstrumentError(
            f"the workers of {machine.name} cannot be told", fact=fact, remedy="run `testbed up`"
        )
    return {domain: int(number) for domain, number in lines}


def succeeded(
    machine: MachineView, guest: Guest, attempts: Sequence[Attempt], *, uid: int | None = None
) -> set[Attempt]:
    """Make attempts as a guest's worker and return those that succeeded.

    Args:
        uid: account to take instead of the worker's; it has the permissions for all attempts, so that only
            the AppArmor profile can refuse them (PRC-02). The positive control is then the base image,
            which every profile allows.

    Raises:
        InstrumentError: the probe did not run to its end, or its positive control did not open before and
            after.
    """
    own = Attempt("read", guest.root_disk if uid is None else f"{IMAGES}/guest/root.raw")
    script = _BUILTINS + "\n".join(item.shell for item in (own, *attempts, own))
    lines = machine.read(_wear(pid(machine, guest), uid, script), timeout=60).splitlines()
    found = [tuple(line.split(" ", 2)) for line in lines]
    expected = [(item.verb, item.target) for item in (own, *attempts, own)]
    if [(entry[0], entry[-1]) for entry in found] != expected:
        fact = f"{len(lines)} answers to {len(expected)} attempts"
        raise InstrumentError(
            f"the probe in {guest.label}'s worker broke off", fact=fact, remedy="repeat the check"
        )
    if found[0][1] != "yes" or found[-1][1] != "yes":
        fact = f"{own.target} opened before: {found[0][1]}, after: {found[-1][1]}"
        raise InstrumentError(
            f"the probe in {guest.label}'s worker is blind", fact=fact, remedy="run `testbed up`"
        )
    return {item for item, entry in zip(attempts, found[1:-1], strict=True) if entry[1] == "yes"}


def _wear(worker: int, uid: int | None, script: str) -> str:
    # The profile's name is read, and the worker's cgroup joined, before nsenter changes the mount namespace.
    account = (
        "--reuid $(awk '/^Uid:/{print $2}' /proc/$p/status) --regid $(awk '/^Gid:/{print $2}' "
        "/proc/$p/status) "
        "--groups $(awk '/^Groups:/{$1=\"\"; print $0}' /proc/$p/status | tr ' ' '\\n' | grep . | paste -sd,)"
    )
    if uid is not None:
        account = f"--reuid {uid} --regid {uid} --clear-groups"
    wearing = f"setpriv {account} --bounding-set=-all --inh-caps=-all"
    return (
        f"p={worker}; profile=$(cut -d' ' -f1 /proc/$p/attr/current); "
        "echo $$ > /sys/fs/cgroup$(cut -d: -f3 /proc/$p/cgroup)/cgroup.procs 2>/dev/null; "
        f"exec nsenter -t $p -m -- {wearing} /bin/bash -c {shlex.quote(_PUT_ON + script)} $profile"
    )
