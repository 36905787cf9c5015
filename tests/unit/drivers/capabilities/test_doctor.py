"""Conclusions about the outer machine, from faked devices, canaries and programs."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from testbed.drivers.capabilities import canary, doctor
from testbed.drivers.host import memory, process
from testbed.drivers.images.cache import Image
from testbed.errors import InstrumentError, MachineError
from testbed.model.environment import Accelerator, Environment

QEMU = "/opt/qemu/bin/qemu-system-x86_64"
ABORT = (
    f"{QEMU} ended with status -6: qemu: warning: no feature\nqemu: error: failed to set MSR 0x10a\nqemu: "
    "Assertion `x'"
)
MIB = 2**20


class Machine:
    """A machine whose emulator gives fixed answers, and a record of the programs started."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = folder
        self.device = folder / "kvm"
        self.version = "QEMU emulator version 7.2.22"
        self.answers: dict[str, str | InstrumentError] = {"kvm": canary._MARK, "tcg": canary._MARK}
        self.nested = True
        self.started: list[tuple[str, str]] = []
        self.image = Image("node", "key-1", folder, {}, "")
        monkeypatch.setattr(canary, "_KVM", self.device)
        monkeypatch.setattr(canary, "_nested", lambda: self.nested)
        monkeypatch.setattr(process, "require", lambda program, *, package: QEMU)
        monkeypatch.setattr(process, "run", self.run)

    def run(self, argv: list[str], **_: Any) -> str:
        if "--version" in argv:
            return f"{self.version}\nCopyright\n"
        accelerator = argv[argv.index("-accel") + 1]
        self.started.append((accelerator, argv[argv.index("-cpu") + 1]))
        answer = self.answers[accelerator]
        if isinstance(answer, InstrumentError):
            raise answer
        return answer

    def environment(self, want: Accelerator | None = None) -> Environment:
        return canary.environment(self.image, self.cache, want=want)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def _fails(fact: str) -> InstrumentError:
    return InstrumentError("the canary does not start", fact=fact, remedy="repeat it by hand")


def test_kvm_that_boots_the_canary_is_used(machine: Machine) -> None:
    machine.device.touch()
    found = machine.environment()
    assert (found.outer, found.inner, found.slowness, found.emulator) == (
        Accelerator.KVM,
        Accelerator.KVM,
        1.0,
        QEMU,
    )
    assert machine.started == [("kvm", "host")]
    assert dict(found.versions) == {
        "kernel": platform.release(), "qemu": machine.version, "python": platform.python_version(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fact", "told"),
    [
        (f"{QEMU} took longer than 15 s", "took longer than 15 s"),
        (ABORT, "failed to set MSR 0x10a; qemu: Assertion"),
    ],
)
def test_kvm_that_lies_is_not_used_and_its_own_words_are_told(machine: Machine, fact: str, told: str) -> None:
    machine.device.touch()
    machine.answers["kvm"] = _fails(fact)
    found = machine.environment()
    assert (found.outer, found.inner) == (Accelerator.TCG, Accelerator.KVM)
    assert found.slowness >= 4.0
    assert machine.started == [("kvm", "host"), ("tcg", "EPYC")]
    assert told in found.note
    assert "warning" not in found.note
    assert "\n" not in found.note
    with pytest.raises(MachineError, match="KVM does not work here") as caught:
        machine.environment(Accelerator.KVM)
    assert told in caught.value.fact
    assert len(machine.started) == 2


def test_a_kernel_that_ends_without_the_mark_has_not_started(machine: Machine) -> None:
    machine.device.touch()
    machine.answers["kvm"] = "Kernel panic - not syncing"
    found = machine.environment()
    assert found.outer is Accelerator.TCG
    assert "Kernel panic" in found.note


def test_kvm_without_nesting_is_not_used(machine: Machine) -> None:
    machine.device.touch()
    machine.nested = False
    found = machine.environment()
    assert found.outer is Accelerator.TCG
    assert "nested" in found.note


def test_no_device(machine: Machine) -> None:
    assert machine.environment().note == f"{machine.device} is missing"
    assert machine.started == [("tcg", "EPYC")]


def test_a_device_that_is_not_ours(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.device.touch()
    monkeypatch.setattr(canary.os, "access", lambda path, mode: False)
    assert "cannot be opened by this user" in machine.environment().note


def test_emulation_on_demand_leaves_kvm_alone(machine: Machine) -> None:
    machine.device.touch()
    assert machine.environment(Accelerator.TCG).outer is Accelerator.TCG
    assert machine.environment(Accelerator.TCG).note == f"{machine.device} is there and not used"
    assert machine.started == [("tcg", "EPYC")]
    assert machine.environment().outer is Accelerator.KVM


def test_nothing_boots(machine: Machine) -> None:
    machine.answers["tcg"] = _fails(ABORT)
    with pytest.raises(MachineError, match="under emulation") as caught:
        machine.environment()
    assert "failed to set MSR" in caught.value.fact
    assert not (machine.cache / "canary.json").exists()


@pytest.mark.parametrize("change", ["nothing", "qemu", "image", "device", "kernel", "torn file"])
def test_the_answer_is_kept_until_something_changes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    first = machine.environment()
    if change == "qemu":
        machine.version = "QEMU emulator version 10.0.0"
    elif change == "image":
        machine.image = Image("node", "key-2", machine.cache, {}, "")
    elif change == "device":
        machine.device.touch()
    elif change == "kernel":
        monkeypatch.setattr(platform, "release", lambda: "9.9")
    elif change == "torn file":
        (machine.cache / "canary.json").write_text('{"key": [')
    second = machine.environment()
    assert len(machine.started) == (1 if change == "nothing" else 2)
    if change == "nothing":
        assert second == first
    assert json.loads((machine.cache / "canary.json").read_text())["outer"] == second.outer


V2 = "0::/user.slice/job\n"
V1 = "3:cpu,cpuacct:/x\n2:memory:/docker/a:b\n"


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        (None, {}, 8),
        (V2, {"user.slice/job/memory.max": "max"}, 8),
        (V2, {"user.slice/job/memory.max": str(4 * MIB)}, 4),
        (V2, {"user.slice/job/memory.max": "max", "user.slice/memory.max": str(3 * MIB)}, 3),
        (V2, {"user.slice/job/memory.max": str(64 * MIB)}, 8),
        ("0::/\n", {"memory.max": str(5 * MIB)}, 5),
        (V1, {"memory/docker/a:b/memory.limit_in_bytes": str(2 * MIB)}, 2),
        (V1, {"memory/docker/a:b/memory.limit_in_bytes": "9223372036854771712"}, 8),
    ],
)
def test_memory_is_what_the_control_groups_leave(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, groups: str | None, limits: dict[str, str], expected: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemFree: 1 kB\nMemTotal:       8192 kB\n")
    if groups is not None:
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in limits.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    assert memory.total() == expected * MIB


def test_doctor_goes_on_when_qemu_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> str:
        raise MachineError("cannot run QEMU", fact="libslirp.so.0: cannot open shared object file", remedy="")

    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: QEMU)
    monkeypatch.setattr(process, "run", broken)
    found = doctor._qemu()
    assert (found.ok, "libslirp" in found.fact) == (False, True)


