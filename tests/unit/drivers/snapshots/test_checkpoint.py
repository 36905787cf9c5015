"""Checkpoints: saved whole or not at all, used only for an equal lab, and reported."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed.drivers.host import content_store
from testbed.drivers.host.content_store import claim, clear_leftovers, remove_tree
from testbed.drivers.host.ownership import MARK
from testbed.drivers.host.workspace import Workspace
from testbed.drivers.images.cache import Image
from testbed.drivers.places import clock
from testbed.drivers.snapshots import checkpoint as checkpoints
from testbed.drivers.snapshots import checkpoint_store
from testbed.drivers.snapshots.checkpoint import Checkpoint
from testbed.drivers.snapshots.checkpoint_store import CheckpointStore, refusal
from testbed.errors import ProvisioningError, UsageError
from testbed.model.environment import Accelerator, Environment
from testbed.model.numbers import Numbers
from testbed.model.resolve import resolve
from testbed.model.topology import Topology
from testbed.plan.libvirt_xml.machine import resumed_xml, waits
from testbed.topology_file.loader import read

ROOT = Path(__file__).parents[4]
TCG = Environment(Accelerator.TCG, Accelerator.KVM, 4.0, "/usr/bin/qemu", (("qemu", "QEMU 7.2.22"),))
IMAGES = {name: Image(name, "k", Path("/"), {"disk": name}, "") for name in ("controller", "guest", "node")}
WORDS = (
    "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg "
    "value='-incoming'/></qemu:commandline>"
)


class Machines:
    """Stands in for a hypervisor: remembers what was paused and saved, and fails on demand."""

    def __init__(self) -> None:
        self.paused: list[str] = []
        self.order: list[str] = []
        self.failing = ""
        self.guests = "running"

    @contextmanager
    def guests_paused(self) -> Iterator[None]:
        self.guests = "paused"
        yield
        self.guests = "running"

    def suspend(self, name: str) -> None:
        assert self.guests == "paused"
        self.paused.append(name)

    def resume(self, name: str) -> None:
        assert self.guests == "paused"
        self.paused.remove(name)

    def live_xml(self, name: str) -> str:
        return f"<domain><name>{name}</name></domain>"

    def monitor(self, name: str) -> SimpleNamespace:
        def save(file: Path, _timeout: float) -> None:
            assert name in self.paused
            if name == self.failing:
                raise ProvisioningError(
                    "a virtual machine's memory cannot be moved", fact="no", remedy="none"
                )
            file.write_text(f"memory of {name}")

        return SimpleNamespace(save_memory=save)


@pytest.fixture
def topology() -> Topology:
    return resolve(read(ROOT / "topologies/two-tenants.yaml").spec)


@pytest.fixture
def workspace(tmp_path: Path, topology: Topology, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A lab on disk, with base images of one kilobyte."""
    found = Workspace(tmp_path / "state", topology.name)
    found.create()
    claim(tmp_path / "cache")
    found.topology_file.write_text("a topology")
    found.pki.mkdir()
    (found.pki / "ssh-ca").write_text("a secret")
    (tmp_path / "cache/base").mkdir(parents=True)
    base = tmp_path / "cache/base/vda.qcow2"
    base.write_text("what overlays lie on")
    for machine in topology.machines:
        found.make(found.machine(machine.name))
        for name in ("vda.qcow2", "console.log", "identity.tar", "host_key.pub"):
            (found.machine(machine.name) / name).write_text(f"{name} of {machine.name}")
    monkeypatch.setattr(checkpoint_store, "_backing", lambda _: base)
    return found


@pytest.fixture
def machines() -> Machines:
    return Machines()


@pytest.fixture
def save(
    tmp_path: Path, topology: Topology, workspace: Workspace, machines: Machines
) -> Callable[[str], Checkpoint]:
    return lambda name: _store(tmp_path).save(
        topology,
        workspace,
        machines,  # type: ignore[arg-type]
        name,
        lambda _: None,
        guests_paused=machines.guests_paused(),
    )


def _store(folder: Path, environment: Environment = TCG) -> CheckpointStore:
    return CheckpointStore(folder / "cache", IMAGES, environment)


