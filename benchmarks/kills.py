"""Kills ``up`` and ``check --prove`` at random moments: python benchmarks/kills.py LOG [KILLS] [--seconds N]
[--seed TEXT]

Half of the kills are SIGKILL and half SIGTERM, a third of them of ``up``. After each: ``plan`` must name what
was left, ``up`` must repair it, ``plan`` must be empty then, and the checks whose breach may have been in
force must pass. A folder, a process and a network namespace of somebody else must be what they were. Each
kill is a line of JSON in LOG, so that the program goes on where it was ended; with ``--seconds`` it ends by
itself after that time, and takes the lab down. ``--inside "NET-08:speaks in the clear"``, which can be
repeated, kills inside those breaches of that control whose names have those words, and at no other moment.

At the end it prints figures as JSON, and exits 1 if something was wrong. The lab is topologies/one-node.yaml,
below TESTBED_STATE_DIR, which must be one that nobody else uses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).with_name("testbed"))
ROOT = Path(__file__).parents[1]
TOPOLOGY, LAB = str(ROOT / "topologies/one-node.yaml"), "one-node"
# Controls of which all breaches are proven in a minute; what takes minutes kills no better.
CONTROLS = (
    "PRC-01",
    "PRC-02",
    "CMP-02",
    "DEV-02",
    "STO-01",
    "STO-07",
    "ACC-02",
    "ACC-05",
    "NET-02",
    "NET-07",
    "NET-08",
    "NET-11",
)
_ENTER = 6.0  # seconds until a check begins to look
_IN_VAIN = 10  # commands in a row that end before they are killed
_OPENING = 2.5  # seconds until a breach that is written down is open
_PATIENCE = 400  # seconds that any command may take
_STARTING = 8.0  # seconds that a command may take until it handles signals, on a busy machine
_SETTLED = 130  # exit code of a command that a signal ended


class Commands:
    """The commands of the tool, with what each told."""

    def __init__(self, state: Path) -> None:
        self.variables = {**os.environ, "TESTBED_STATE_DIR": str(state)}

    def run(self, *words: str) -> tuple[int, str, str]:
        """Return exit code and both outputs."""
        done = subprocess.run(
            [PROGRAM, *words],
            check=False,
            capture_output=True,
            text=True,
            env=self.variables,
            timeout=_PATIENCE,
        )
        return done.returncode, done.stdout, done.stderr

    def kill(self, due: Callable[[float], bool], number: int, *words: str) -> int | None:
        """Return the exit code of a command that gets a signal when it is due; None if it had ended before.

        Args:
            due: is asked after so many seconds.

        """
        started = time.monotonic()
        with subprocess.Popen(
            [PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.variables
        ) as process:
            while not due(time.monotonic() - started):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                    return None
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                return process.wait(_PATIENCE)
            process.kill()
            return process.wait()

    def plan(self) -> dict[str, Any]:
        """Return the plan; one that cannot be made has the error's text."""
        status, out, err = self.run("plan", LAB, "--json")
        found: dict[str, Any] = (
            json.loads(out)
            if status == 0
            else {"empty": False, "actions": [], "breaches": [], "error": err[-300:]}
        )
        return found


