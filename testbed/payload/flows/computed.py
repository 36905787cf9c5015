"""Compares a switch's flows with those that a second ovn-controller computes into an empty switch (NET-01).

It runs as root on nodes. The second ovn-controller gets copies of the switch's database and of OVN's
southbound database, and a switch of its own without ports in the kernel (``--enable-dummy``), in a network of
its own. All files are in one private folder in memory, and all processes end with this program.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PREFIX = "testbed-flows-"
_LIVE, _CONTROLLER = "/run/openvswitch", "/run/ovn/ovn-controller"
_BRIDGE = "br-int"
_PATIENCE = 30.0  # seconds that one command, or the start of a program, may take
_PAUSE = 0.3  # seconds between two looks
_SHOWN = 60  # flows that are returned, and octets of each
_LENGTH = 600
_OUTPUT = 32 * 2**20  # octets of a command
_ROUNDS = 2  # a difference must be there in each of them
_DEATH = 1  # PR_SET_PDEATHSIG, linux/prctl.h
# Zones of connections and meters have numbers that each ovn-controller draws: where flows name them.
_ZONE = re.compile(r"(set_field:)(0x[0-9a-f]+|\d+)((?:/0xffff)?->reg1[123]\b)")
_METER = re.compile(r"\b(meter:|meter_id=)(\d+)")
_TABLE = re.compile(r" +tables? (\d+)(?:\.\.\.(\d+))?:(?: ditto)?")
_CONFIG = re.compile(r" +config=(\S+)")
_PORT = re.compile(r"^ \d+\(([^)]+)\):.*?^ +config: +(.*?)$", re.DOTALL | re.MULTILINE)


class Late(Exception):  # noqa: N818 - a fact about the machine
    """Something did not come in time; its text says what."""


def collect(request: dict[str, object]) -> dict[str, object]:
    """Return how many flows there are and must be, and those that are in one of the two alone.

    Args:
        request: ``remote`` of the southbound database, and ``keys`` (folder of the node's key and
            certificates).

    Returns:
        ``live`` and ``computed`` (numbers of flows), ``more`` and ``missing`` (flows, bounded), ``differing``
        (their number); or ``why`` there is no answer.
    """
    answer: dict[str, object] = {}
    more: set[str] | None = None
    missing: set[str] | None = None
    try:
        for _ in range(_ROUNDS):
            live, computed, again = _round(request)
            # What comes or goes meanwhile is no difference.
            more = (live & again) - computed if more is None else more & again - computed
            missing = computed - (live | again) if missing is None else missing & computed - (live | again)
            answer = {"live": len(live), "computed": len(computed)}
            if not more and not missing:
                break
    except (Late, OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
        return {"why": f"{type(error).__name__}: {error}"[:_LENGTH]}
    more, missing = more or set(), missing or set()
    return {
        **answer,
        "differing": len(more) + len(missing),
        "more": [flow[:_LENGTH] for flow in sorted(more)[:_SHOWN]],
        "missing": [flow[:_LENGTH] for flow in sorted(missing)[:_SHOWN]],
    }


def _round(request: dict[str, object]) -> tuple[set[str], set[str], set[str]]:
    """Return the live flows, those that are computed, and the live flows after that."""
    for name in os.listdir("/run"):
        if name.startswith(_PREFIX):  # of a program that was killed
            shutil.rmtree(f"/run/{name}", ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir="/run")
    second = _Second(folder)
    try:
        with open(f"{_CONTROLLER}.pid", encoding="ascii") as file:
            ours = (f"{_LIVE}/{_BRIDGE}.mgmt", f"{_CONTROLLER}.{int(file.read())}.ctl")
        live = _dumped(second, *ours)
        second.start(str(request["remote"]), str(request["keys"]))
        computed = _dumped(second, f"{folder}/{_BRIDGE}.mgmt", f"{folder}/ovn-controller.ctl")
        return live, computed, _dumped(second, *ours)
    finally:
        second.stop()
        shutil.rmtree(folder)


def _dumped(second: _Second, switch: str, control: str) -> set[str]:
    """Return all that OpenFlow can set in a switch, with names in the place of numbers that OVN draws.

    That is flows, meters, what tables do with a packet that no flow matches, fragments, and ports.

    Args:
        control: socket of the ovn-controller that has drawn the numbers.
    """
    place = f"unix:{switch}"
    zones: dict[int, list[str]] = {}
    for line in second.ran(["ovn-appctl", "-t", control, "ct-zone-list"]).splitlines():
        name, _, number = line.rpartition(" ")
        zones.setdefault(int(number), []).append(name)
    meters: dict[str, str] = {}
    for entry in second.ran(["ovs-ofctl", "-O", "OpenFlow15", "dump-meters", place]).split("meter=")[1:]:
        number, _, limits = entry.partition(" ")
        meters[number] = " ".join(limits.split())

    def zone(found: re.Match[str]) -> str:
        names = " and ".join(sorted(zones.get(int(found[2], 0), [f"unknown {found[2]}"])))
        return f"{found[1]}zone of {names}{found[3]}"

    def meter(found: re.Match[str]) -> str:
        return f"{found[1]}({meters.get(found[2], 'unknown')})"

    dump = ["ovs-ofctl", "-O", "OpenFlow15", "--no-names", "--no-stats", "dump-flows", place]
    flows = [flow.strip() for flow in second.ran(dump).splitlines() if "(xid=" not in flow]
    tables = second.ran(["ovs-ofctl", "-O", "OpenFlow11", "dump-tables", place])
    ports = second.ran(["ovs-ofctl", "-O", "OpenFlow15", "dump-ports-desc", place])
    return {
        *(_METER.sub(meter, _ZONE.sub(zone, flow)) for flow in flows),
        *(f"{number} meters {limits}" for limits, number in Counter(meters.values()).items()),
        *_misses(tables),
        *(f"port {name} {config.strip()}" for name, config in _PORT.findall(ports)),
        f"fragments {second.ran(['ovs-ofctl', 'get-frags', place]).strip()}",
    }


def _misses(text: str) -> list[str]:
    """Return what each table does with a packet that no flow matches.

    A table that is like the one before is told in short.
    """
    found: dict[int, str] = {}
    does = ""
    for line in text.splitlines():
        if named := _TABLE.fullmatch(line):
            first, last = int(named[1]), int(named[2] or named[1])
            found |= dict.fromkeys(range(first, min(last, 255) + 1), does)
        elif config := _CONFIG.fullmatch(line):
            does = config[1]
            found[max(found, default=0)] = does
    return [f"table {number} without a match: {does}" for number, does in found.items()]


class _Second:
    """A database server, a switch and an ovn-controller beside those of the node.

    Args:
        folder: theirs alone.

    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._server = f"unix:{folder}/db.sock"
        places = dict.fromkeys(
            (f"{name}_{kind}" for name in ("OVS", "OVN") for kind in ("RUNDIR", "LOGDIR", "DBDIR")), folder
        )
        self._environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **places}
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, remote: str, keys: str) -> None:
        """Start all three, and wait until the flows are computed.

        Raises:
            Late: they did not come.
        """
        files = []
        own = ["-p", f"{keys}/key.pem", "-c", f"{keys}/certificate.pem", "-C", f"{keys}/ca.pem"]
        for name, arguments in (
            ("Open_vSwitch", [f"unix:{_LIVE}/db.sock"]),
            ("OVN_Southbound", [remote]),
        ):
            file = f"{self._folder}/{name}.db"
            text = self.ran(["ovsdb-client", *own, "backup", *arguments, name])
            with open(file, "w", encoding="utf-8") as copy:
                copy.write(text)
            files.append(file)
        self._run("ovsdb-server", [f"--remote=p{self._server}", *files], "the copies of the databases")
        asked = self._vsctl("--format=json", "--columns=name,ofport", "list", "Interface")
        rows = json.loads(asked)["data"]
        same = [
            word
            for name, number in rows
            if isinstance(number, int) and 0 < number < 65280  # OFPP_MAX of OpenFlow 1.0; others are reserved
            for word in ("--", "set", "Interface", str(name), f"ofport_request={number}")
        ]
        # It draws numbers of zones of its own, so that two zones with one number are a difference; and it
        # knows no database but the copy.
        self._forget("Bridge", _BRIDGE, re.compile("ct-zone-.*"))
        self._forget("Open_vSwitch", ".", re.compile("ovn-.*remote.*"))
        self._vsctl(
            "clear", "Open_vSwitch", ".", "ssl",
            "--", "clear", "Open_vSwitch", ".", "manager_options",
            "--", "clear", "Bridge", _BRIDGE, "controller",
            "--", "set", "Open_vSwitch", ".", f"external_ids:ovn-remote={self._server}", *same,
        )  # fmt: skip
        self._run("ovs-vswitchd", [self._server, "--enable-dummy=override"], "the second switch")
        self._run("ovn-controller", [self._server], "the second ovn-controller")
        self._computed()

    def _forget(self, table: str, row: str, pattern: re.Pattern[str]) -> None:
        """Remove external ids of a row of the copied database."""
        held = json.loads(self._vsctl("--format=json", "--columns=external_ids", "list", table, row))
        names = [str(name) for name, _ in held["data"][0][0][1] if pattern.fullmatch(str(name))]
        if names:
            self._vsctl("remove", table, row, "external_ids", *(f'"{name}"' for name in names))

    def _computed(self) -> None:
        """Wait until the second ovn-controller has answered a new number with all flows installed."""
        sbctl = ["ovn-sbctl", f"--db={self._server}", "--no-leader-only"]
        system = self._vsctl("get", "Open_vSwitch", ".", "external_ids:system-id").strip().strip('"')
        number = int(self.ran([*sbctl, "get", "SB_Global", ".", "nb_cfg"])) + 1
        self.ran([*sbctl, "set", "SB_Global", ".", f"nb_cfg={number}"])
        end = time.monotonic() + 3 * _PATIENCE
        while int(self.ran([*sbctl, "get", "Chassis_Private", system, "nb_cfg"])) != number:
            if time.monotonic() > end:
                raise Late("the second ovn-controller has not computed its flows")
            time.sleep(_PAUSE)

    def _vsctl(self, *words: str) -> str:
        return self.ran(["ovs-vsctl", f"--db={self._server}", "--no-wait", *words])

    def _run(self, name: str, arguments: Sequence[str], what: str) -> None:
        """Start a program that stays, without a network, and wait for its socket of control."""
        control = f"{self._folder}/{name}.ctl"
        self._running.append(
            subprocess.Popen(  # noqa: S603 - a fixed program
                ["unshare", "-n", name, f"--unixctl={control}", "-vconsole:off", "-vsyslog:off", *arguments],
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=_ends_with_us,  # noqa: PLW1509 - this program has one thread
            )
        )
        end = time.monotonic() + _PATIENCE
        while not os.path.exists(control):
            if self._running[-1].poll() is not None or time.monotonic() > end:
                raise Late(f"{what} did not start")
            time.sleep(_PAUSE)

    def ran(self, command: Sequence[str]) -> str:
        """Return what a command prints.

        Raises:
            SubprocessError: it has failed, did not end in time, or prints too much.
        """
        with open(f"{self._folder}/errors", "w+b") as errors:
            program = subprocess.Popen(  # noqa: S603 - fixed commands
                ["timeout", "-k", "5", str(_PATIENCE), *command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            with program:
                text = program.stdout.read(_OUTPUT) if program.stdout else b""
                if len(text) == _OUTPUT:
                    program.kill()
            errors.seek(0)
            said = errors.read(_LENGTH // 2).decode(errors="replace").strip()
        if program.returncode:
            raise subprocess.SubprocessError(f"{command[0]} ended with {program.returncode}: {said}")
        return text.decode(errors="replace")

    def stop(self) -> None:
        """End all programs, the last one first."""
        for program in reversed(self._running):
            program.kill()
            program.wait()


def _ends_with_us() -> None:
    ctypes.CDLL(None).prctl(_DEATH, signal.SIGKILL, 0, 0, 0)
