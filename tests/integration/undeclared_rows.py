"""Puts into OVN's real northbound database what no topology asks for, and takes it away as `up` does: python
undeclared_rows.py FOLDER

Call in a network and mount namespace of one's own. Prints as JSON what was told of it, and what was left
afterwards.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from northbound import _Place, _served, _wanted  # the benchmark serves the same database
from scale import topology

from testbed.drivers.host.workspace import Workspace
from testbed.drivers.pki import Authority
from testbed.drivers.places.controller import write_client
from testbed.engine.apply import perform
from testbed.engine.timing import Trace
from testbed.model.resolve import resolve
from testbed.model.topology import Plane
from testbed.plan.diff import diff
from testbed.plan.resources import Kind
from testbed.topology_file.loader import load

UNDECLARED = """
ovn-nbctl lr-add out -- lrp-add out up 0a:00:00:00:00:01 192.0.2.1/24 -- lr-nat-add out snat 192.0.2.1 10.0.0.0/24
ovn-nbctl lr-route-add out 0.0.0.0/0 192.0.2.254 -- lr-policy-add out 10 ip4 drop
ovn-nbctl lb-add balancer 192.0.2.9:80 10.0.0.2:80 -- ls-lb-add {switch} balancer
ovn-nbctl pg-add everybody {port} -- acl-add everybody to-lport 3000 tcp allow
ovn-nbctl mirror-add copy gre 1 both 192.0.2.3 -- lsp-attach-mirror {port} copy
ovn-nbctl lsp-add {switch} spy -- lsp-set-addresses spy unknown
ovn-nbctl ls-add foreign -- lsp-add foreign other
ovn-nbctl qos-add {switch} to-lport 5 ip rate=9
ovn-nbctl create dns records:a=192.0.2.4
ovn-nbctl create address_set name=some addresses=192.0.2.5
ovn-nbctl meter-add some drop 5 kbps
ovn-nbctl create copp name=some
ovn-nbctl create static_mac_binding logical_port=up ip=192.0.2.7 mac='"0a:00:00:00:00:09"'
ovn-nbctl dhcp-options-create 10.9.0.0/24
ovn-nbctl --log acl-add {switch} to-lport 7 udp drop
ovn-nbctl set nb_global . options:use_ct_inv_match=false ipsec=true
ovn-nbctl set logical_switch_port {port} options:requested-chassis=node type=localport
"""  # noqa: E501 - lines of a program


def main() -> int:
    """Do it, and print what was told and what was left."""
    folder = Path(sys.argv[1])
    lab = resolve(load(topology(2, 20), "some.yaml").spec)
    workspace = Workspace(folder, lab.name)
    workspace.create()
    authority, now = Authority(workspace.pki), datetime.now(UTC)
    client = authority.administrator("testbed", start=authority.born, now=now)
    write_client(workspace, client.private_key, client.certificate)
    subprocess.run(
        ["ip", "address", "add", f"{lab.controller.address(Plane.MANAGEMENT)}/32", "dev", "lo"], check=True
    )
    guest = lab.guests[0]
    names = {"switch": f"{guest.tenant}/{guest.nics[0].network}", "port": guest.nics[0].port}
    with _served(folder, authority, lab.controller.name) as root:
        place = _Place(
            lab, workspace, cast(Any, SimpleNamespace(name=lab.controller.name, close=lambda: None)), 9.0
        )
        wanted = _wanted(lab)
        perform(diff(wanted, {}), place, lambda _: None, Trace(), "")
        for line in UNDECLARED.strip().format(**names).splitlines():
            subprocess.run(["chroot", str(root), "sh", "-ec", line], check=True, stdout=subprocess.DEVNULL)
        place.close()
        found = place.observe()
        (told,) = (properties for key, properties in found.items() if key.kind is Kind.DATABASE)
        perform(diff(wanted, found), place, lambda _: None, Trace(), "")
        place.close()
        left = [str(action) for action in diff(wanted, place.observe()).actions]
        place.close()
    sys.stdout.write(json.dumps({"told": told, "left": left}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