class Bystanders:
    """Somebody else's folder, process and network namespace beside the lab."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._folder, self._process = folder, process
        self._before = self._look()

    def touched(self) -> list[str]:
        """Return what is not what it was."""
        return [name for name, value in self._look().items() if value != self._before[name]]

    def _look(self) -> dict[str, object]:
        lives = self._process.poll() is None
        links = Path(f"/proc/{self._process.pid}/net/dev").read_text().splitlines() if lives else []
        files = {str(path): path.read_bytes() for path in sorted(self._folder.rglob("*")) if path.is_file()}
        return {
            "folder": files,
            "process": lives,
            "namespace": sorted(line.split(":")[0].strip() for line in links if ":" in line),
        }


@contextmanager
def _bystanders(folder: Path) -> Iterator[Bystanders]:
    """Put them there while a block runs."""
    mine = folder / "not-a-lab"
    mine.mkdir(exist_ok=True)
    (mine / "topology").write_text("somebody else's")
    script = "ip link add mine type bridge; echo ready; exec sleep 100000"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield Bystanders(mine, process)
        finally:
            process.kill()


def _entries(state: Path) -> list[dict[str, str]]:
    found = []
    for path in sorted((state / LAB / "breaches").glob("*.json")):
        with suppress(FileNotFoundError):  # it may have been closed meanwhile
            found.append(json.loads(path.read_text()))
    return found


def _within(state: Path, words: str) -> Callable[[float], bool]:
    """Return what tells that a breach with these words in its name has been open for some seconds."""
    seen: list[float] = []

    def due(seconds: float) -> bool:
        if any(words in entry["breach"] for entry in _entries(state)):
            seen.append(seconds)
        return bool(seen) and seconds > seen[0] + _OPENING

    return due


def one(
    commands: Commands, state: Path, number: int, seed: str, usual: dict[str, float], inside: str = ""
) -> dict[str, Any]:
    """Kill one command at one moment, let the next ones find and repair it, and return what came of it.

    Args:
        usual: seconds that commands have taken which were not killed in time.
        inside: control and words of a breach, with a colon between them, in which to kill; any moment if
            empty.

    """
    chance = random.Random(f"{seed}:{number}")
    name = "SIGKILL" if number % 2 else "SIGTERM"
    control = chance.choice(CONTROLS)
    verb = "up" if number % 3 == 0 and not inside else "check"
    control = inside.partition(":")[0] or control
    words = ("up", TOPOLOGY) if verb == "up" else ("check", LAB, "--prove", "--only", control)
    if verb == "up":
        commands.run("down", LAB)
    begin = 0.0 if verb == "up" else _ENTER
    seconds = chance.uniform(begin, max(begin + 1, usual.get(words[-1], 60.0 if verb == "up" else 25.0)))
    due = _within(state, inside.partition(":")[2]) if inside else lambda past: past > seconds
    started = time.monotonic()
    status = commands.kill(due, getattr(signal, name), *words)
    told: dict[str, Any] = {
        "number": number,
        "command": verb,
        "signal": name,
        "control": control,
        "after_s": round(seconds, 1),
    }
    told |= {
        "inside": inside,
        "killed": status is not None,
        "settled": time.monotonic() - started - seconds,
        "status": status,
    }
    if status is None:
        usual[words[-1]] = time.monotonic() - started
    told["breaches"] = _entries(state)
    return told | _aftermath(commands, state, told) | {"seconds": round(time.monotonic() - started, 1)}


def _aftermath(commands: Commands, state: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Return whether what a kill left was found and repaired by the next commands."""
    wrong: list[str] = []
    early = (
        told["status"] == -signal.SIGTERM and told["after_s"] < _STARTING
    )  # Python had not loaded the tool yet
    if told["killed"] and told["signal"] == "SIGTERM" and told["status"] != _SETTLED and not early:
        wrong.append(f"SIGTERM ended it with {told['status']}")
    if told["killed"] and told["signal"] == "SIGTERM" and told["breaches"]:
        wrong.append("SIGTERM left a breach open")
    plan, left = commands.plan(), told["breaches"]
    named = len(plan.get("breaches", []))
    found = "error" not in plan and named == len(left)
    if not found:
        wrong.append(f"plan named {named} of {len(left)} breaches {plan.get('error', '')}")
    controls = sorted(
        {entry["control"] for entry in left}
        | ({told["control"]} if told["command"] == "check" else {"CMP-02"})
    )
    only = [word for control in controls for word in ("--only", control)]
    unnoticed = False
    if left:
        status, _, err = commands.run("check", LAB, *only)
        if status != 5 or left[0]["breach"] not in err:
            unnoticed = True
            wrong.append(f"check gave a verdict with a breach in the journal: {status}")
    elif told["command"] == "check" and plan["empty"]:
        status, out, _ = commands.run("check", LAB, *only)
        if status == 1:
            unnoticed = True
            wrong.append(f"nothing told of an open wall: {out[-300:]}")
    status, _, err = commands.run("up", TOPOLOGY)
    after = commands.plan()
    repaired = status == 0 and after["empty"] and not _entries(state)
    if not repaired:
        wrong.append(
            f"up ended with {status}, and plan has {after.get('error') or after['actions'][:2]}: {err[-300:]}"
        )
    status, out, _ = commands.run("check", LAB, *only)
    if status != 0:
        wrong.append(f"after the repair: check ended with {status}: {out[-300:]}")
    return {
        "actions": [f"{item['verb']} {item['kind']} {item['name']}" for item in plan["actions"]][:12],
        "found": found,
        "repaired": repaired,
        "unnoticed": unnoticed,
        "wrong": wrong,
    }


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what all kills of a log come to."""
    killed = [row for row in rows if row["killed"]]
    ended = [row["settled"] for row in killed if row["signal"] == "SIGTERM" and not row["inside"]]
    return {
        "kills": {
            f"{verb} {name}": count
            for (verb, name), count in sorted(Counter((r["command"], r["signal"]) for r in killed).items())
        },
        "ended_before": len(rows) - len(killed),
        "with_a_breach_left": sum(bool(row["breaches"]) for row in killed),
        "with_something_left": sum(bool(row["breaches"] or row["actions"]) for row in killed),
        "found": sum(row["found"] for row in killed),
        "repaired": sum(row["repaired"] for row in killed),
        "unnoticed": sum(row["unnoticed"] for row in killed),
        "touched": sum(bool(row["touched"]) for row in killed),
        "longest_end_after_sigterm_s": round(max(ended, default=0.0), 1),
        "seconds": round(sum(row["seconds"] for row in rows)),
        "wrong": [{"number": row["number"], "wrong": row["wrong"]} for row in rows if row["wrong"]],
    }


def _leftovers(state: Path) -> list[int]:
    """Return the processes that still name the state folder on their command line, this one and its parents
    excepted.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (path / "cmdline").read_bytes()
            if f"{state}/{LAB}/".encode() in line:
                found.append(int(path.name))
    return found


