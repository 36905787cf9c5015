"""Limits of compute: how much of a node's CPU time, memory, disks and logs a guest may use (DOS-02 to -05).

Attackers stand in guests, and in the place of a worker that was taken over. Counters of the kernel and of
QEMU are compared with limits, so that a slow machine is not taken for a missing wall, nor for a good one.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from checks.support.breaches import needs_guest, shell_breach, where
from testbed.errors import InstrumentError
from testbed.model import subjects
from testbed.model.topology import POOLS, Guest
from testbed.plan import compute_limits
from testbed.plan.host_config.settings import CONSOLE_SIZE, OLDER_CONSOLES
from testbed.plan.libvirt_xml.limits import PERIOD, SLICE, SLICE_WEIGHT, THREADS, quota
from testbed.topology_file.quantities import KIB, MIB
from testbed.topology_file.validation import NODE_RESERVE, ROOT_DISK
from testbed.verify.attackers.ephemeral_guest import Throwaway
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach, Effect, check
from testbed.verify.exhaustion import cpu_load, disk_load
from testbed.verify.exhaustion.worker_limits import exhaust
from testbed.verify.fleet import Fleet, MachineView

_SHOWN = 6
_BEYOND = 48 * MIB  # above its limit, where an attacker stops that no limit has stopped
_KILLED = -9
_CPU_SECONDS, _DISK_SECONDS = 8.0, 6.0
_SLACK = 1.08  # tolerance above a limit; without it, much more is used
_MET = 0.6  # share of a limit that an attacker must reach, to show that the limit is in force
_FAIR = 0.6  # of the share of CPU time that its weight gives a guest, or the root partition
_PIECE, _SMALL = MIB, 4 * KIB
_HARM = 0.3  # share of its calm rate of operations that a victim must keep
_STEADY = 0.5  # of the larger of two calm rates, which the smaller one must reach
_BURST = 0.2  # seconds of its limit that QEMU lets pass at once
_LOG_SLACK = 64 * KIB  # virtlogd looks at a file's size after it has written
_DROP_IN = "/etc/systemd/system/machine-.scope.d/testbed.conf"
_ASIDE = "/run/breach-scope.conf"
_CONF = "/etc/libvirt/virtlogd.conf"


def _scope(guest: Guest) -> str:
    """Return shell commands that set ``scope``: the folder of a guest's outermost control group."""
    return (
        f"pid=$(cat /run/libvirt/qemu/{guest.domain}.pid) && read -r group < /proc/$pid/cgroup && "
        'scope=/sys/fs/cgroup${group#0::} && scope="${scope%%.scope*}.scope"'
    )


def _unlimited(
    name: str, file: str, opened: str, shut: Callable[[Guest], object], *, inner: bool = True
) -> Breach:
    """Return a breach that changes one limit of the control groups of the node's first guest.

    Args:
        file: name of the limit.
        opened: its value while the wall is open.
        shut: the value that it must have.
        inner: whether it is in the group of libvirt below the one of systemd.
    """
    path = f'"$scope{"/libvirt" if inner else ""}/{file}"'
    return shell_breach(
        name,
        opens=lambda context: f"{_scope(context.guest)} && echo {opened} > {path}",
        closes=lambda context: f"{_scope(context.guest)} && echo {shut(context.guest)} > {path}",
        shows=lambda context: (
            f"{_scope(context.guest)} && read -r value < {path} && "
            f'[ "${{value%% *}}" = {opened.partition(" ")[0]} ]'
        ),
    )


_NO_QUOTA = _unlimited(
    "a guest has no quota of CPU time", "cpu.max", f"max {PERIOD}", lambda guest: f"{quota(guest)} {PERIOD}"
)
_HEAVY = _unlimited(
    "a guest outweighs all others", "cpu.weight", "10000", lambda guest: guest.limits.cpu_weight, inner=False
)
_HEAVY_SLICE = shell_breach(
    "guests outweigh the root partition",
    opens=lambda _: f"echo 500 > /sys/fs/cgroup/{SLICE}/cpu.weight",
    closes=lambda _: f"echo {SLICE_WEIGHT} > /sys/fs/cgroup/{SLICE}/cpu.weight",
    shows=lambda _: f"grep -qx 500 /sys/fs/cgroup/{SLICE}/cpu.weight",
)
_NO_MEMORY_LIMIT = _unlimited(
    "a worker may use all memory", "memory.max", "max", lambda guest: guest.most_memory
)


