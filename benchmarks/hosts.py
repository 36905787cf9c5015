"""Looks at many hosts of others: network namespaces with an OpenSSH server each.

    python benchmarks/hosts.py [HOSTS]

Each host has network, process and mount namespaces of its own, and its own address on one bridge. One host
accepts connections and never speaks, one has no server, and every twentieth runs an emulator without any
wall. The program looks at one good host alone, then at all, and prints one object of JSON: seconds of both
looks, their ratio, memory of the largest process in KiB, and the number of hosts for each outcome. It exits
with 1 if a host has not the outcome that it must have. It needs root, sshd and qemu-system-x86_64. All hosts
live in namespaces of the program and end with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from testbed.drivers.host import process

_INSIDE = "--inside"  # the program runs in the namespaces that hold all hosts
_HANGS, _REFUSES = 3, 4  # numbers of the two hosts that do not answer
_OPEN_EACH = 20  # each such host runs an emulator without a wall
_READY_S = 60.0  # seconds until the last host has begun to listen
_LIMIT_S = 600.0  # seconds that a look may take
_EMULATOR = "qemu-system-x86_64 -machine none -nodefaults -display none -S"
_OWN_PROCESSES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_SILENT = "import socket; s = socket.create_server(('', 22)); held = [s.accept() for _ in range(9)]"
_SERVER = """\
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
PidFile none
"""
_CLIENT = """\
Host *
  User root
  IdentityFile {folder}/user
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known
"""


def _address(number: int) -> str:
    return f"10.88.{number // 250}.{number % 250 + 2}"


def _must(number: int) -> str:
    """Return the outcome that a host must have."""
    if number in (_HANGS, _REFUSES):
        return "no answer"
    return "fail" if number % _OPEN_EACH == 0 else "inconclusive"


def _run(*argv: str) -> None:
    process.run(argv, what="the hosts cannot be made", timeout=120)


def _keys(folder: Path, hosts: int) -> None:
    for name in ("host", "user"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    key = (folder / "host.pub").read_text()
    (folder / "known").write_text("".join(f"{_address(number)} {key}" for number in range(hosts)))
    (folder / "server").write_text(_SERVER.format(folder=folder))
    (folder / "client").write_text(_CLIENT.format(folder=folder))


def _start(number: int, folder: Path, server: str) -> subprocess.Popen[bytes]:
    """Start a host in namespaces of its own; its first process is what listens."""
    _run("ip", "netns", "add", f"h{number}")
    _run(*f"ip link add v{number} master fleet type veth peer name eth0 netns h{number}".split())
    _run("ip", "link", "set", f"v{number}", "up")
    listens = {
        _HANGS: f'exec {sys.executable} -c "{_SILENT}"',
        _REFUSES: "exec sleep infinity",
    }.get(number, f"exec {server} -D -e -f {folder}/server")
    emulator = f"{_EMULATOR} & " if _must(number) == "fail" else ""
    script = f"ip addr add {_address(number)}/16 dev eth0; ip link set eth0 up; {emulator}{listens}"
    return subprocess.Popen(
        [*f"ip netns exec h{number}".split(), *_OWN_PROCESSES, "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(folder / f"{number}.log").open("wb"),
    )


def _look(folder: Path, hosts: list[int]) -> tuple[float, int, list[dict[str, Any]]]:
    """Return seconds, KiB of the largest process, and what the tool says of each host."""
    program = str(Path(sys.executable).with_name("testbed"))
    words = [program, "audit", "--json", "-F", str(folder / "client"), *map(_address, hosts)]
    start = time.monotonic()
    with (folder / "answer").open("w+b") as answer:
        pid = subprocess.Popen(words, stdout=answer).pid
        _, _, used = os.wait4(pid, 0)
        answer.seek(0)
        return time.monotonic() - start, used.ru_maxrss, json.load(answer)


def _outcome(host: dict[str, Any]) -> str:
    verdicts = {control["verdict"] for control in host["controls"]}
    return next((word for word in ("fail", "inconclusive", "pass") if word in verdicts), "no answer")


def _inside(hosts: int) -> int:
    server = process.require("sshd", package="openssh-server")
    process.require("qemu-system-x86_64", package="qemu-system-x86")
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run")
    Path("/run/sshd").mkdir()
    _run("ip", "link", "add", "fleet", "type", "bridge")
    _run("ip", "addr", "add", "10.88.255.1/16", "dev", "fleet")
    _run("ip", "link", "set", "fleet", "up")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _keys(folder, hosts)
        started = [_start(number, folder, server) for number in range(hosts)]
        try:
            end = time.monotonic() + _READY_S
            while time.monotonic() < end and not all(
                number in (_HANGS, _REFUSES) or b"listening" in (folder / f"{number}.log").read_bytes()
                for number in range(hosts)
            ):
                time.sleep(0.2)
            alone, _, _ = _look(folder, [1])
            seconds, memory, found = _look(folder, list(range(hosts)))
        finally:
            for host in started:
                host.kill()
                host.wait()
    wrong = [
        {"host": host["host"], "must": _must(number), "is": _outcome(host)}
        for number, host in enumerate(found)
        if _outcome(host) != _must(number)
    ]
    figures = {
        "hosts": hosts,
        "alone_s": round(alone, 2),
        "all_s": round(seconds, 2),
        "ratio": round(seconds / alone, 1),
        "largest_process_kib": memory,
        "outcomes": Counter(_outcome(host) for host in found),
        "wrong": wrong,
    }
    print(json.dumps(figures))
    return 1 if wrong or len(found) != hosts else 0


def main() -> int:
    """Enter namespaces of the program's own, and measure there."""
    words = sys.argv[1:]
    if _INSIDE in words:
        return _inside(int(words[-1]))
    hosts = words[0] if words else "200"
    own = [*_OWN_PROCESSES, "--net"]
    return subprocess.run(
        [*own, sys.executable, __file__, _INSIDE, hosts], timeout=_LIMIT_S * 2, check=False
    ).returncode


if __name__ == "__main__":
    raise SystemExit(main())