def test_what_was_saved_is_what_comes_back(
    tmp_path: Path,
    topology: Topology,
    workspace: Workspace,
    machines: Machines,
    save: Callable[[str], Checkpoint],
) -> None:
    saved = save("fresh")
    assert (machines.paused, machines.guests) == ([], "running")
    assert _store(tmp_path).find(lambda _: topology, workspace) == (saved, topology)
    assert saved.folder.stat().st_mode & 0o077 == 0
    workspace.remove()
    workspace.create()
    saved.unpack(workspace)
    kept = saved.machine("node-a")
    kept.verify()
    kept.unpack(workspace.machine("node-a"), workspace.account)
    assert (workspace.pki / "ssh-ca").read_text() == "a secret"
    assert {path.name for path in workspace.machine("node-a").iterdir()} == {
        "vda.qcow2",
        "console.log",
        "identity.tar",
        "host_key.pub",
    }
    assert kept.memory.read_text() == f"memory of {topology.machine('node-a').domain(topology.name)}"
    assert (workspace.machine("controller") / "host_key.pub").read_text() == "host_key.pub of controller"


def test_a_checkpoint_carries_the_numbers_of_its_lab(
    tmp_path: Path, topology: Topology, workspace: Workspace, save: Callable[[str], Checkpoint]
) -> None:
    saved, asked = save("fresh"), list[Numbers]()
    assert saved.numbers == Numbers.of(topology)

    def resolved(numbers: Numbers) -> Topology:
        asked.append(numbers)
        return topology

    assert _store(tmp_path).find(resolved, workspace) == (saved, topology)
    assert asked == [Numbers.of(topology)]
    (saved.folder / "numbers.json").write_text("nonsense")
    assert _store(tmp_path).find(resolved, workspace) is None
    (saved.folder / "numbers.json").unlink()
    assert saved.numbers == Numbers()


@pytest.mark.parametrize("changed", ["m/node-b/memory", "m/node-b/vda.qcow2", "../base/vda.qcow2"])
def test_what_has_changed_is_not_used(save: Callable[[str], Checkpoint], changed: str) -> None:
    saved = save("fresh")
    (saved.folder / changed).write_text("something else")
    with pytest.raises(ProvisioningError, match="not what was saved") as caught:
        saved.machine("node-b").verify()
    assert Path(changed).name in caught.value.fact


def test_a_lab_that_cannot_be_saved_runs_on_and_leaves_nothing(
    tmp_path: Path, machines: Machines, save: Callable[[str], Checkpoint]
) -> None:
    machines.failing = "two-tenants.node-b"
    with pytest.raises(ProvisioningError, match="cannot be moved"):
        save("fresh")
    assert machines.paused == []
    assert [path.name for path in sorted((tmp_path / "cache").iterdir())] == [MARK, "base"]