_NO_THROTTLE = Breach(
    "the disks of a guest are not limited",
    open=lambda context: context.node.throttle(context.guest, 0, 0),
    close=lambda context: context.node.throttle(
        context.guest, context.guest.limits.disk_operations, context.guest.limits.disk_bandwidth
    ),
    in_force=lambda context: any(not item.octets for item in context.node.throttles(context.guest.domain)),
)


def _has_volume(context: BreachContext) -> bool:
    return bool(context.guest.volumes)


def _volume(context: BreachContext) -> str:
    """Return the word of a shell that is the first volume of the node's first guest."""
    return shlex.quote(f"{context.guest.pool}/{context.guest.volumes[0].file}")


def _several(context: BreachContext) -> bool:
    return len(context.guests) > 1


def _differences(fleet: Fleet, node: MachineView, *names: str) -> list[str]:
    """Return the limits of a node's guests that are not in force, of those with some names.

    Raises:
        InstrumentError: a guest has no worker, or its QEMU does not tell.
    """
    workers = compute_limits.of_workers(node.read(compute_limits.GROUPS))
    found = []
    for guest in fleet.topology.guests_on(node.name):
        disks = fleet.lab.nodes[node.name].throttles(guest.domain)
        if guest.domain not in workers or len(disks) != len(guest.disks):
            fact = f"it has {len(disks)} of {len(guest.disks)} disks, or no worker"
            raise InstrumentError(f"{guest.label} does not run", fact=fact, remedy="run `testbed up`")
        wanted = compute_limits.wanted(guest)
        live = compute_limits.observed(workers, disks, guest.domain)
        found += [
            f"{name} of {guest.label} is {live[name]} and not {wanted[name]}"
            for name in names
            if live[name] != wanted[name]
        ]
    return found


@check(
    id="DOS-02",
    objective="Every node bounds the CPU time of each guest as the topology says, and of all guests together",
    severity="high",
    effect=Effect.OBSERVES,
    local=True,
    applies=needs_guest,
    breaches=(_NO_QUOTA, _HEAVY, _HEAVY_SLICE),
)
def test_cpu_limits_are_in_force(fleet: Fleet, node: MachineView) -> None:
    faults = _differences(fleet, node, "cpu", "cpu_weight")
    weight = node.read(f"cat /sys/fs/cgroup/{SLICE}/cpu.weight")
    if weight != str(SLICE_WEIGHT):
        faults.append(f"all guests weigh {weight[:20]} and not {SLICE_WEIGHT}")
    assert not faults, f"{len(faults)} limits of CPU time are not in force: {'; '.join(faults[:_SHOWN])}"


@check(
    id="DOS-02",
    objective="Guests that want all CPU time stay within their quota, and leave others what is theirs",
    severity="high",
    effect=Effect.FLOODS,
    applies=needs_guest,
    breaches=(_NO_QUOTA, *where(_several, _HEAVY), _HEAVY_SLICE),
)
def test_cpu_time_is_shared(fleet: Fleet) -> None:
    guests = fleet.topology.guests_on(subjects.host(fleet.topology))[:2]
    attacker = guests[0]
    alone = cpu_load.measured(fleet, guests[:1], _CPU_SECONDS, spin=False)
    used = alone.percentage(attacker)
    assert used <= attacker.most_cpu * _SLACK, (
        f"{attacker.label} uses {used:.0f} % of a CPU and may use {attacker.most_cpu} %"
    )
    together = cpu_load.measured(fleet, guests, _CPU_SECONDS, spin=True)
    total = 1 + SLICE_WEIGHT / 100
    assert together.root >= _FAIR / total, (
        f"the root partition gets {together.root:.0%} of the CPU time, and {1 / total:.0%} is its"
    )
    crowd = cpu_load.measured(fleet, guests, _CPU_SECONDS, spin=False)
    whole = sum(crowd.percentage(guest) for guest in guests)
    weights = sum(guest.limits.cpu_weight for guest in guests)
    for guest in guests:
        fair = min(whole * guest.limits.cpu_weight / weights, guest.most_cpu)
        assert crowd.percentage(guest) >= _FAIR * fair, (
            f"{guest.label} gets {crowd.percentage(guest):.0f} % of a CPU, and {fair:.0f} % is its"
        )
    if used < _MET * attacker.most_cpu or not alone.groups[attacker.domain].nr_throttled:
        raise InstrumentError(
            f"{attacker.label} does not meet its quota",
            fact=f"it used {used:.0f} % of a CPU, and may use {attacker.most_cpu} %",
            remedy="repeat the check when the machine is less busy, or lower the limit",
        )


