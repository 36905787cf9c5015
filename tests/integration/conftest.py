"""Fixtures of the tests with real packets and real emulators."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from testbed.drivers.host import accounts
from testbed.drivers.host.process import as_root
from testbed.drivers.host.workspace import Workspace
from testbed.model.reachability import endpoints
from testbed.model.resolve import resolve
from testbed.topology_file.schema import Spec
from testbed.verify.observation import declared_flows, observe
from testbed.verify.probe import transport
from testbed.verify.probe.client import end_all
from tests.wire import Node, Switch, Wire

_NUMBERS = count()


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Two guests of one tenant, with one flow of each kind, and short timeouts.

    A fast machine needs no longer ones.
    """
    monkeypatch.setattr(observe, "_PATIENCE", 3)
    monkeypatch.setattr(transport, "_DOUBT", 0.5)
    monkeypatch.setattr(declared_flows, "_CONTROL", {"timeout": 1, "repeat": 2, "spacing": 0.1})
    tenant = {
        "networks": {"app": ["10.99.0.0/24", "fd00:99::/64"]},
        "guests": {"web": {}, "db": {}},
        "allow": ["web -> db tcp/5432", "web -> db udp/53", "web -> db icmp"],
    }
    spec = {"version": 1, "name": "veth", "nodes": {"node-a": {}}, "tenants": {"red": tenant}}
    made = Wire(resolve(Spec.model_validate(spec)), tmp_path)
    ends = endpoints(made.topology)
    holders = []
    try:
        for end in ends:
            program = "mount -t sysfs sys /sys; echo ready; exec sleep 600"
            holder = subprocess.Popen(
                ["unshare", "--net", "--mount", "sh", "-c", program], stdout=subprocess.PIPE
            )
            holders.append(holder)
            assert holder.stdout is not None
            holder.stdout.readline()
            made.pids[end.guest] = holder.pid
        names = (f"tbw{os.getpid()}n{next(_NUMBERS)}", f"tbw{os.getpid()}n{next(_NUMBERS)}")
        for name, end in zip(names, ends, strict=True):
            peer = ["peer", "name", "nic0", "netns", str(made.pids[end.guest])]
            subprocess.run(["ip", "link", "add", name, "type", "veth", *peer], check=True)
            subprocess.run(["ip", "link", "set", name, "promisc", "on", "up"], check=True)
        made.switch = Switch(names)
        made.node = Node(
            dict(zip((guest.nics[0].tap for guest in made.topology.guests), names, strict=True)),
            tmp_path / "node",
        )
        made.switch.start()
        for end in ends:
            made.run(end.guest, "ip", "link", "set", "nic0", "address", end.mac, "up")
            made.run(end.guest, "ip", "addr", "add", f"{end.address}/24", "dev", "nic0")
            made.run(end.guest, "ip", "addr", "add", f"{end.address6}/64", "dev", "nic0", "nodad")
        yield made
        end_all(made)  # type: ignore[arg-type]
        made.switch.ending = True
        made.switch.join()
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()  # which closes its pipe as well


@pytest.fixture
def lab_of_red(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A lab with one machine, in a folder that other accounts can traverse, unlike pytest's own."""
    if subprocess.run([*as_root(), "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this user has no subordinate ids, or may make no user namespaces")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o711)
        monkeypatch.setattr(accounts, "registry_folder", lambda: Path(name) / "registry")
        found = Workspace(Path(name) / "s", "red")
        found.claim()
        assert found.assign_account(Path(name), kvm=False) == ""
        found.create()
        found.make(found.machine("node"))
        yield found
        with found.locked():
            found.remove()
        assert not found.folder.exists()
