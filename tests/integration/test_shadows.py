"""Rows of a real OVN database with a name or label of ours are drift, and `up` removes them.

No row of ours is removed with them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from testbed.drivers.host.content_store import remove_tree
from testbed.drivers.host.process import as_root
from testbed.drivers.host.workspace import cache_root

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, subprocess, sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, "benchmarks")
from northbound import _Place, _served, _wanted
from testbed.engine.apply import perform
from testbed.drivers.places.controller import write_client
from testbed.drivers.pki import Authority
from testbed.drivers.host.workspace import Workspace
from testbed.model.resolve import resolve
from testbed.model.topology import Plane
from testbed.plan.diff import diff
from testbed.topology_file.loader import read
from testbed.engine.timing import Trace

folder, lab = Path(sys.argv[1]), resolve(read(Path("topologies/one-node.yaml")).spec)
workspace = Workspace(folder, lab.name)
workspace.create()
authority = Authority(workspace.pki)
client = authority.administrator("testbed", start=authority.not_before, now=datetime.now(UTC))
write_client(workspace, client.private_key, client.certificate)
subprocess.run(["ip", "address", "add", f"{lab.controller.address(Plane.MANAGEMENT)}/32", "dev", "lo"], check=True)
web = lab.guests[0].nics[0].port
inport, mark = f'match="inport == \\\\"{web}\\\\""', f"external_ids:testbed={lab.name}"
SHADOWS = {
    "a switch": ["create", "logical_switch", "name=red/app", mark, "other_config:subnet=10.0.0.0/8"],
    "a port": ["--id=@p", "create", "logical_switch_port", "name=evil", mark, "external_ids:resource=red/web/app", "--",
               "add", "logical_switch", "blue/app", "ports", "@p"],
    "DHCP settings": ["create", "dhcp_options", "cidr=10.0.0.0/24", "external_ids:switch=red/app", "options:router=169.254.169.254"],
    "DHCP settings that a port has": ["--id=@d", "create", "dhcp_options", "cidr=10.0.0.0/24", "external_ids:switch=red/app", "--",
                                      "set", "logical_switch_port", web, "dhcpv4_options=@d"],
    "a limit": ["--id=@q", "create", "qos", "direction=from-lport", "priority=2000", inport, "bandwidth:rate=900000", "--",
                "add", "logical_switch", "red/app", "qos_rules", "@q"],
    "the same limit": ["--id=@q", "create", "qos", "direction=from-lport", "priority=1000", inport, "bandwidth:rate=900000", "--",
                       "add", "logical_switch", "red/app", "qos_rules", "@q"],
    "a rule": ["--id=@r", "create", "acl", "direction=from-lport", "priority=1", "match=1", "action=drop", "--",
               "add", "logical_switch", "red/app", "acls", "@r"],
}
found = {}
with _served(folder, authority, lab.controller.name) as root:
    place = _Place(lab, workspace, SimpleNamespace(name=lab.controller.name, close=lambda: None), 90.0)
    wanted = _wanted(lab)
    perform(diff(wanted, {}), place, lambda _: None, Trace(), "")
    before = place.observe()
    find = ["--bare", "--columns=_uuid", "find", "dhcp_options", "external_ids:switch=red/app"]
    settings = subprocess.run(["chroot", str(root), "ovn-nbctl", *find], check=True, capture_output=True, text=True)
    range_ = ["set", "dhcp_options", settings.stdout.strip(), "cidr=10.7.0.0/24"]
    for name, row in {"another range of DHCP": range_, **SHADOWS}.items():
        place.close()
        subprocess.run(["chroot", str(root), "ovn-nbctl", *row], check=True, stdout=subprocess.DEVNULL)
        plan = diff(wanted, place.observe())
        perform(plan, place, lambda _: None, Trace(), "")
        place.close()
        after = place.observe()
        found[name] = [[str(action) for action in plan.actions], [str(action) for action in diff(wanted, after).actions], after == before]
    place.close()
print(json.dumps(found))
"""  # noqa: E501 - lines of a program


def test_a_second_row_is_drift_and_is_removed() -> None:
    if not list(cache_root().glob("base-controller-*.tar")):
        pytest.skip(f"{cache_root()} has no controller image; `testbed image bake` makes one")
    folder = Path(tempfile.mkdtemp(prefix="tb", dir="/var/tmp"))
    try:
        argv = [*as_root("--net"), sys.executable, "-c", PROGRAM, str(folder)]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    finally:
        remove_tree(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 8
    for name, (drift, left, same) in found.items():
        assert drift, f"{name} is not seen"
        assert left == [], f"{name} stays"
        assert same, f"{name} took something of ours with it"