@check(
    id="DOS-03",
    objective="Every node bounds the memory of each worker, without swap, and has room for all of them",
    severity="high",
    effect=Effect.OBSERVES,
    local=True,
    applies=needs_guest,
    breaches=(
        _NO_MEMORY_LIMIT,
        _unlimited("a worker may swap", "memory.swap.max", "max", lambda _: 0, inner=False),
    ),
)
def test_memory_limits_are_in_force(fleet: Fleet, node: MachineView) -> None:
    faults = _differences(fleet, node, "memory", "swap")
    promised = sum(guest.most_memory for guest in fleet.topology.guests_on(node.name))
    machine = fleet.topology.machine(node.name)
    have = int(node.read("grep -m1 MemTotal: /proc/meminfo").split()[1]) * KIB
    reserve = NODE_RESERVE - (machine.memory - have)  # the kernel's own share is part of it
    if promised + reserve > have:
        faults.append(f"workers may use {promised // MIB} MiB of {have // MIB} MiB, beside {reserve // MIB}")
    assert not faults, f"{len(faults)} limits of memory are not in force: {'; '.join(faults[:_SHOWN])}"


@check(
    id="DOS-03",
    objective="A worker that takes memory without end is stopped at its limit, and harms no other guest",
    severity="high",
    effect=Effect.FLOODS,
    local=True,
    applies=needs_guest,
    breaches=(_NO_MEMORY_LIMIT,),
)
def test_memory_runs_out_in_one_group(fleet: Fleet, node: MachineView) -> None:
    guest = fleet.topology.guests_on(node.name)[0]
    spare = int(node.read("grep MemAvailable: /proc/meminfo").split()[1]) * KIB
    most = guest.most_memory + _BEYOND
    if spare < most + _BEYOND:  # the attack would hit the node, not the limit
        raise InstrumentError(
            f"{node.name} has too little free memory for the attack",
            fact=f"{spare // MIB} MiB, and {(most + _BEYOND) // MIB} MiB are needed",
            remedy="raise the memory of the node",
        )
    spent = exhaust(node, guest, "memory", most)
    kills = spent.after.killed - spent.before.killed
    own = spent.events(guest.domain, "memory oom_kill")
    taken = f"the attacker in the place of {guest.label}'s worker has taken {spent.reached // MIB} MiB"
    assert spent.reached < guest.most_memory, f"{taken}, and {guest.most_memory // MIB} MiB is its limit"
    assert kills == own, f"the kernel ended {kills} processes on {node.name}, {own} of them in the group"
    assert not spent.harmed, f"workers have ended: {', '.join(spent.harmed[:_SHOWN])}"
    if spent.status != _KILLED or not own:
        raise InstrumentError(
            f"{taken} and was not stopped by its limit",
            fact=f"status {spent.status}, {own} kills in the group",
            remedy="repeat the check",
        )