def test_the_same_name_replaces_and_another_one_does_not(
    tmp_path: Path, save: Callable[[str], Checkpoint]
) -> None:
    for name in ("one", "two", "one"):
        save(name)
    assert sorted(item.name for item in checkpoints.stored(tmp_path / "cache")) == ["one", "two"]
    checkpoints.remove(checkpoints.named(tmp_path / "cache", "one"))
    with pytest.raises(UsageError, match="no checkpoint one") as caught:
        checkpoints.named(tmp_path / "cache", "one")
    assert caught.value.fact == "there are: two"


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_killed_save_leaves_a_checkpoint_of_that_name(
    tmp_path: Path, save: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    save("one")

    def deleted_and_killed(*paths: Path) -> None:
        remove_tree(*paths)
        raise Killed

    for module in (checkpoint_store, content_store):
        monkeypatch.setattr(module, "remove_tree", deleted_and_killed)
    with pytest.raises(Killed):
        save("one")
    left = checkpoints.named(tmp_path / "cache", "one")
    for machine in left.digests:
        left.machine(machine).verify()


def test_a_checkpoint_that_is_being_saved_is_not_cleared_and_what_a_kill_left_is(
    tmp_path: Path, machines: Machines, save: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is in the namespaces of a lab, so its id says nothing outside."""
    cache, resume = tmp_path / "cache", machines.resume
    left = cache / "checkpoint-one.partial-1"
    left.mkdir()

    def cleared_meanwhile(name: str) -> None:
        clear_leftovers(cache)
        resume(name)

    monkeypatch.setattr("os.getpid", lambda: 999999999)
    monkeypatch.setattr(machines, "resume", cleared_meanwhile)
    saved = save("one")
    for machine in saved.digests:
        saved.machine(machine).verify()
    assert not left.exists()


def test_a_file_system_that_cannot_exchange_two_folders_replaces_a_checkpoint(
    tmp_path: Path, save: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = save("one").folder.stat().st_ino

    def refused(*_: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1

    monkeypatch.setattr(content_store, "_LIBC", SimpleNamespace(renameat2=refused))
    assert save("one").folder.stat().st_ino != before
    assert [path.name for path in sorted((tmp_path / "cache").iterdir())] == [MARK, "base", "checkpoint-one"]


@pytest.mark.parametrize("name", ["", "../evil", "Upper", "a" * 60, "a b"])
def test_impossible_names(save: Callable[[str], Checkpoint], name: str) -> None:
    with pytest.raises(UsageError, match="cannot be called"):
        save(name)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        (replace(TCG, versions=(("qemu", "QEMU 9"),)), "its emulator is QEMU 7.2.22, and QEMU 9 is needed"),
        (
            replace(TCG, inner=Accelerator.TCG),
            "its accelerator is tcg, kvm inside, and tcg, tcg inside is needed",
        ),
    ],
)
def test_another_emulator_or_accelerator_is_refused_with_the_reason(
    tmp_path: Path,
    topology: Topology,
    workspace: Workspace,
    save: Callable[[str], Checkpoint],
    environment: Environment,
    reason: str,
) -> None:
    saved = save("fresh")
    store = _store(tmp_path, environment)
    assert store.unusable(saved, topology, workspace) == reason
    assert store.find(lambda _: topology, workspace) is None


def test_another_topology_or_folder_is_refused_with_the_reason(
    tmp_path: Path, topology: Topology, workspace: Workspace, save: Callable[[str], Checkpoint]
) -> None:
    saved = save("fresh")
    assert (
        _store(tmp_path)
        .unusable(saved, replace(topology, digest="another"), workspace)
        .startswith("its topology is ")
    )
    elsewhere = Workspace(tmp_path / "elsewhere", topology.name)
    assert _store(tmp_path).unusable(saved, topology, elsewhere).startswith("its folder is ")


@pytest.mark.parametrize("gone", ["m/node-b/memory", "../base/vda.qcow2"])
def test_what_lacks_a_file_is_refused_with_the_reason(
    tmp_path: Path, topology: Topology, workspace: Workspace, save: Callable[[str], Checkpoint], gone: str
) -> None:
    saved = save("fresh")
    (saved.folder / gone).unlink()
    assert _store(tmp_path).unusable(saved, topology, workspace).endswith(f"{Path(gone).name} is gone")
    assert _store(tmp_path).find(lambda _: topology, workspace) is None


@pytest.mark.parametrize(
    ("accelerator", "vendor", "refused"),
    [
        (Accelerator.KVM, "AuthenticAMD", True),
        (Accelerator.KVM, "GenuineIntel", False),
        (Accelerator.TCG, "AuthenticAMD", False),
    ],
)
def test_amd_machines_are_not_saved_while_guests_run_in_them(
    tmp_path: Path, accelerator: Accelerator, vendor: str, refused: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id : {vendor}\n")
    assert bool(refusal(replace(TCG, outer=accelerator), tmp_path / "cpuinfo")) is refused


@pytest.mark.parametrize("words", ["", WORDS])
def test_a_domain_that_goes_on_waits_for_its_memory_and_is_of_a_new_generation(words: str) -> None:
    xml = resumed_xml(f"<domain><name>x</name><genid>old</genid>{words}</domain>", "new")
    assert waits(xml)
    assert "<genid>new</genid>" in xml
    assert xml.count("-incoming") == 1
    assert not waits("<domain><name>x</name></domain>")


class Clock:
    """A machine whose clock is off by some seconds."""

    name = "node-a"

    def __init__(self, off: float) -> None:
        self.off, self.commands = off, [""]

    def must(self, command: str) -> str:
        self.commands.append(command)
        return f"{1000.0 + self.off:.9f}\n"


@pytest.mark.parametrize(
    ("off", "told"),
    [
        (0.4, ""),
        (-3600.0, "set the clock, which was 3600 s behind"),
        (7.0, "set the clock, which was 7 s ahead"),
    ],
)
def test_a_clock_that_has_stood_still_is_set(monkeypatch: pytest.MonkeyPatch, off: float, told: str) -> None:
    monkeypatch.setattr(clock.time, "time", lambda: 1000.0)
    machine = Clock(off)
    assert clock.sync_clock(machine) == told  # type: ignore[arg-type]
    assert ("date --set=@1000.000" in machine.commands) is bool(told)


def test_one_machine_that_cannot_go_on_keeps_no_other_machine_paused(topology: Topology) -> None:
    machines = Machines()
    names = [machine.domain(topology.name) for machine in topology.machines]
    resume = machines.resume

    def broken(name: str) -> None:
        if name == names[1]:
            raise ProvisioningError("a virtual machine cannot go on", fact="no", remedy="none")
        resume(name)

    machines.resume = broken  # type: ignore[method-assign]
    with (
        pytest.raises(ProvisioningError, match="cannot go on"),
        machines.guests_paused(),
        checkpoint_store._standing_still(machines, topology),
    ):  # type: ignore[arg-type]
        assert machines.paused == names
    assert machines.paused == names[1:2]
