"""Storage walls, attacked from a worker: the QEMU process of one tenant, taken over."""

from __future__ import annotations

from checks.support.breaches import command, has_strangers, load, needs_guest, rules, where
from testbed.model.topology import FIRST_WORKER_UID, IMAGES, POOLS, Guest
from testbed.verify.attackers.worker import Attempt, succeeded
from testbed.verify.breach_context import Stage
from testbed.verify.check import Effect, check
from testbed.verify.fleet import Fleet, Machine

BASE = f"{IMAGES}/guest/root.raw"


def _stranger_file(stage: Stage) -> str:
    return stage.strangers()[1].disks[-1]


def _stranger_uid(stage: Stage) -> int:
    """Return the account of another tenant's worker on the node, or one that no worker there has."""
    if has_strangers(stage):
        return stage.strangers()[1].uid
    used = {guest.uid for guest in stage.guests}
    return next(uid for uid in range(FIRST_WORKER_UID, FIRST_WORKER_UID + len(used) + 1) if uid not in used)


def _open_all_layers(stage: Stage) -> str:
    attacker, victim = stage.strangers()
    file = _stranger_file(stage)
    return (
        f"chmod 0666 {file}; chmod o+x {victim.pool}; echo '  \"{file}\" rw,' >> {rules(attacker)}; "
        f"{load(attacker)}"
    )


def _close_all_layers(stage: Stage) -> str:
    attacker, victim = stage.strangers()
    file = _stranger_file(stage)
    return (
        f"chmod 0600 {file}; chmod o-x {victim.pool}; sed -i '\\#{file}#d' {rules(attacker)}; "
        f"{load(attacker)}"
    )


def _named(stage: Stage) -> str:
    """Return a command that succeeds while one worker's profile names the other tenant's volume."""
    return f"grep -qF {_stranger_file(stage)} {rules(stage.strangers()[0])}"


@check(
    id="STO-01",
    objective="No worker reads, writes or lists another tenant's volumes",
    severity="critical",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        command(
            "a volume's mode is 0666",
            opens=lambda stage: f"chmod 0666 {stage.guests[-1].disks[-1]}",
            closes=lambda stage: f"chmod 0600 {stage.guests[-1].disks[-1]}",
            shows=lambda stage: f"[ $(stat -c %a {stage.guests[-1].disks[-1]}) = 666 ]",
        ),
        command(
            "a pool's access list lets another tenant's worker in",
            opens=lambda stage: f"setfacl -m u:{_stranger_uid(stage)}:x {stage.guest.pool}",
            closes=lambda stage: f"setfacl -x u:{_stranger_uid(stage)} {stage.guest.pool}",
            shows=lambda stage: f"getfacl -pcn {stage.guest.pool} | grep -q ^user:{_stranger_uid(stage)}:",
        ),
        *where(
            has_strangers,
            command(
                "a worker's profile names another tenant's volume",
                opens=lambda stage: (
                    f"echo '  \"{_stranger_file(stage)}\" rw,' >> {rules(stage.guest)}; {load(stage.guest)}"
                ),
                closes=lambda stage: (
                    f"sed -i '\\#{_stranger_file(stage)}#d' {rules(stage.guest)}; {load(stage.guest)}"
                ),
                shows=_named,
            ),
            command(
                "mode, pool and profile all let a worker at another tenant's volume",
                opens=_open_all_layers,
                closes=_close_all_layers,
                shows=lambda stage: f"[ $(stat -c %a {_stranger_file(stage)}) = 666 ] && {_named(stage)}",
            ),
        ),
    ),
)
def test_no_worker_reaches_another_tenants_volumes(fleet: Fleet, node: Machine) -> None:
    guests = fleet.testbed.guests_on(node.name)
    for attacker in guests:
        others = [guest for guest in guests if guest.tenant != attacker.tenant]
        # Of each account, what it may open: of another guest's worker its volumes, of root the folders.
        attempts = {
            guest.uid: [Attempt(verb, file) for file in guest.disks for verb in ("read", "write")]
            for guest in others
        }
        attempts[0] = [Attempt("list", pool) for pool in (*sorted({guest.pool for guest in others}), POOLS)]
        reached = succeeded(node, attacker, [attempt for some in attempts.values() for attempt in some])
        assert not reached, f"the worker of {attacker.label} reached: {', '.join(sorted(map(str, reached)))}"
        allowed = {
            attempt for uid, some in attempts.items() for attempt in succeeded(node, attacker, some, uid=uid)
        }
        assert not allowed, (
            f"the profile of {attacker.label} alone would allow: {', '.join(sorted(map(str, allowed)))}"
        )
    for tenant in sorted({guest.tenant for guest in guests}):
        _require_own_pool(node, [guest for guest in guests if guest.tenant == tenant])
    for guest in guests:
        for file in guest.disks:
            volume = node.infra.file(file)
            assert volume.mode == 0o600, f"{file} has mode {volume.mode:o}"
            assert volume.uid == guest.uid, f"{file} belongs to uid {volume.uid}, not to {guest.worker}"


def _require_own_pool(node: Machine, owners: list[Guest]) -> None:
    """A pool's access list lets its own tenant's workers pass, and nobody else do anything."""
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
            lambda stage: bool(stage.guests),
            command(
                (
                    "the images are mounted read-write, the base image is world-writable, and a worker's "
                    "profile allows it"
                ),
                opens=lambda stage: (
                    f"mount -o remount,rw {IMAGES}; chmod 0666 {BASE}; "
                    f'sed -i \'s#deny "{BASE}" w,#"{BASE}" w,#\' {rules(stage.guest)}; '
                    f"{load(stage.guest)}"
                ),
                closes=lambda stage: (
                    f"mount -o remount,rw {IMAGES}; chmod 0444 {BASE}; mount -o remount,ro {IMAGES}; "
                    f'sed -i \'s#^  "{BASE}" w,#  deny "{BASE}" w,#\' {rules(stage.guest)}; '
                    f"{load(stage.guest)}"
                ),
                shows=lambda _: (
                    f"[ $(stat -c %a {BASE}) = 666 ] && findmnt -no OPTIONS {IMAGES} | grep -q ^rw"
                ),
            ),
        ),
        command(
            "the images are mounted read-write",
            opens=lambda _: f"mount -o remount,rw {IMAGES}",
            closes=lambda _: f"mount -o remount,ro {IMAGES}",
            shows=lambda _: f"findmnt -no OPTIONS {IMAGES} | grep -q ^rw",
        ),
    ),
)
def test_base_images_are_immutable(fleet: Fleet, node: Machine) -> None:
    readable = Attempt("read", BASE)
    attacks = [
        Attempt("write", BASE),
        Attempt("write", f"{IMAGES}/guest/vmlinux"),
        Attempt("write", f"{IMAGES}/guest/initrd"),
    ]
    for attacker in fleet.testbed.guests_on(node.name):
        reached = succeeded(node, attacker, [readable, *attacks])
        assert reached <= {readable}, (
            f"the worker of {attacker.label} could: {', '.join(sorted(map(str, reached - {readable})))}"
        )
    mounts = node.read(
        f"findmnt -no OPTIONS {IMAGES}"
    ).splitlines()  # several, if one is mounted over another
    assert mounts, f"{IMAGES} is not mounted"
    assert all("ro" in options.split(",") for options in mounts), f"{IMAGES} is mounted {'; '.join(mounts)}"
    for line in node.read(f"stat -c '%a %U %n' {IMAGES}/guest/*").splitlines():
        assert line.startswith("444 root "), f"a base image can be changed: {line}"