@check(
    id="DOS-05",
    objective="A worker that starts threads without end is stopped at its limit",
    severity="medium",
    effect=Effect.DISTURBS,
    local=True,
    applies=needs_guest,
    breaches=(
        shell_breach(
            "new workers may have any number of threads",
            opens=lambda _: f"cp {_DROP_IN} {_ASIDE} && rm {_DROP_IN} && systemctl daemon-reload",
            # The manager has taken the limits off running workers, and does not set them again by itself.
            closes=lambda _: (
                f"[ ! -e {_ASIDE} ] || cp {_ASIDE} {_DROP_IN}; systemctl daemon-reload; rm -f {_ASIDE}; "
                f"for scope in /sys/fs/cgroup/{SLICE}/machine-qemu*.scope; do "
                f'echo {THREADS} > "$scope/pids.max"; echo 0 > "$scope/memory.swap.max"; done'
            ),
            shows=lambda _: f"[ ! -e {_DROP_IN} ]",
        ),
    ),
)
def test_threads_are_bounded(fleet: Fleet, last_host: MachineView) -> None:
    guest = fleet.topology.guests_on(last_host.name)[0]
    stranger = Throwaway.beside(fleet, guest, guest.nics[0].address)
    with stranger.present(fleet):
        stranger.start_paused()
        spent = exhaust(stranger.machine, stranger.guest, "threads", 4 * THREADS)
    assert spent.reached <= THREADS, f"a worker has started {spent.reached} threads, and may have {THREADS}"
    refused = spent.events(stranger.guest.domain, "pids max")
    if not refused or spent.reached < THREADS // 2:
        raise InstrumentError(
            "the attack met no limit of threads",
            fact=f"{spent.reached} threads, {refused} refusals, status {spent.status}",
            remedy="repeat the check",
        )


@check(
    id="DOS-05",
    objective="Every node bounds the threads of each worker",
    severity="medium",
    effect=Effect.OBSERVES,
    local=True,
    applies=needs_guest,
    breaches=(
        _unlimited(
            "a worker may have any number of threads", "pids.max", "max", lambda _: THREADS, inner=False
        ),
    ),
)
def test_thread_limits_are_in_force(fleet: Fleet, node: MachineView) -> None:
    faults = _differences(fleet, node, "threads")
    assert not faults, f"{len(faults)} limits of threads are not in force: {'; '.join(faults[:_SHOWN])}"


