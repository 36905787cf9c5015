"""Compares ``testbed up``, in each of its ways, with the floor, in one run.

    python benchmarks/up.py [TOPOLOGY]

The floor is the time that the same images take with plain QEMU and ``virsh create``, all in parallel, until
every guest agent answers. It has no plan and no policy, and does not wait for addresses. The program prints
seconds and ratios of `up` from images, from a checkpoint and with nothing to do. It also prints MiB: the peak
of the `testbed` process, and the memory of the lab's emulators.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from testbed.drivers.host.workspace import Workspace
from testbed.drivers.namespaces import lab_namespaces
from testbed.drivers.places.node import Node
from testbed.drivers.snapshots.machine_memory import make_overlay
from testbed.errors import InstrumentError
from testbed.lab import session as labs
from testbed.model.environment import Accelerator
from testbed.model.resolve import resolve
from testbed.model.topology import IMAGES, Guest, Machine, Role
from testbed.plan.diff import Action, Verb
from testbed.plan.libvirt_xml.guest import guest_xml
from testbed.plan.libvirt_xml.machine import CREDENTIAL, machine_id
from testbed.plan.resources import Kind, guest_properties
from testbed.topology_file.loader import read


def _boot(lab: labs.Lab, machine: Machine) -> None:
    """Start a machine with plain QEMU, on the disks and identity that `up` would give it."""
    folder = lab.workspace.machine(machine.name)
    lab.outer.issue_identity(machine, folder)
    image, environment = lab.inputs.images[machine.role], lab.inputs.environment
    bases = [image.file("disk.qcow2")]
    words = (
        "console=ttyS0 root=/dev/vda rw quiet loglevel=3 systemd.show_status=no "
        f"systemd.hostname={machine.name} "
    )
    words += f"systemd.machine_id={machine_id(machine.uuid)}"
    if machine.role is Role.NODE:
        bases += [lab.inputs.images["guest"].file("volume.qcow2"), image.file("pool.qcow2")]
        words += (
            f" apparmor=1 security=apparmor audit=1 testbed.mount=/dev/vdb:{IMAGES}:ro,nodev,nosuid,noexec"
        )
        words += " testbed.mount=/dev/vdc:/var/lib/testbed/pools:noatime,nodev,nosuid,noexec"
    kvm = environment.outer is Accelerator.KVM
    argv = [
        environment.emulator,
        "-M",
        "q35",
        "-accel",
        "kvm" if kvm else "tcg,tb-size=512",
        "-cpu",
        "host" if kvm else "EPYC,+svm,+npt",
        "-smp",
        str(environment.vcpus(machine.vcpus)),
        "-m",
        str(machine.memory // 2**20),
        "-nodefaults",
        "-display",
        "none",
        "-serial",
        f"file:{folder}/console.log",
        "-kernel",
        str(image.file("vmlinuz")),
        "-initrd",
        str(image.file("initrd")),
        "-append",
        words,
        "-device",
        "virtio-rng-pci",
        "-daemonize",
        "-fw_cfg",
        f"name={CREDENTIAL},file={folder}/identity.tar",
    ]
    for letter, base in zip("abc", bases, strict=False):
        overlay = make_overlay(base, folder / f"vd{letter}.qcow2")
        argv += ["-drive", f"file={overlay},if=virtio,format=qcow2,cache=unsafe"]
    for number, nic in enumerate(machine.nics):
        argv += ["-netdev", f"tap,id=n{number},ifname={nic.tap},script=no,downscript=no"]
        argv += ["-device", f"virtio-net-pci,netdev=n{number},mac={nic.mac}"]
    subprocess.run(argv, check=True)


def _guest(lab: labs.Lab, node: Node, guest: Guest) -> None:
    xml = guest_xml(lab.topology, guest, guest_properties(guest, lab.inputs.plan_inputs))
    disks = [f"qemu-img create -q -f qcow2 -F raw -b {IMAGES}/guest/root.raw {guest.root_disk}"]
    disks += [
        f"qemu-img create -q -f raw {guest.pool}/{volume.file} {volume.size}" for volume in guest.volumes
    ]
    node.host.must(
        f"mkdir -p {guest.pool}; {'; '.join(disks)}; echo {shlex.quote(xml)} > /run/{guest.domain}.xml; "
        f"until [ -e /sys/class/net/br-int ]; do sleep 0.2; done; virsh -q create /run/{guest.domain}.xml",
        timeout=900,
    )
    while True:  # over the open connection: starting virsh for every ping would slow down the guests
        with suppress(InstrumentError):
            node.hypervisor.agent(guest.domain, "guest-ping", {}, 5)
            return
        time.sleep(1)


def _node(lab: labs.Lab, node: Node) -> None:
    node.host.wait(600)
    guests = lab.topology.guests_on(node.name)
    with ThreadPoolExecutor(max_workers=len(guests) or 1) as pool:
        list(pool.map(lambda guest: _guest(lab, node, guest), guests))


def floor(file: Path, state: Path) -> float:
    """Return the seconds that the floor takes; call it in a process of its own."""
    topology = resolve(read(file).spec)
    inputs = labs.prepare_inputs(lambda _: None)
    workspace = Workspace(state, topology.name)
    labs.enter(topology, workspace, inputs.environment)
    with labs.open_lab(topology, workspace, inputs) as lab:
        labs.settle(topology, workspace)
        start = time.monotonic()
        for kind in (Kind.NETWORK, Kind.TAP):
            for key, item in lab.desired.items():
                if key.kind is kind:
                    lab.outer.perform(Action(Verb.CREATE, key, "", item, ()))
        for machine in topology.machines:
            _boot(lab, machine)
        with ThreadPoolExecutor(max_workers=len(lab.nodes)) as pool:
            list(pool.map(lambda node: _node(lab, node), lab.nodes.values()))
        return time.monotonic() - start


def _memory(state: str) -> float:
    """Return the resident memory of the emulators of a state folder in MiB."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if b"qemu-system" in words.split(b"\0")[0] and state.encode() in words:
                pages = int((process / "statm").read_text().split()[1])
                total += pages * os.sysconf("SC_PAGE_SIZE")
    return total / 2**20


