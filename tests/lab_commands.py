"""Runs the tool as a user does, for tests on a real lab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOOKS: list[tuple[float, str]] = []  # seconds and name of each case that was checked in this run of tests


def command(*words: str) -> list[str]:
    """Return the command line of the tool with some words."""
    return [str(Path(sys.executable).with_name("testbed")), *words]


def run(
    environment: dict[str, str], *words: str, timeout: float = 600, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the tool and return its outputs.

    Args:
        environment: all variables of its environment.
        words: its arguments.
        timeout: seconds.
        check: whether an exit code other than 0 is an error.

    Raises:
        subprocess.TimeoutExpired: it does not end in time.
        subprocess.CalledProcessError: it ended with another code than 0, and `check` was set.
    """
    return subprocess.run(
        command(*words),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
    )


def output_of(environment: dict[str, str], *words: str, expect: int = 0, timeout: float = 2400) -> str:
    """Run the tool, require an exit code, and return its standard output.

    Raises:
        AssertionError: it ended with another code; the message has the end of its outputs.
        subprocess.TimeoutExpired: it does not end in time.
    """
    done = run(environment, *words, timeout=timeout)
    assert done.returncode == expect, (
        f"{words} ended with {done.returncode}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


def checked(environment: dict[str, str], *words: str, expect: int = 0) -> Any:
    """Run `check --json` with further arguments, require an exit code, and return the result.

    Raises:
        AssertionError: it ended with another code; the message has each verdict but pass, with its reason.
        subprocess.TimeoutExpired: it does not end in time.
    """
    done = run(environment, "check", *words, "--json", timeout=3000)
    data = json.loads(done.stdout) if done.stdout else {"checks": [], "trouble": []}
    LOOKS.extend((check["duration_s"], f"{check['id']}.{check['case']}") for check in data["checks"])
    wrong = [
        (check["id"], check["case"], check["verdict"], check["reason"])
        for check in data["checks"]
        if check["verdict"] != "pass"
    ]
    assert done.returncode == expect, (
        f"check {words} ended with {done.returncode}: {wrong}; {data['trouble']}\n{done.stderr[-3000:]}"
    )
    return data


@contextmanager
def own_state(name: str, lab: str) -> Iterator[dict[str, str]]:
    """Yield an environment with a state folder of its own, so that the user's labs are left alone.

    Images are shared. After the block, the lab and the folder are removed.

    Args:
        name: begins the name of the folder.
        lab: name of the lab.
    """
    state = Path("/var/tmp" if os.geteuid() == 0 else Path.home()) / f"{name}-{os.getpid()}"
    variables = {**os.environ, "TESTBED_STATE_DIR": str(state)}
    yield variables
    run(variables, "down", lab)
    subprocess.run(["rm", "-rf", str(state)], check=False)
