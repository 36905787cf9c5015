"""Kills ``up`` and ``check --prove`` at random moments and verifies the recovery.

    python benchmarks/kills.py LOG [KILLS] [--seconds N] [--seed TEXT] [--inside CONTROL:WORDS]…

Half of the kills are SIGKILL and half SIGTERM; a third of them hits ``up``, which starts from a checkpoint in
three of four cases. After each kill, ``plan`` must list the open breaches, ``up`` must repair the lab, the
next ``plan`` must be empty, and the checks whose breaches may have been in force must pass. Where ``plan``
and the checks have found nothing after the kill, ``up`` must have nothing to do, and they do not run again;
nor does ``plan`` after an ``up`` that had nothing to do. A folder, a process and a network namespace that do
not belong to the lab must be unchanged. Each kill is a line of JSON in LOG, so that a later call continues an
interrupted one. With ``--seconds`` the program ends after that time and takes the lab down.
``--inside "NET-08:speaks in the clear"``, which can be repeated, kills only while a breach of that control is
open whose name has those words.

At the end the program prints figures as JSON, and exits with 1 if something was wrong. The lab is
topologies/one-node.yaml below TESTBED_STATE_DIR, which no other process may use meanwhile. The program makes
the checkpoint ``kills`` and removes it at the end.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).with_name("testbed"))
ROOT = Path(__file__).parents[1]
TOPOLOGY, LAB = str(ROOT / "topologies/one-node.yaml"), "one-node"
# Controls whose breaches are all proven within a minute; slower ones would not show more.
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
_ENTER = 6.0  # seconds until a check begins to observe
_IN_VAIN = 10  # commands in a row that end before they are killed; then the program stops
_OPENING = 2.5  # seconds until a breach in the journal is open
_PATIENCE = 400  # seconds that any command may take
_STARTING = 8.0  # seconds until a command handles signals, on a busy machine
_BUILD = 1500  # seconds that `up` may take when it builds a lab from nothing, on a busy machine
_REFUSED = 5  # exit code of a check that gives no verdict
_SETTLED = 130  # exit code of a command that a signal ended
_LATE = 124  # exit code for a command that did not end in time, as of timeout(1)
_ROUND, _FROM_CHECKPOINT = 24, 18  # kills, and those of them whose `up` starts from the checkpoint
_ANY = "any breach"
_CHECK = 25.0  # seconds within which a `check` is killed at a random moment
_HUNTED = 0.7  # share of the commands `check` that are killed while a breach is in the journal
_CHECKPOINT = "kills"  # name of the checkpoint of this program


class Commands:
    """Runs commands of the tool and returns their outputs."""

    def __init__(self, state: Path) -> None:
        self.variables = {**os.environ, "TESTBED_STATE_DIR": str(state)}

    def run(self, *words: str, patience: float = _PATIENCE) -> tuple[int, str, str]:
        """Run a command and return its exit code, standard output and standard error.

        The exit code is 124 for a command that had not ended after `patience` seconds; it was killed.
        """
        try:
            done = subprocess.run(
                [PROGRAM, *words],
                check=False,
                capture_output=True,
                text=True,
                env=self.variables,
                timeout=patience,
            )
        except subprocess.TimeoutExpired:
            return _LATE, "", f"{words[0]} had not ended after {patience:.0f} s"
        return done.returncode, done.stdout, done.stderr

    def kill(self, due: Callable[[float], bool], number: int, *words: str) -> tuple[int | None, float]:
        """Run a command, send it a signal, and return its exit code and the seconds until the signal.

        If it had ended before, they are None and its duration.

        Args:
            due: returns whether the signal is due, for the seconds since the start.
            number: number of the signal.
            words: arguments of the command.

        """
        started = time.monotonic()
        with subprocess.Popen(
            [PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.variables
        ) as process:
            while not due(time.monotonic() - started):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                    return None, time.monotonic() - started
            sent = time.monotonic() - started
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                return process.wait(_PATIENCE), sent
            process.kill()
            return process.wait(), sent

    def plan(self) -> dict[str, Any]:
        """Return the plan, or an empty one with the text of the error.

        An `up` that was killed at once has left no lab, so the file is given and not the lab's name.
        """
        status, out, err = self.run("plan", TOPOLOGY, "--json")
        found: dict[str, Any] = (
            json.loads(out)
            if status == 0
            else {"empty": False, "actions": [], "breaches": [], "error": err[-300:]}
        )
        return found


class Bystanders:
    """A folder, a process and a network namespace that do not belong to the lab."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._folder, self._process = folder, process
        self._before = self._look()

    def touched(self) -> list[str]:
        """Return the names of the bystanders that have changed."""
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
    """Make the bystanders for the duration of the block."""
    mine = folder / "not-a-lab"
    mine.mkdir(exist_ok=True)
    (mine / "topology").write_text("somebody else's")
    script = "ip link add mine type bridge; echo ready; exec cat"  # it ends with this process
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
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


