"""Storage walls, attacked from one tenant's QEMU process under an attacker's control."""

from __future__ import annotations

from checks.support.breaches import has_strangers, load, mode_breach, needs_guest, rules, shell_breach, where
from testbed.model.topology import FIRST_WORKER_UID, IMAGES, POOLS, Guest
from testbed.verify.attackers.worker import Attempt, Job, all_succeeded, in_words, jobs_of
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, MachineView

BASE = f"{IMAGES}/guest/root.raw"
_SHOWN = 6


def _stranger_file(context: BreachContext) -> str:
    return context.strangers()[1].disks[-1]


def _stranger_uid(context: BreachContext) -> int:
    """Return the account of another tenant's worker on the node, or an unused account."""
    if has_strangers(context):
        return context.strangers()[1].uid
    used = {guest.uid for guest in context.guests}
    return next(uid for uid in range(FIRST_WORKER_UID, FIRST_WORKER_UID + len(used) + 1) if uid not in used)


def _open_all_layers(context: BreachContext) -> str:
    attacker, victim = context.strangers()
    file = _stranger_file(context)
    return (
        f"chmod 0666 {file}; chmod o+x {victim.pool}; echo '  \"{file}\" rw,' >> {rules(attacker)}; "
        f"{load(attacker)}"
    )


def _close_all_layers(context: BreachContext) -> str:
    attacker, victim = context.strangers()
    file = _stranger_file(context)
    return (
        f"chmod 0600 {file}; chmod o-x {victim.pool}; sed -i '\\#{file}#d' {rules(attacker)}; "
        f"{load(attacker)}"
    )


def _named(context: BreachContext) -> str:
    """Return a command that succeeds while one worker's profile names the other tenant's volume."""
    return f"grep -qF {_stranger_file(context)} {rules(context.strangers()[0])}"


@check(
    id="STO-01",
    objective="No worker reads, writes or lists another tenant's volumes",
    severity="critical",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        mode_breach(
            "a volume's mode is 0666",
            lambda context: context.guests[-1].disks[-1],
            opened="666",
            shut="600",
        ),
        shell_breach(
            "a pool's access list lets another tenant's worker in",
            opens=lambda context: f"setfacl -m u:{_stranger_uid(context)}:x {context.guest.pool}",
            closes=lambda context: f"setfacl -x u:{_stranger_uid(context)} {context.guest.pool}",
            shows=lambda context: (
                f"getfacl -pcn {context.guest.pool} | grep -q ^user:{_stranger_uid(context)}:"
            ),
        ),
        *where(
            has_strangers,
            shell_breach(
                "a worker's profile names another tenant's volume",
                opens=lambda context: (
                    f"echo '  \"{_stranger_file(context)}\" rw,' >> {rules(context.guest)}; "
                    f"{load(context.guest)}"
                ),
                closes=lambda context: (
                    f"sed -i '\\#{_stranger_file(context)}#d' {rules(context.guest)}; {load(context.guest)}"
                ),
                shows=_named,
            ),
            shell_breach(
                "mode, pool and profile all let a worker at another tenant's volume",
                opens=_open_all_layers,
                closes=_close_all_layers,
                shows=lambda context: (
                    f"[ $(stat -c %a {_stranger_file(context)}) = 666 ] && {_named(context)}"
                ),
            ),
        ),
    ),
)
def test_no_worker_reaches_another_tenants_volumes(fleet: Fleet, node: MachineView) -> None:
    guests = fleet.topology.guests_on(node.name)
    jobs = []
    for attacker in guests:
        others = [guest for guest in guests if guest.tenant != attacker.tenant]
        # Files that each account may open: another guest's worker its volumes, root the folders.
        attempts = {
            guest.uid: [Attempt(verb, file) for file in guest.disks for verb in ("read", "write")]
            for guest in others
        }
        attempts[0] = [Attempt("list", pool) for pool in (*sorted({guest.pool for guest in others}), POOLS)]
        jobs += jobs_of(attacker, attempts)
    reached = in_words(jobs, all_succeeded(node, jobs))
    assert not reached, f"{len(reached)} attempts succeeded: {'; '.join(reached[:_SHOWN])}"
    for tenant in sorted({guest.tenant for guest in guests}):
        _require_own_pool(node, [guest for guest in guests if guest.tenant == tenant])
    for guest in guests:
        for file in guest.disks:
            volume = node.infra.file(file)
            assert volume.mode == 0o600, f"{file} has mode {volume.mode:o}"
            assert volume.uid == guest.uid, f"{file} belongs to uid {volume.uid}, not to {guest.worker}"