def main() -> int:
    """Kill until there are enough, or the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", default="kills")
    parser.add_argument("--inside", action="append", default=[])
    given = parser.parse_args()
    state = Path(os.environ["TESTBED_STATE_DIR"]).absolute()
    rows = [json.loads(line) for line in given.log.read_text().splitlines()] if given.log.exists() else []
    commands, end = Commands(state), time.monotonic() + given.seconds
    usual: dict[str, float] = {}
    number = max((row["number"] for row in rows), default=-1) + 1
    status, _, err = commands.run("up", TOPOLOGY)  # first: it marks the state folder as the tool's own
    if status != 0:
        print(err, file=sys.stderr)
        return 1
    with _bystanders(state) as others, given.log.open("a") as log:
        while sum(row["killed"] for row in rows) < given.kills and time.monotonic() < end:
            inside = (
                given.inside[number // 2 % len(given.inside)] if given.inside else ""
            )  # by each signal once
            row = one(commands, state, number, given.seed, usual, inside)
            row["touched"] = others.touched()
            if inside and not row["killed"]:
                row["wrong"].append(f"the breach '{inside}' was not open for {_OPENING} s")
            row["wrong"] += [f"touched: {name}" for name in row["touched"]]
            rows.append(row)
            print(json.dumps(row), file=log, flush=True)
            number += 1
            if not any(row["killed"] for row in rows[-_IN_VAIN:]) and len(rows) >= _IN_VAIN:
                break
        commands.run("down", LAB)
        left = _leftovers(state)
    print(json.dumps(figures(rows) | {"processes_left": left}, indent=1))
    return 1 if left or any(row["wrong"] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
