"""The firewall of nodes in the kernel: no worker's account sends, but while a breach of PRC-05 is open."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checks.test_worker_network import test_workers_have_no_network as check
from testbed.verify.check import ATTRIBUTE, Breach

ROOT = Path(__file__).parents[2]
BREACHES: list[Breach] = [
    breach for breach in getattr(check, ATTRIBUTE).breaches if breach.name.startswith("the firewall")
]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("nft") is None, reason="needs root and nft"),
]

# A worker's account listens and sends in a network namespace that has the rules of a node.
PROGRAM = """
import json, socket, subprocess, sys
from types import SimpleNamespace
from testbed.payload.attacks import worker_network
from testbed.payload.attacks.attempts import tried
from tests.integration.test_worker_firewall import BREACHES
def sudo(commands):
    return SimpleNamespace(status=subprocess.run(["sh", "-c", commands], capture_output=True).returncode)
def must(commands):
    subprocess.run(["sh", "-c", commands], check=True)
must("ip link set lo up; nft -f playbooks/roles/firewall/files/nftables.conf")
server = socket.create_server(("127.0.0.1", 22))
worker = subprocess.Popen(["setpriv", "--reuid", "64142", "--regid", "64142", "--clear-groups", "cat"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE)
worker.stdin.write(b"x")
worker.stdin.flush()
worker.stdout.read(1)
context = SimpleNamespace(host=SimpleNamespace(sudo=sudo, must=must), guest=SimpleNamespace(uid=64142))
own = "its node", "127.0.0.1"
attempts = worker_network._sendings([(own[0], "tcp", own[1], 22), (own[0], "udp", own[1], 9)])
def look(breach):
    found = tried(attempts, lambda: worker_network._wear(worker.pid, profile=False))
    return [breach.in_force(context), *found.values()]
states = [("root", *tried(attempts).values())]
for breach in BREACHES:
    for step in (breach.close, breach.open, breach.close, breach.close):
        step(context)
        states.append((breach.name, *look(breach)))
worker.kill()
print(json.dumps(states))
"""


def test_an_account_of_a_worker_sends_only_while_the_firewall_lets_it() -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", PROGRAM],
        cwd=ROOT, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    (control, *states) = json.loads(done.stdout)
    assert control == ["root", "done", "done"]
    closed, opened = [False, "ECONNREFUSED", "EPERM"], [True, "done", "done"]
    assert states == [
        [breach.name, *state] for breach in BREACHES for state in (closed, opened, closed, closed)
    ]
    assert len(BREACHES) == 2