def _require_own_pool(node: MachineView, owners: list[Guest]) -> None:
    """Require that a pool's access list lets only its own tenant's workers pass."""
    pool = owners[0].pool
    entries = node.read(f"getfacl -pcn {pool}").split()
    known = {
        "user::rwx",
        "group::---",
        "mask::--x",
        "other::---",
        *(f"user:{guest.uid}:--x" for guest in owners),
    }
    strangers = [entry for entry in entries if entry not in known]
    assert not strangers, f"the pool {pool} lets in {', '.join(strangers)}"
    assert "other::---" in entries, f"the pool {pool} is open to everybody: {', '.join(entries)}"


@check(
    id="STO-07",
    objective="No worker changes a base image",
    severity="high",
    effect=Effect.PROBES,
    local=True,
    breaches=(
        *where(
            lambda context: bool(context.guests),
            shell_breach(
                (
                    "the images are mounted read-write, the base image is world-writable, and a worker's "
                    "profile allows it"
                ),
                opens=lambda context: (
                    f"mount -o remount,rw {IMAGES}; chmod 0666 {BASE}; "
                    f'sed -i \'s#deny "{BASE}" w,#"{BASE}" w,#\' {rules(context.guest)}; '
                    f"{load(context.guest)}"
                ),
                closes=lambda context: (
                    f"mount -o remount,rw {IMAGES}; chmod 0444 {BASE}; mount -o remount,ro {IMAGES}; "
                    f'sed -i \'s#^  "{BASE}" w,#  deny "{BASE}" w,#\' {rules(context.guest)}; '
                    f"{load(context.guest)}"
                ),
                shows=lambda _: (
                    f"[ $(stat -c %a {BASE}) = 666 ] && findmnt -no OPTIONS {IMAGES} | grep -q ^rw"
                ),
            ),
        ),
        shell_breach(
            "the images are mounted read-write",
            opens=lambda _: f"mount -o remount,rw {IMAGES}",
            closes=lambda _: f"mount -o remount,ro {IMAGES}",
            shows=lambda _: f"findmnt -no OPTIONS {IMAGES} | grep -q ^rw",
        ),
    ),
)
def test_base_images_are_immutable(fleet: Fleet, node: MachineView) -> None:
    readable = Attempt("read", BASE)
    attacks = [
        Attempt("write", BASE),
        Attempt("write", f"{IMAGES}/guest/vmlinux"),
        Attempt("write", f"{IMAGES}/guest/initrd"),
    ]
    jobs = [Job(attacker, (readable, *attacks)) for attacker in fleet.topology.guests_on(node.name)]
    changed = in_words(jobs, [reached - {readable} for reached in all_succeeded(node, jobs)])
    assert not changed, f"{len(changed)} workers change images: {'; '.join(changed[:_SHOWN])}"
    mounts = node.read(
        f"findmnt -no OPTIONS {IMAGES}"
    ).splitlines()  # several lines, if one mount covers another
    assert mounts, f"{IMAGES} is not mounted"
    assert all("ro" in options.split(",") for options in mounts), f"{IMAGES} is mounted {'; '.join(mounts)}"
    for line in node.read(f"stat -c '%a %U %n' {IMAGES}/guest/*").splitlines():
        assert line.startswith("444 root "), f"a base image can be changed: {line}"