def _within(state: Path, words: str = "", delay: float = _OPENING) -> Callable[[float], bool]:
    """Return a predicate for `kill`: a breach with these words is in the journal for some seconds."""
    seen: list[float] = []

    def due(seconds: float) -> bool:
        if any(words in entry["breach"] for entry in _entries(state)):
            seen.append(seconds)
        return bool(seen) and seconds > seen[0] + delay

    return due


def _words(verb: str, number: int, control: str) -> tuple[str, ...]:
    """Return the command to kill; both signals hit each way of `up`."""
    if verb == "check":
        return ("check", LAB, "--prove", "--only", control)
    return ("up", TOPOLOGY, *(["--anew"] if number % _ROUND >= _FROM_CHECKPOINT else []))


def _moment(
    chance: random.Random, state: Path, inside: str, usual: float
) -> tuple[Callable[[float], bool], str]:
    """Return a predicate for `kill`, and a word about the moment that it chooses.

    Most commands `check` are killed while a breach is in the journal: how long it takes them to get there
    depends on the machine.

    Args:
        chance: random choices.
        state: folder of the labs.
        inside: see `one`.
        usual: duration of the command in seconds; 0 stands for a `check` of unknown duration.

    """
    if inside:
        return _within(state, inside.partition(":")[2]), inside
    if not usual and chance.random() < _HUNTED:
        return _within(state, delay=chance.uniform(0, 2 * _OPENING)), _ANY
    begin = 0.0 if usual else _ENTER
    seconds = chance.uniform(begin, max(begin + 1, usual or _CHECK))
    return lambda past: past > seconds, ""


def one(
    commands: Commands, state: Path, number: int, seed: str, usual: dict[str, float], inside: str = ""
) -> dict[str, Any]:
    """Kill one command, let the next commands repair the lab, and return the result.

    Args:
        commands: commands of the tool.
        state: folder of the labs.
        number: number of the kill.
        seed: seed of the random choices.
        usual: durations in seconds of commands that ended before the kill, by their last argument.
        inside: control and words of a breach, with a colon between them, during which to kill; if empty, the
            moment is random.

    """
    chance = random.Random(f"{seed}:{number}")
    name = "SIGKILL" if number % 2 else "SIGTERM"
    control = chance.choice(CONTROLS)
    verb = "up" if number % 3 == 0 and not inside else "check"
    control = inside.partition(":")[0] or control
    words = _words(verb, number, control)
    if verb == "up":
        commands.run("down", LAB)
    due, inside = _moment(chance, state, inside, usual.get(words[-1], 0.0 if verb == "check" else 60.0))
    in_force: list[dict[str, str]] = []

    def due_now(past: float) -> bool:
        if due(past):
            in_force[:] = _entries(state)
            return True
        return False

    started = time.monotonic()
    status, seconds = commands.kill(due_now, getattr(signal, name), *words)
    ended = time.monotonic()
    told: dict[str, Any] = {
        "number": number,
        "command": verb,
        "words": [word for word in words if word.startswith("--")],
        "signal": name,
        "control": control,
        "after_s": round(seconds, 1),
        "inside": inside,
        "killed": status is not None,
        "settled": round(ended - started - seconds, 1),
        "status": status,
        "in_force": in_force,
    }
    if status is None:
        usual[words[-1]] = seconds
    told["breaches"] = _entries(state)
    told |= _aftermath(commands, state, told)
    repaired = round(told.pop("repaired_at") - ended, 1)
    return told | {"repaired_s": repaired, "seconds": round(time.monotonic() - started, 1)}


