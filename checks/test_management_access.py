"""Management walls: logins, and access to the hypervisor."""

from __future__ import annotations

import re

from checks.support.breaches import mode_breach
from testbed.errors import InstrumentError
from testbed.model.topology import Role
from testbed.plan.host_config.settings import SOCKETS
from testbed.verify.attackers.credentials import (
    CLOCK,
    EARLY,
    EXPIRED,
    logins,
    plant,
    uproot,
    wrong_credentials,
)
from testbed.verify.attackers.worker import processes
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import ADMINISTRATOR, Fleet, MachineView
from testbed.verify.probe.liveness import clock_error

_DROP_IN = "/etc/ssh/sshd_config.d/breach.conf"
_KEYS = "/etc/ssh/authorized_keys.breach"


def _plant_key(context: BreachContext) -> None:
    public = plant(context.lab.workspace)
    context.host.must(
        f"printf 'AuthorizedKeysFile {_KEYS}\\n' > {_DROP_IN}; echo '{public}' > {_KEYS}; chmod 0644 "
        f"{_KEYS}; systemctl reload ssh"
    )


def _remove_key(context: BreachContext) -> None:
    context.host.must(f"rm -f {_DROP_IN} {_KEYS}; systemctl reload ssh")
    uproot(context.lab.workspace)


def _key_planted(context: BreachContext) -> bool:
    return context.host.sudo(f"/usr/sbin/sshd -T | grep -qi 'authorizedkeysfile {_KEYS}'").status == 0


@check(
    id="ACC-02",
    objective="Every login needs a valid certificate of the right role",
    severity="critical",
    effect=Effect.PROBES,
    local=True,
    breaches=(Breach("an unknown key is authorised by a drop-in", _plant_key, _remove_key, _key_planted),),
)
def test_wrong_credentials_never_work(fleet: Fleet, machine: MachineView) -> None:
    before = clock_error(machine)
    with wrong_credentials(fleet, machine.name) as strangers:
        answers = logins(fleet, machine, strangers)
    error = max(before, clock_error(machine), key=abs)
    dated = {EXPIRED, EARLY} if abs(error) > CLOCK else set()
    let_in = sorted(
        f"{name} ({answer})" for name, answer in answers.items() if answer != "refused" and name not in dated
    )
    assert not let_in, f"{machine.name} let in: {', '.join(let_in)}"
    if dated:
        what = (
            f"the clock of {machine.name} is wrong, so that what a certificate's dates mean there cannot "
            "be seen"
        )
        answered = ", ".join(f"{name}: {answers[name]}" for name in sorted(dated))
        raise InstrumentError(
            what, fact=f"it is {error:.0f} s ahead; {answered}", remedy="run `testbed up`, which sets it"
        )


# Connects to libvirt's sockets as every account of the machine, as every running worker, and as root before
# and after. Each attempt has its own process, since a process cannot return from another account to root.
_CONNECT = """\
import errno, json, os, pwd, socket

def word(path):
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.settimeout(5)
            opened.connect(path)
        return "open"
    except PermissionError:
        return "denied"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def tried(uid, gid, groups):
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups(groups); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
            os.write(writes, json.dumps({path: word(path) for path in REQUEST["paths"]}).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as told:
        text = told.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {}

def worker(pid):
    with open("/proc/%d/status" % pid) as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1]), [int(group) for group in fields["Groups"].split()]

who = [("root before", (0, 0, []))]
who += [("account " + item.pw_name, (item.pw_uid, item.pw_gid, os.getgrouplist(item.pw_name, item.pw_gid)))
        for item in pwd.getpwall() if item.pw_name != "root"]
who += [("worker of " + domain, worker(pid)) for domain, pid in REQUEST["workers"].items()]
who += [("root after", (0, 0, []))]
print(json.dumps([[label, *identity, tried(*identity)] for label, identity in who]))
"""  # noqa: E501 - lines of a program
_CONTROLS = ("root before", "root after")
_LIBVIRT = re.compile(r':(16509|16514)\s|"(libvirtd|virt[a-z]+d)"')  # its ports, and its daemons
_LOGIN = re.compile(r"\S:22\s")


def _attempts(fleet: Fleet, node: MachineView) -> dict[str, dict[str, str]]:
    """Return the result for each of libvirt's sockets, by account; see `_CONNECT`.

    Raises:
        InstrumentError: an account did not try, or has no result for a socket.
    """
    guests = fleet.topology.guests_on(node.name)
    workers = processes(node, guests)
    found = {str(label): (uid, answers) for label, uid, _, _, answers in
             node.python(_CONNECT, {"paths": SOCKETS, "workers": workers})}  # fmt: skip
    needed = {
        *_CONTROLS,
        f"account {ADMINISTRATOR}",
        "account nobody",
        *(f"worker of {domain}" for domain in workers),
    }
    needed |= {name for guest in guests for name in (f"account {guest.worker}", f"worker of {guest.domain}")}
    silent = sorted(
        label for label in needed | found.keys() if set(found.get(label, (0, {}))[1]) != set(SOCKETS)
    )
    if silent:
        what = f"{len(silent)} of {len(needed | found.keys())} accounts did not try every socket of libvirt"
        raise InstrumentError(
            what, fact=", ".join(silent[:6]), remedy="run `testbed up`, then repeat the check"
        )
    return {
        label if label in _CONTROLS else f"{label} (uid {uid})": answers
        for label, (uid, answers) in found.items()
    }


def _listeners(node: MachineView) -> list[str]:
    """Return libvirt's listening sockets on networks.

    The socket of our own ssh session is the positive control.

    Raises:
        InstrumentError: that socket is not listed.
    """
    lines = node.read("ss -Hlntp").splitlines()
    if not any(_LOGIN.search(line) for line in lines):
        raise InstrumentError(
            f"{node.name} does not tell its listeners",
            fact=f"{len(lines)} without ssh",
            remedy="repeat the check",
        )
    return [line for line in lines if _LIBVIRT.search(line)]


@check(
    id="ACC-05",
    objective="Only root reaches libvirt's sockets, and none of them is on a network",
    severity="critical",
    effect=Effect.PROBES,
    local=True,
    applies=lambda context: (
        None if context.topology.machine(context.case).role is Role.NODE else "no hypervisor here"
    ),
    breaches=(
        mode_breach(
            "libvirt's socket is open to all accounts", lambda _: SOCKETS[0], opened="666", shut="600"
        ),
    ),
)
def test_only_root_reaches_libvirt(fleet: Fleet, node: MachineView) -> None:
    answers = _attempts(fleet, node)
    controls = [answers.pop(name) for name in _CONTROLS]
    if any(set(control.values()) != {"open"} for control in controls):
        raise InstrumentError(
            "root does not reach libvirt", fact=str(controls)[:300], remedy="run `testbed up`"
        )
    reached = [
        f"{who}: {path} ({answer})"
        for who, told in answers.items()
        for path, answer in told.items()
        if answer != "denied"
    ]
    assert not reached, (
        f"{len(reached)} ways to libvirt are open to others than root: {'; '.join(reached[:6])}"
    )
    listeners = _listeners(node)
    assert not listeners, f"libvirt listens on a network: {listeners}"