@pytest.mark.parametrize(("number", "ok"), [(8_010_000, False), (9_000_000, True), (11_003_000, True)])
def test_doctor_wants_libvirt_9(monkeypatch: pytest.MonkeyPatch, number: int, ok: bool) -> None:
    monkeypatch.setattr(doctor, "library_version", lambda: number)
    assert doctor._libvirt().ok is ok


def test_doctor_names_everything_that_is_missing_in_one_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nobody(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(doctor.pwd, "getpwnam", nobody)
    monkeypatch.setattr(doctor, "_TUN", tmp_path / "tun")
    monkeypatch.setattr(memory, "bound", lambda: (512 * MIB, None))
    findings = doctor.examine(tmp_path / "cache", tmp_path / "state")
    wrong = {finding.name for finding in findings if not finding.ok}
    programs = {f"program {program}" for program, _ in doctor._PROGRAMS}
    assert wrong >= programs | {
        "QEMU version",
        "account libvirt-qemu",
        f"device {tmp_path / 'tun'}",
        "namespaces",
        "memory",
    }
    assert all(finding.fact and finding.remedy for finding in findings if not finding.ok)
    with pytest.raises(MachineError) as caught:
        doctor.require(tmp_path / "cache", tmp_path / "state")
    assert all(name in caught.value.fact for name in wrong)


@pytest.mark.parametrize(
    ("version", "ok"), [("7.1.0", False), ("7.2.0", True), ("10.0.2", True), ("unknown", False)]
)
def test_doctor_compares_versions_as_numbers(monkeypatch: pytest.MonkeyPatch, version: str, ok: bool) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: QEMU)
    monkeypatch.setattr(
        process, "run", lambda *_, **__: f"QEMU emulator version {version} (Debian)\nCopyright"
    )
    assert doctor._qemu().ok is ok


def test_doctor_says_how_to_permit_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> str:
        raise MachineError("no", fact="unshare failed: Operation not permitted", remedy="")

    monkeypatch.setattr(process, "run", refused)
    found = doctor._namespaces()
    assert not found.ok
    assert "Operation not permitted" in found.fact
    for word in (
        "unprivileged_userns_clone",
        "apparmor_restrict_unprivileged_userns",
        "uidmap",
        "--add-subuids",
    ):
        assert word in found.remedy