def _aftermath(commands: Commands, state: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Return whether the next commands found and repaired the state that a kill left."""
    wrong = _ending(told)
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
    unnoticed, intact = _unnoticed(commands, told, plan, only)
    wrong += unnoticed
    failed = _repair(commands, state, intact=intact)
    at = time.monotonic()
    if not intact:
        status, out, _ = commands.run("check", LAB, *only)
        if status != 0:
            failed.append(f"after the repair: check ended with {status}: {out[-300:]}")
    return {
        "actions": [f"{item['verb']} {item['kind']} {item['name']}" for item in plan["actions"]][:12],
        "found": found,
        "repaired": not failed,
        "repaired_at": at,
        "unnoticed": bool(unnoticed),
        "wrong": wrong + failed,
    }


def _ending(told: dict[str, Any]) -> list[str]:
    """Return what is wrong with the end of a killed command."""
    if not told["killed"] or told["signal"] != "SIGTERM":
        return []
    # Python had not loaded the tool yet
    early = told["status"] == -signal.SIGTERM and told["after_s"] < _STARTING
    wrong = []
    if told["status"] != _SETTLED and not early:
        wrong.append(f"SIGTERM ended it with {told['status']}")
    if told["breaches"]:
        wrong.append("SIGTERM left a breach open")
    return wrong


def _unnoticed(
    commands: Commands, told: dict[str, Any], plan: dict[str, Any], only: list[str]
) -> tuple[list[str], bool]:
    """Return what nothing reported, and whether plan and checks found the lab as it must be."""
    left = told["breaches"]
    if left:
        status, _, err = commands.run("check", LAB, *only)
        noticed = status == _REFUSED and left[0]["breach"] in err
        return [] if noticed else [f"check gave a verdict with a breach in the journal: {status}"], False
    if told["command"] == "check" and plan["empty"]:
        status, out, _ = commands.run("check", LAB, *only)
        return [f"nothing told of an open wall: {out[-300:]}"] if status == 1 else [], status == 0
    return [], False


def _repair(commands: Commands, state: Path, *, intact: bool) -> list[str]:
    """Repair the lab and return what failed.

    Args:
        intact: plan and checks have found the lab as it must be, so that `up` must have nothing to do.

    """
    status, out, err = commands.run("up", TOPOLOGY, "--json", patience=_BUILD)
    if status != 0 or _entries(state):
        return [f"up ended with {status}, and {len(_entries(state))} breaches are left: {err[-300:]}"]
    actions = json.loads(out)["actions"]
    if not actions:  # it has observed the whole lab, as plan does
        return []
    if intact:
        return [f"plan was empty, and up did {actions} actions"]
    after = commands.plan()
    return [] if after["empty"] else [f"after up, plan has {after.get('error') or after['actions'][:2]}"]


def _spread(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return number, mean and maximum of the seconds between a kill and the end of the repair."""
    seconds = [row["repaired_s"] for row in rows if row["repaired"]]
    return {
        "kills": len(rows),
        "repaired": len(seconds),
        "mean_s": round(sum(seconds) / max(1, len(seconds)), 1),
        "worst_s": max(seconds, default=0.0),
    }


def _by_breach(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the same figures for each breach in the journal at the time of the signal."""
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for entry in row.get("in_force", row["breaches"]):
            rows_of.setdefault(f"{entry['control']}: {entry['breach']}", []).append(row)
    return {name: _spread(found) for name, found in sorted(rows_of.items())}


def _way(row: dict[str, Any]) -> list[str]:
    return [word for word in row["words"] if word == "--anew"]


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return sums and maxima of all kills in a log."""
    killed = [row for row in rows if row["killed"]]
    kinds = sorted({(row["command"], *_way(row), row["signal"]) for row in killed})
    ended = [row["settled"] for row in killed if row["signal"] == "SIGTERM"]
    return {
        "killed": len(killed),
        "by_command_and_signal": {
            " ".join(kind): _spread([r for r in killed if kind == (r["command"], *_way(r), r["signal"])])
            for kind in kinds
        },
        "by_breach_in_force": _by_breach(killed),
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
    """Return the processes whose command lines still contain the path of the lab's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (path / "cmdline").read_bytes()
            if f"{state}/{LAB}/".encode() in line:
                found.append(int(path.name))
    return found


def _prepare(commands: Commands) -> tuple[int, str, str]:
    """Build the lab, which marks the state folder as the tool's own, and save a checkpoint of it."""
    built = commands.run("up", TOPOLOGY, patience=_BUILD)
    known = json.loads(commands.run("checkpoint", "list", "--json")[1] or "[]")
    if any(item["name"] == _CHECKPOINT and not item["unusable"] for item in known):
        return built
    return built if built[0] != 0 else commands.run("checkpoint", "save", LAB, "--name", _CHECKPOINT)


def main() -> int:
    """Kill commands until the number is reached or the time is over."""
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
    status, _, err = _prepare(commands)
    if status != 0:
        print(err, file=sys.stderr)
        return 1
    with _bystanders(state) as others, given.log.open("a") as log:
        while sum(row["killed"] for row in rows) < given.kills and time.monotonic() < end:
            inside = (
                given.inside[number // 2 % len(given.inside)] if given.inside else ""
            )  # two kills in a row for each, since the signals alternate
            row = one(commands, state, number, given.seed, usual, inside)
            row["touched"] = others.touched()
            if given.inside and not row["killed"]:
                row["wrong"].append(f"the breach '{inside}' was not open for {_OPENING} s")
            row["wrong"] += [f"touched: {name}" for name in row["touched"]]
            rows.append(row)
            print(json.dumps(row), file=log, flush=True)
            number += 1
            if not any(row["killed"] for row in rows[-_IN_VAIN:]) and len(rows) >= _IN_VAIN:
                break
        commands.run("down", LAB)
        commands.run("checkpoint", "rm", _CHECKPOINT)
        left = _leftovers(state)
    print(json.dumps(figures(rows) | {"processes_left": left}, indent=1))
    return 1 if left or any(row["wrong"] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
