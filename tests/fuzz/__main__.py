"""Fuzz one parser for a time, with octets mutated from well-formed input.

Run: python -m tests.fuzz TARGET [--seconds 1200] [--seed 1]

Prints JSON: examples, seconds, and each crash with the octets (base64) that cause it. A crash is an
error that the target may not raise, or more than five seconds of a processor.
`tests/unit/untrusted/test_fuzzed_parsers.py` runs a short part of it, and every crash that was ever found.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from itertools import count
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from tests.fuzz.crash import crash
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS


def fuzz(name: str, seconds: float, first: int) -> dict[str, Any]:
    """Fuzz a target for a time; return figures and one example of each crash, by its last line."""
    target, began, crashes = TARGETS[name], time.monotonic(), dict[str, list[str]]()
    examples = 0

    def one(data: bytes) -> None:
        nonlocal examples
        examples += 1
        if found := crash(target, data):
            known = "".join(line for line in found.splitlines()[:-1] if "line " in line) or found[:40]
            if known not in crashes or len(data) < len(base64.b64decode(crashes[known][1])):
                crashes[known] = [found, base64.b64encode(data).decode()]

    rounds = settings(
        max_examples=2000,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    for number in count(first):
        seed(number)(rounds(given(mutated(target.seeds))(one)))()
        if time.monotonic() - began > seconds:
            break
    took = time.monotonic() - began
    return {
        "target": name,
        "examples": examples,
        "seconds": round(took),
        "examples a second": round(examples / took),
        "crashes": list(crashes.values()),
    }


def main() -> None:
    """Read the command line, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    found = fuzz(options.target, options.seconds, options.seed)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    sys.exit(1 if found["crashes"] else 0)


if __name__ == "__main__":
    main()