APPARMOR = "apparmor_restrict_unprivileged_userns"
ROOT_STATUS = {"proc/self/status": "Name:\tx\nCapEff:\t000001ffffffffff\n"}
CONTAINER = {"proc/self/status": "Name:\tx\nCapEff:\t00000000a80425fb\n"}
SUBIDS = {"etc/subuid": "1234:100000:65536\n", "etc/subgid": "1234:100000:65536\n"}
CAUSES = [
    (0, CONTAINER, "unshare failed: Operation not permitted", {"CAP_SYS_ADMIN"}),
    (0, ROOT_STATUS, "unshare: mount /proc failed: Operation not permitted", {"systempaths=unconfined"}),
    (
        0,
        {**ROOT_STATUS, "sys/fs/selinux/enforce": "1"},
        "unshare failed: Permission denied",
        {"SELinux is enforcing"},
    ),
    (
        0,
        {**ROOT_STATUS, "sys/fs/selinux/enforce": "0"},
        "unshare failed: Permission denied",
        {"usermod", "apparmor_restrict"},
    ),
    (
        1234,
        {**SUBIDS, "proc/sys/user/max_user_namespaces": "0"},
        "No space left on device",
        {"user.max_user_namespaces=15000"},
    ),
    (
        1234,
        {**SUBIDS, "proc/sys/kernel/unprivileged_userns_clone": "0"},
        "not permitted",
        {"unprivileged_userns_clone=1"},
    ),
    (1234, {**SUBIDS, f"proc/sys/kernel/{APPARMOR}": "1"}, "not permitted", {f"{APPARMOR}=0"}),
    (1234, {"etc/subuid": "1234:1:2\n"}, "newgidmap failed", {"--add-subgids"}),
    (1234, {}, "newuidmap failed", {"--add-subuids", "--add-subgids"}),
    (1234, {**SUBIDS, "sys/fs/selinux/enforce": "1"}, "Permission denied", {"SELinux is enforcing"}),
]
REMEDIES = {
    "CAP_SYS_ADMIN", "systempaths=unconfined", "SELinux is enforcing", "user.max_user_namespaces=15000",
    "unprivileged_userns_clone=1", f"{APPARMOR}=0", "--add-subuids", "--add-subgids",
}  # fmt: skip


@pytest.mark.parametrize(("uid", "files", "fact", "expected"), CAUSES)
def test_doctor_gives_the_remedy_of_the_cause_that_is_there(
    uid: int,
    files: dict[str, str],
    fact: str,
    expected: set[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def refused(*_: object, **__: object) -> str:
        raise MachineError("no", fact=fact, remedy="")

    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(process, "run", refused)
    monkeypatch.setattr(doctor, "_ROOT", tmp_path)
    monkeypatch.setattr(doctor.os, "geteuid", lambda: uid)
    found = doctor._namespaces()
    assert (found.ok, found.fact) == (False, fact)
    assert all(word in found.remedy for word in expected)
    if expected <= REMEDIES:
        assert {word for word in REMEDIES if word in found.remedy} == expected


@pytest.mark.parametrize(
    ("groups", "file", "told"),
    [
        (V2, "sys/fs/cgroup/user.slice/memory.max", "control groups of version 2"),
        (V1, "sys/fs/cgroup/memory/docker/a:b/memory.limit_in_bytes", "control groups of version 1"),
        (V1, "", "give the machine 6 GiB"),
        ("", "", "give the machine 6 GiB"),
    ],
)
def test_doctor_says_whether_the_machine_or_a_control_group_is_too_small(
    groups: str, file: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal:       {(8 if file else 4) * 2**20} kB\n")
    (tmp_path / "proc/self/cgroup").write_text(groups)
    if file:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(f"{2 * 2**30}\n")
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    found = doctor._memory()
    assert (found.ok, told in found.remedy, str(tmp_path / file) in found.fact) == (False, True, bool(file))


@pytest.mark.parametrize(
    ("baked", "free", "ok"), [(False, 11, False), (False, 13, True), (True, 3, True), (True, 1, False)]
)
def test_doctor_wants_space_for_what_is_still_to_be_baked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, baked: bool, free: int, ok: bool
) -> None:
    if baked:
        (tmp_path / "node-x").mkdir()
        (tmp_path / "node-x/manifest.json").touch()
    usage = type(doctor.shutil.disk_usage(tmp_path))(2**40, 0, free * 2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert doctor._space(tmp_path).ok is ok


def test_programs_are_found_where_an_ordinary_users_login_does_not_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Debian keeps mke2fs and its like out of the PATH of ordinary users."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    told = process.run(["sh", "-c", "echo $PATH"], what="nothing", timeout=10)
    assert {"/usr/sbin", "/sbin"} <= set(told.strip().split(":"))
