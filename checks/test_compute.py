"""Compute walls: one confined identity per worker, no shared memory pages, one owner per object."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid5
from xml.etree import ElementTree

from checks.breaches import command, load, needs_guest, needs_strangers, profile, rules
from testbed.errors import InstrumentError
from testbed.model.testbed import POOLS, Guest
from testbed.plan.guest_domains import guest_xml
from testbed.verify.declare import Breach, Effect, check
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.stage import Stage
from testbed.verify.worker import Attempt, pid, processes, succeeded

_KSM = "/sys/kernel/mm/ksm"
_LODGER = "a.lodger"  # no guest of a topology can have a dot in its name


def _lodger(stage: Stage) -> Guest:
    """Return a guest of another tenant, without disks and interfaces, under the worker account of the first guest."""
    host, guest = stage.strangers()
    return replace(guest, name=_LODGER, uuid=str(uuid5(UUID(guest.uuid), _LODGER)), worker=host.worker, uid=host.uid, nics=(), volumes=())


def _share_account(stage: Stage) -> None:
    """Start one more guest, paused: it need not boot for its worker to run."""
    root = ElementTree.fromstring(guest_xml(stage.testbed, _lodger(stage), {}))
    devices = root.find("devices")
    assert devices is not None
    for disk in devices.findall("disk"):
        devices.remove(disk)
    stage.node.hypervisor.create(ElementTree.tostring(root, encoding="unicode"), paused=True)


def _accounts_shared(stage: Stage) -> bool:
    domains = (stage.strangers()[0].domain, _lodger(stage).domain)
    files = " ".join(f"/run/libvirt/qemu/{domain}.pid" for domain in domains)
    text = stage.host.must(f"for file in {files}; do [ -e $file ] && stat -c %u /proc/$(cat $file); done; true")
    return text.split() == [str(_lodger(stage).uid)] * 2


@check(
    id="PRC-01",
    objective="Every worker has an account of its own and cannot touch another worker",
    severity="critical",
    effect=Effect.PROBES,
    local=True,
    applies=needs_strangers,
    breaches=(
        Breach(
            "two tenants' workers share one account",
            open=_share_account,
            close=lambda stage: stage.node.hypervisor.destroy(_lodger(stage).domain),
            in_force=_accounts_shared,
        ),
    ),
)
def test_workers_have_accounts_of_their_own(fleet: Fleet, node: Machine) -> None:
    guests = fleet.testbed.guests_on(node.name)
    workers = processes(node)
    accounts: dict[int, str] = {}
    for domain, worker in workers.items():
        uids = node.read(f"awk '/^[UG]id:/{{print $2, $3, $4, $5}}' /proc/{worker}/status").split()
        assert len(set(uids[:4])) == 1, f"the worker of {domain} mixes uids {uids[:4]}"
        uid = int(uids[0])
        assert uid != 0, f"the worker of {domain} is root"
        assert uid not in accounts, f"the workers of {accounts.get(uid)} and {domain} share uid {uid}"
        accounts[uid] = domain
    for attacker in guests:
        own = pid(node, attacker)
        others = [str(worker) for worker in workers.values() if worker != own]
        attempts = [Attempt("signal", other) for other in others]
        attempts += [Attempt("read", f"/proc/{other}/{file}") for other in others for file in ("environ", "maps", "mem")]
        attempts += [Attempt("write", f"/proc/{other}/mem") for other in others]
        reached = succeeded(node, attacker, attempts)
        assert not reached, f"the worker of {attacker.label} reached {sorted(map(str, reached))}"


@check(
    id="PRC-02",
    objective="Every worker is confined by an enforced AppArmor profile of its own",
    severity="critical",
    effect=Effect.PROBES,
    local=True,
    applies=needs_guest,
    breaches=(
        command(
            "a worker's profile only complains",
            opens=lambda stage: f"apparmor_parser -r -C {profile(stage.guests[0])}",
            closes=lambda stage: load(stage.guests[0]),
            shows=lambda stage: f"grep -q '^libvirt-{stage.guests[0].uuid} (complain)' /sys/kernel/security/apparmor/profiles",
        ),
        command(
            "a worker's profile allows everything below /etc",
            opens=lambda stage: f"echo '  /etc/** rw,' >> {rules(stage.guests[0])}; {load(stage.guests[0])}",
            closes=lambda stage: f"sed -i '\\#^  /etc/\\*\\* rw,#d' {rules(stage.guests[0])}; {load(stage.guests[0])}",
            shows=lambda stage: f"grep -qF '/etc/** rw,' {rules(stage.guests[0])}",
        ),
        command(
            "a worker's profile lets it start a shell",
            opens=lambda stage: f"echo '  /{{usr/,}}bin/dash mrix,' >> {rules(stage.guests[0])}; {load(stage.guests[0])}",
            closes=lambda stage: f"sed -i '\\#bin/dash mrix,#d' {rules(stage.guests[0])}; {load(stage.guests[0])}",
            shows=lambda stage: f"grep -qF 'bin/dash mrix,' {rules(stage.guests[0])}",
        ),
    ),
)
def test_workers_are_confined(fleet: Fleet, node: Machine) -> None:
    forbidden = [Attempt("read", "/etc/shadow"), Attempt("read", "/etc/libvirt/qemu.conf"), Attempt("read", "/etc/sudoers")]
    forbidden += [Attempt("write", "/etc/hostname"), Attempt("write", "/etc/passwd"), Attempt("list", POOLS)]
    forbidden += [Attempt("read", "/proc/1/cmdline"), *(Attempt("execute", f"/usr/bin/{name}") for name in ("dash", "bash", "cat", "dd"))]
    for guest in fleet.testbed.guests_on(node.name):
        found = node.read(f"cat /proc/{pid(node, guest)}/attr/current")
        assert found == f"libvirt-{guest.uuid} (enforce)", f"the worker of {guest.label} runs under '{found}'"
        reached = succeeded(node, guest, forbidden, uid=0)
        assert not reached, f"the profile of {guest.label} alone would allow {sorted(map(str, reached))}"
    required = node.infra.file("/etc/libvirt/qemu.conf").content_string
    assert "security_require_confined = 1" in required, "libvirt starts guests without a profile"


@check(
    id="CMP-02",
    objective="No memory page is shared between guests",
    severity="high",
    effect=Effect.OBSERVES,
    local=True,
    applies=needs_guest,
    breaches=(
        command(
            "the kernel merges equal pages",
            opens=lambda _: f"echo 1 > {_KSM}/run",
            closes=lambda _: f"echo 2 > {_KSM}/run; echo 0 > {_KSM}/run",
            shows=lambda _: f"[ $(cat {_KSM}/run) = 1 ]",
        ),
    ),
)
def test_no_page_is_shared(fleet: Fleet, node: Machine) -> None:
    state = node.read(f"cat {_KSM}/run {_KSM}/pages_shared {_KSM}/pages_sharing").split()
    if len(state) != 3:
        raise InstrumentError("the kernel does not tell about page merging", fact=repr(state), remedy="look at the node's kernel")
    assert state[0] == "0", f"{_KSM}/run is {state[0]}"
    assert state[1:] == ["0", "0"], f"{state[1]} pages are shared {state[2]} times"
    for guest in fleet.testbed.guests_on(node.name):
        worker = pid(node, guest)
        mergeable = node.read(f"grep '^VmFlags' /proc/{worker}/smaps | grep -cw mg || true")
        assert mergeable == "0", f"{mergeable} memory areas of {guest.label}'s worker may be merged"


@check(
    id="DEV-02",
    objective="Every file behind a guest belongs to exactly one tenant",
    severity="critical",
    effect=Effect.OBSERVES,
    local=True,
    applies=needs_strangers,
    breaches=(
        command(
            "one tenant's volume is linked into another tenant's pool",
            opens=lambda stage: f"ln {stage.strangers()[1].root_disk} {stage.strangers()[0].pool}/linked.qcow2",
            closes=lambda stage: f"rm -f {stage.strangers()[0].pool}/linked.qcow2",
            shows=lambda stage: f"[ -e {stage.strangers()[0].pool}/linked.qcow2 ]",
        ),
    ),
)
def test_every_file_has_one_owner(fleet: Fleet, node: Machine) -> None:
    owners: dict[str, set[str]] = {}
    writable = "[ $((0$(awk '/^flags:/{print $2}' /proc/$p/fdinfo/${fd##*/}) & 3)) -ne 0 ]"
    for guest in fleet.testbed.guests_on(node.name):
        script = f"p={pid(node, guest)}; for fd in /proc/$p/fd/*; do [ -f $fd ] && {writable} && stat -L -c '%d:%i' $fd; done; true"
        opened = node.read(script).split()
        if not opened:
            what = f"the worker of {guest.label} has no file open for writing"
            raise InstrumentError(what, fact="not even its own disk was seen", remedy="run `testbed up`")
        for identity in opened:
            owners.setdefault(identity, set()).add(guest.tenant)
    for line in node.read(f"find {POOLS} -mindepth 2 -type f -printf '%D:%i %P\\n'").splitlines():
        identity, _, path = line.partition(" ")
        owners.setdefault(identity, set()).add(path.partition("/")[0])
    shared = {identity: tenants for identity, tenants in owners.items() if len(tenants) > 1}
    assert not shared, f"files with owners in several tenants: {shared}"