def compare(topology: Path, folder: str, seconds: float) -> dict[str, float]:
    """Return the seconds and memory of `up` in each of its ways, with the floor's seconds.

    Args:
        topology: topology file.
        folder: folder for the state.
        seconds: result of `floor`.

    """
    name, program = read(topology).spec.name, str(Path(sys.executable).with_name("testbed"))
    variables = {**os.environ, "TESTBED_STATE_DIR": f"{folder}/up"}
    mark = f"bench-{os.getpid()}"

    def timed(*words: str) -> float:
        start = time.monotonic()
        subprocess.run([program, *words], check=True, env=variables, capture_output=True)
        return round(time.monotonic() - start, 1)

    found = {"floor_s": round(seconds, 1), "up_s": timed("up", str(topology), "--anew")}
    found["peak_mib"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    found["lab_mib"] = round(_memory(f"{folder}/up"))
    found["nothing_to_do_s"] = timed("up", str(topology))
    found["save_s"] = timed("checkpoint", "save", name, "--name", mark)
    try:
        timed("down", name)
        found["from_checkpoint_s"] = timed("up", str(topology))
        timed("down", name)
    finally:
        timed("checkpoint", "rm", mark)
    return found | {
        "up_to_floor": round(found["up_s"] / seconds, 2),
        "checkpoint_to_floor": round(found["from_checkpoint_s"] / seconds, 2),
    }


def main() -> int:
    """Measure floor and `up` in one run and print one JSON document."""
    if len(sys.argv) == 4 and sys.argv[1] == "--floor":
        print(floor(Path(sys.argv[2]), Path(sys.argv[3])))
        return 0
    topology = Path(sys.argv[1] if len(sys.argv) > 1 else "topologies/two-tenants.yaml")
    labs.attach_snapshots(
        labs.prepare_inputs(lambda _: None), resolve(read(topology).spec), lambda _: None, save=True
    )  # saved memory is prepared before the measurement, as the images are
    with tempfile.TemporaryDirectory(prefix="tb", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        argv = [sys.executable, __file__, "--floor", str(topology), folder]
        seconds = float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()[-1])
        found = lab_namespaces.find(read(topology).spec.name, Path(folder))
        if found is not None:
            lab_namespaces.destroy(found)
        print(json.dumps(compare(topology, folder, seconds)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
