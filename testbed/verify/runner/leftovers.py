"""Finds resources that a run of checks has left on a lab.

They are those whose removal is known to have failed, and those that were absent before the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from testbed.drivers.network.rogue_host import ROGUE
from testbed.drivers.places.node import Node
from testbed.errors import TestbedError
from testbed.model.topology import Guest, Role
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.probe.transport import FOLDER

# Programs of the probe need a moment to end after the request.
_LOOK = f"""
for round in $(seq 20); do [ -e {FOLDER} ] || break; sleep 0.25; done
for path in /run/testbed-*; do [ ! -e $path ] || echo "the file $path"; done
for link in /sys/class/net/*; do echo "the interface ${{link##*/}}"; done
nft list tables | while read -r line; do echo "the $line of nft"; done
"""
_LOOK_AT_NODE = f"""{_LOOK}
ovs-vsctl list-ports br-int | while read -r port; do echo "the interface $port in the switch"; done
for file in /etc/apparmor.d/libvirt/libvirt-*; do echo "the file $file"; done
"""
_TRIES, _PAUSE = 60, 0.5  # looks at a probe that is about to end, on a busy machine; seconds between them
_KEYS = ("strangers", "planted-key")

Look = Mapping[str, frozenset[str] | str]


def look(fleet: Fleet) -> Look:
    """Return by place the resources that checks can leave behind, or why they cannot be listed."""
    tasks: dict[str, Callable[[], Iterable[str]]] = {
        name: partial(_at, machine, fleet) for name, machine in fleet.machines.items()
    }
    tasks |= {f"libvirt of {name}": partial(_domains, node) for name, node in fleet.lab.nodes.items()}
    tasks |= {"OVN's database": partial(_rows, fleet), "the outer machine": partial(_outside, fleet)}
    tasks |= {
        guest.label: partial(_inside, fleet, guest)
        for guest in fleet.topology.guests
        if guest.label in fleet.instruments
    }
    with ThreadPoolExecutor(max_workers=len(tasks)) as pool:
        return dict(zip(tasks, pool.map(_told, tasks.values()), strict=True))


def _told(task: Callable[[], Iterable[str]]) -> frozenset[str] | str:
    """Return the resources that a task lists, or the reason why it cannot."""
    try:
        return frozenset(task())
    except TestbedError as error:
        return f"{error.what}: {error.fact}"
    except Exception as error:  # noqa: BLE001 - the end of a run reports all that it can
        return f"{type(error).__name__}: {error}"


def _at(machine: MachineView, fleet: Fleet) -> Iterable[str]:
    node = fleet.topology.machine(machine.name).role is Role.NODE
    return machine.read(_LOOK_AT_NODE if node else _LOOK).splitlines()


def _domains(node: Node) -> Iterator[str]:
    return (f"the guest {domain.name}" for domain in node.hypervisor.domains())


def _rows(fleet: Fleet) -> Iterator[str]:
    # Fails at once if the database is down; a connection to it would wait as long as for a slow machine.
    fleet.machines[fleet.topology.controller.name].read("systemctl is-active ovn-ovsdb-server-nb")
    northbound = fleet.lab.central.northbound
    yield from (f"the switch {label}" for label in northbound.switches())
    yield from (f"the port {label} ({port['port']})" for label, port in northbound.ports().items())


def _outside(fleet: Fleet) -> Iterator[str]:
    yield from (
        f"the interface {link.name}"
        for link in fleet.lab.outer.fabric.links()
        if link.resource.startswith(f"{ROGUE}=")
    )
    if _stays(Path(FOLDER).exists):
        yield f"the file {FOLDER}"
    yield from (f"the keys {path}" for name in _KEYS if (path := fleet.lab.workspace.folder / name).exists())


def _inside(fleet: Fleet, guest: Guest) -> list[str]:
    """Return the probe's folder in a guest, if it exists after the program had time to end."""
    files = fleet.files_of(guest)
    return [f"the file {FOLDER}"] if _stays(lambda: files.read(f"{FOLDER}/pid") is not None) else []


def _stays(is_there: Callable[[], bool]) -> bool:
    """Return whether something still exists after a program had time to end."""
    for _ in range(_TRIES):
        if not is_there():
            return False
        time.sleep(_PAUSE)
    return True


def left_behind(fleet: Fleet, before: Look) -> list[str]:
    """Remove leftovers of checks, and return a line for each that stays.

    The lines come from failed removals, and from a comparison with the state before the run.

    Args:
        before: the result of `look` before the run.
    """
    known = fleet.leavings.clear()
    found = []
    for place, after in look(fleet).items():
        earlier = before.get(place, frozenset())
        if isinstance(after, str):
            found.append(f"whether checks left something at {place} is not known: {after}")
        elif not isinstance(earlier, str):
            found += [f"{what} is left behind at {place}" for what in sorted(after - earlier)]
    return [*known, *found]