def _space(fleet: Fleet, node: MachineView) -> list[str]:
    """Return what disks of guests may take beyond their file system, or have beyond their size."""
    guests = fleet.topology.guests_on(node.name)
    most = {guest.root_disk: ROOT_DISK + ROOT_DISK // 64 for guest in guests}  # with qcow2's own structures
    most |= {f"{guest.pool}/{item.file}": item.octets for guest in guests for item in guest.volumes}
    whole = int(node.read(f"stat -f -c '%b %S' {POOLS}").split()[0])
    block = int(node.read(f"stat -f -c %S {POOLS}"))
    faults = []
    if sum(most.values()) > whole * block:
        faults.append(f"disks may take {sum(most.values()) // MIB} MiB of {whole * block // MIB} MiB")
    sizes = node.read(f"stat -c '%s %n' {' '.join(map(shlex.quote, most))}")
    for line in sizes.splitlines():
        size, _, path = line.partition(" ")
        if int(size) > most[path]:
            faults.append(f"{path} has {size} bytes and may have {most[path]}")
    return faults


@check(
    id="DOS-04",
    objective="Every node limits the disks of each guest, and has room for all that they may store",
    severity="high",
    effect=Effect.OBSERVES,
    local=True,
    applies=needs_guest,
    breaches=(
        _NO_THROTTLE,
        *where(
            _has_volume,
            shell_breach(
                "a volume is larger than its file system",
                opens=lambda context: f"truncate -s 40G {_volume(context)}",
                closes=lambda context: f"truncate -s {context.guest.volumes[0].octets} {_volume(context)}",
                shows=lambda context: f"[ $(stat -c %s {_volume(context)}) -gt 40000000000 ]",
            ),
        ),
    ),
)
def test_disk_limits_are_in_force(fleet: Fleet, node: MachineView) -> None:
    faults = _differences(fleet, node, "disk_operations", "disk_bandwidth") + _space(fleet, node)
    assert not faults, f"{len(faults)} limits of disks are not in force: {'; '.join(faults[:_SHOWN])}"


@check(
    id="DOS-04",
    objective="A guest that reads its disks without end stays within its limits, and others read on",
    severity="high",
    effect=Effect.FLOODS,
    applies=needs_guest,
    breaches=(_NO_THROTTLE,),
)
def test_disk_bandwidth_is_bounded(fleet: Fleet) -> None:
    guests = fleet.topology.guests_on(subjects.host(fleet.topology))
    attacker, victim = guests[0], subjects.sharers(fleet.topology, guests[0].node)
    other = next((guest for guest in victim or () if guest != attacker), None)
    if other is None:
        with disk_load.reading(fleet, attacker, _PIECE, 2 * _DISK_SECONDS):
            (loud,) = disk_load.rate(fleet, (attacker,), _DISK_SECONDS)
    else:
        with disk_load.reading(fleet, other, _SMALL, 10 * _DISK_SECONDS):
            (calm,) = disk_load.rate(fleet, (other,), _DISK_SECONDS)
            with disk_load.reading(fleet, attacker, _PIECE, 3 * _DISK_SECONDS):
                loud, felt = disk_load.rate(fleet, (attacker, other), _DISK_SECONDS)
            (later,) = disk_load.rate(fleet, (other,), _DISK_SECONDS)
    limit = attacker.limits
    for name, done, bound in (
        ("octets", loud.octets, limit.disk_bandwidth),
        ("operations", loud.operations, limit.disk_operations),
    ):
        assert done <= bound * (loud.seconds + _BURST) * _SLACK, (
            f"{attacker.label} read {done} {name} in {loud.seconds} s, and may read {bound} in a second"
        )
    met = max(
        loud.octets / limit.disk_bandwidth / loud.seconds,
        loud.operations / limit.disk_operations / loud.seconds,
    )
    if met < _MET:
        raise InstrumentError(
            f"{attacker.label} does not meet the limits of its disks",
            fact=f"it reached {met:.0%} of them",
            remedy="repeat the check when the machine is less busy, or lower the limits",
        )
    if other is None:
        return
    speeds = [item.operations / item.seconds for item in (calm, later, felt)]
    shown = f"{other.label} reads {speeds[0]:.0f}, then {speeds[2]:.0f}, then {speeds[1]:.0f} pieces a second"
    if min(speeds[:2]) < _STEADY * max(speeds[:2]):
        raise InstrumentError(
            f"{other.label} is not steady in calm", fact=shown, remedy="repeat when the machine is less busy"
        )
    assert speeds[2] >= _HARM * min(speeds[:2]), f"{shown}; the one in the middle is beside an attack"


@check(
    id="DOS-04",
    objective="A guest that writes to its console without end fills a bounded log, and no more",
    severity="high",
    effect=Effect.DISTURBS,
    local=True,
    applies=needs_guest,
    breaches=(
        shell_breach(
            "logs of consoles have no end",
            opens=lambda _: f"sed -i 's/^max_size = .*/max_size = 0/' {_CONF}; systemctl reload virtlogd",
            closes=lambda _: (
                f"sed -i 's/^max_size = .*/max_size = {CONSOLE_SIZE}/' {_CONF}; systemctl reload virtlogd"
            ),
            shows=lambda _: f"grep -qx 'max_size = 0' {_CONF}",
        ),
    ),
)
def test_logs_are_bounded(fleet: Fleet, last_host: MachineView) -> None:
    guest = fleet.topology.guests_on(last_host.name)[0]
    stranger = Throwaway.beside(fleet, guest, guest.nics[0].address)
    most = CONSOLE_SIZE * (1 + OLDER_CONSOLES)
    with stranger.present(fleet):
        stranger.start_paused()
        spent = exhaust(stranger.machine, stranger.guest, "log", 2 * most)
        text = stranger.machine.read(f"stat -c %s {shlex.quote(stranger.guest.console)}*")
    kept = sum(map(int, text.split()))
    assert kept <= most + _LOG_SLACK, f"of {spent.reached} octets {kept} are kept, and {most} may be"
    if spent.reached < most + _LOG_SLACK or kept < CONSOLE_SIZE:
        raise InstrumentError(
            "the log of a console was not filled",
            fact=f"{spent.reached} octets were written, {kept} are kept, status {spent.status}",
            remedy="repeat the check",
        )
