"""What a machine does when it starts from saved memory: everything it was before is replaced."""

from __future__ import annotations

import importlib.util
import os
import struct
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from testbed.data_files import playbooks
from testbed.drivers.snapshots import capture

FILES = playbooks() / "roles/base/files"
BEFORE, MINE = "0" * 32, "c147864348365a2087682f7e88cbb743"


@pytest.fixture
def adopt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("adopt", FILES / "adopt.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ran = []
    monkeypatch.setattr(module, "run", lambda *argv, **_: module.ran.append(argv) or "")
    for name in ("IDENTITY", "MACHINE_ID", "JOURNAL", "SEED", "SWITCH_ID"):
        monkeypatch.setattr(module, name, tmp_path / name)
    (tmp_path / "IDENTITY").mkdir()
    (tmp_path / "IDENTITY/hostname").write_text("node-a\n")
    (tmp_path / "IDENTITY/machine-id").write_text(f"{MINE}\n")
    (tmp_path / "MACHINE_ID").write_text(f"{BEFORE}\n")
    (tmp_path / f"JOURNAL/{BEFORE}").mkdir(parents=True)
    (tmp_path / f"JOURNAL/{BEFORE}/system.journal").write_text("history")
    (tmp_path / "SWITCH_ID").write_text("an id that was made before\n")
    monkeypatch.setattr(module.socket, "sethostname", lambda name: module.ran.append(("sethostname", name)))
    return module


def test_names_and_ids_are_replaced_and_the_history_stays(adopt: ModuleType) -> None:
    adopt.become()
    assert ("sethostname", "node-a") in adopt.ran
    assert adopt.MACHINE_ID.read_text() == f"{MINE}\n"
    assert (adopt.JOURNAL / MINE / "system.journal").read_text() == "history"
    assert not adopt.SWITCH_ID.exists()
    (mount,) = [argv for argv in adopt.ran if argv[0] == "mount"]
    assert mount[-1] == "/proc/sys/kernel/random/boot_id"


def test_two_machines_get_different_boot_ids(adopt: ModuleType) -> None:
    found = set()
    for _ in range(2):
        adopt.MACHINE_ID.write_text(f"{BEFORE}\n")
        adopt.become()
        found.add((adopt.IDENTITY / "boot_id").read_text())
    assert len(found) == 2


def test_the_clock_is_what_the_clock_chip_says(
    adopt: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chip = struct.pack("9i", 56, 34, 12, 24, 10, 126, 2, 327, 0)
    monkeypatch.setattr(adopt.fcntl, "ioctl", lambda *_: chip)
    told: list[float] = []
    monkeypatch.setattr(adopt.time, "clock_settime", lambda _, seconds: told.append(seconds))
    monkeypatch.setattr(adopt, "Path", lambda _: tmp_path / "MACHINE_ID")
    adopt.set_clock()
    assert time.gmtime(told[0])[:6] == (2026, 11, 24, 12, 34, 56)


def test_what_was_fetched_before_the_save_is_no_more_than_a_part_of_the_new_entropy(
    adopt: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "hwrng"
    source.write_bytes(os.urandom(4096))
    monkeypatch.setattr(adopt, "Path", lambda path: source if "hwrng" in path else tmp_path / "urandom")
    asked: list[Any] = []
    monkeypatch.setattr(adopt.fcntl, "ioctl", lambda _, number, *rest: asked.append((number, *rest)))
    adopt.SEED.write_bytes(b"seed of the saved machine")
    adopt.reseed()
    (added, packed), (reseeded,) = asked
    assert (added, reseeded) == (adopt.RNDADDENTROPY, adopt.RNDRESEEDCRNG)
    bits, size = struct.unpack_from("ii", packed)
    assert packed[8:] == source.read_bytes()[: adopt.FRESH]
    assert size == adopt.FRESH
    assert bits // 8 + 128 < size
    assert len(adopt.SEED.read_bytes()) == 512
    assert b"saved machine" not in adopt.SEED.read_bytes()


def test_only_a_device_that_is_plugged_in_wakes(adopt: ModuleType) -> None:
    class Events:
        def __init__(self) -> None:
            self.left = [
                b"change@/devices/pci0\0ACTION=change\0SUBSYSTEM=pci\0",
                b"add@/module/x\0ACTION=add\0SUBSYSTEM=module\0",
                b"add@/devices/pci0\0ACTION=add\0SUBSYSTEM=pci\0SEQNUM=9\0",
                b"more",
            ]

        def recv(self, _: int) -> bytes:
            return self.left.pop(0)

    events = Events()
    adopt.wait_for_devices(events)
    assert events.left == [b"more"]


def test_the_boot_is_quiet_when_only_we_keep_it_waiting(
    adopt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [
        "7 testbed-adoption.service start running\n9 auditd.service start running\n",
        "7 testbed-adoption.service start running\n8 ssh.service start waiting\n",
        "7 testbed-adoption.service start running\n8 ssh.service start waiting\n",
    ]
    monkeypatch.setattr(adopt, "run", lambda *argv: answers.pop(0) if argv[0] == "systemctl" else "")
    monkeypatch.setattr(adopt.time, "sleep", lambda _: None)
    adopt.wait_for_quiet()
    assert answers == []


def test_what_roles_prepare_is_run_in_order(adopt: ModuleType, tmp_path: Path) -> None:
    adopt.PREPARATIONS = tmp_path / "before-saving.d"
    adopt.PREPARATIONS.mkdir()
    for name in ("switch", "firewall"):
        (adopt.PREPARATIONS / name).touch()
    adopt.prepare()
    assert adopt.ran == [(str(adopt.PREPARATIONS / name),) for name in ("firewall", "switch")]


def test_a_machine_with_something_to_share_is_not_saved(
    adopt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        f"{name} loaded active running It"
        for name in ("auditd.service", "systemd-journald.service", "testbed-adoption.service")
    ]
    monkeypatch.setattr(adopt, "run", lambda *_: "\n".join(lines))
    adopt.refuse_strangers()
    lines.append("ssh.service loaded active running OpenBSD Secure Shell server")
    with pytest.raises(OSError, match=r"would be saved with it: ssh\.service;"):
        adopt.refuse_strangers()


def test_the_outer_side_waits_for_what_the_machine_says(adopt: ModuleType) -> None:
    text = (FILES / "adopt.py").read_text()
    assert f'say(f"{capture._FAILED.removeprefix("testbed: ")} ' in text
    for line in (capture.CAN_BE_SAVED, capture.AWAKE):
        assert f'say("{line.removeprefix("testbed: ")}")' in text


def test_whoever_needs_an_identity_waits_for_it() -> None:
    unit = (FILES / "testbed-adoption.service").read_text().splitlines()
    before = {name for line in unit if line.startswith("Before=") for name in line.partition("=")[2].split()}
    assert {"sysinit.target", "network-pre.target"} <= before, (
        "every ordinary service is ordered after one of these"
    )
    assert {
        "systemd-networkd.service",
        "nftables.service",
        "ovsdb-server.service",
        "ovn-controller.service",
    } <= before
    assert {"ovn-ovsdb-server-nb.service", "ovn-ovsdb-server-sb.service", "ovn-northd.service"} <= before
    assert "ConditionPathExists=!/run/testbed" in unit
    assert "ConditionKernelCommandLine=testbed.golden" in unit


def test_what_stood_in_memory_is_not_saved(
    adopt: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  2000000 kB\nMemFree:  1000000 kB\n")
    cleared: list[int] = []
    opened = type("Opened", (), {"close": lambda _: None})()
    monkeypatch.setattr(adopt, "Path", lambda path: tmp_path / Path(path).name)
    monkeypatch.setattr(adopt.mmap, "mmap", lambda _, size, flags: cleared.append(size) or opened)
    adopt.forget()
    assert cleared == [1000000 * 1024 - adopt.SPARE]
