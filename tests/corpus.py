"""Hostile topology files, and the promises that each must keep.

Run: python -m tests.corpus [--count 1500] [--seed 1]

Files are mutations of the shipped topologies (of their values and of their text), files of other tools, and
files that are made to be expensive. Each is validated by the real command in a process of its own. Prints
JSON: files, exit codes, the most seconds, MiB and octets of output that one took, and every broken promise.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import re
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed.cli.main import main as tool

TOPOLOGIES = sorted((Path(__file__).parents[1] / "topologies").glob("*.yaml"))
# Seconds (a busy machine takes three times as many), MiB beside those of the loaded program, octets.
CPU, MEMORY, OUTPUT = 15.0, 300 - 60, 64 * 1024
_PYTHON = re.compile(
    r"Traceback|\bNone\b|\bTrue\b|\bFalse\b|\bdict(ionary)?\b|\binstance\b|Spec\b|\bstr\b|\bint\b|"
    r"<class|object "
    r"at 0x|[eE]rror\("
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")
_PLACE = re.compile(r":([1-9][0-9]*): ")

HOSTILE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    65536,
    2**63,
    10**50,
    1.5,
    float("inf"),
    float("nan"),
    "",
    " ",
    "\n",
    "x" * 199,
    "x" * 5000,
    "a" * 20,
    "a" * 21,
    "-a",
    "A",
    "ä",
    "\u202e",
    "\x1b[31mred",
    "[bold]x[/]",
    "\\[/x]",
    "::error::x",
    "${HOME}",
    "$(id)",
    "../x",
    "web -> db",
    "web -> db tcp/0",
    "web -> db tcp/99999",
    "db -> web sctp/1",
    "web->db tcp/1",
    "web -> web icmp",
    "64",
    "64 MB",
    "0 MiB",
    "1 KiB",
    "16777216 GiB",
    "64 MiB\n",
    "1e3 MiB",
    "10.0.0.0/33",
    "10.0.0.1/24",
    "::/0",
    "fd00::/64",
    "127.0.0.0/8",
    "224.0.0.0/4",
    "0.0.0.0/0",
    "1.2.3",
    "controller",
    "outer",
    "null",
    "yes",
    "1_000",
    "0x10",
    "2026-11-28",
    [],
    {},
    [[]],
    [{}],
    [None],
    ["a", "a"],
    {"a": None},
    {"": 1},
    {"x-extra": 1},
    {"a b": {}},
    ["10.0.0.0/24"] * 3,
]
OTHERS = {
    "compose": (
        "services:\n  web: {image: nginx, ports: ['80:80'], networks: [front]}\nnetworks: {front: {}}\n"
    ),
    "kubernetes": (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: web, image: nginx}]\n"
    ),
    "two-documents": "apiVersion: v1\nkind: Namespace\n---\napiVersion: v1\nkind: Pod\n",
    "containerlab": (
        "name: lab\ntopology:\n  nodes:\n    r1: {kind: linux, image: alpine}\n  links: [{endpoints: "
        "['r1:e1', 'r2:e1']}]\n"
    ),
    "netlab": "provider: libvirt\nnodes: [r1, r2]\nlinks: [r1-r2]\nmodule: [ospf]\n",
    "ansible": "all:\n  hosts: {node-a: {ansible_host: 192.0.2.1}}\n  vars: {x: !vault y}\n",
    "cloud-init": "#cloud-config\nusers: [{name: admin, sudo: 'ALL=(ALL) NOPASSWD:ALL'}]\n",
    "terraform": 'resource "libvirt_domain" "web" {\n  memory = 512\n}\n',
    "vagrant": 'Vagrant.configure("2") do |config|\n  config.vm.box = "x"\nend\n',
    "ini": "[lab]\nname = two\n",
    "toml": '[lab]\nname = "two"\nnodes = ["a"]\n',
    "json": '{"version": 1, "name": "lab"}',
    "xml": "<domain type='kvm'><name>web</name></domain>\n",
    "html": "<!doctype html><p>404 not found\n",
    "shell": "#!/bin/sh\nset -eu\necho hello\n",
    "merge": "a: &a {version: 1}\nb: {<<: *a}\n",
    "include": "version: 1\nx: !include other.yaml\n",
    "python-tag": "!!python/object/apply:os.system ['true']\n",
    "variable": "version: 1\nname: ${LAB}\nnodes: {'${NODE}': {}}\n",
    "byte-order-mark": "\ufeffversion: 1\nname: lab\n",
    "tabs": "version:\t1\nnodes:\n\tnode-a: {}\n",
    "only-comment": "# nothing\n",
    "scalar": "42\n",
    "list": "- version: 1\n",
    "null-octet": "version: 1\x00\n",
    "bell": "version: 1\nname: \x07\n",
    "empty": "",
    "null-node": (
        "version: 1\nname: lab\nnodes: {node-a: }\ntenants:\n  red: {networks: {app: 10.0.0.0/24}, guests: "
        "{web: }}\n"
    ),
}


def _head(tail: str) -> str:
    return f"version: 1\nname: lab\nnodes: {{node-a: {{}}}}\n{tail}"


EXPENSIVE: dict[str, Callable[[], str]] = {
    "alias bomb": lambda: "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(12)
    ),
    "long alias": lambda: "a: &a [" + "x, " * 3000 + "x]\nb: [" + "*a, " * 2000 + "*a]\n",
    "alias of mapping": lambda: (
        "a: &a {" + ", ".join(f"k{n}: 1" for n in range(2000)) + "}\nb: [" + "*a, " * 2000 + "*a]\n"
    ),
    "shared guest": lambda: _head(
        "tenants:\n  red:\n    networks: {app: 10.0.0.0/16}\n    guests:\n      g: &g {cpus: 1, node: x}\n"
        + "".join(f"      g{n}: *g\n" for n in range(5000))
    ),
    "deep list": lambda: "[" * 100_000,
    "deep mapping": lambda: "{a: " * 50_000,
    "closed deep list": lambda: "[" * 900 + "]" * 900,
    "deep block": lambda: "".join(f"{' ' * n}a:\n" for n in range(600)),
    "flows": lambda: _head(
        "tenants:\n  red:\n    networks: {app: 10.0.0.0/24}\n    guests: {a: {}, b: {}}\n    allow:\n"
        + "".join(f"    - a -> b tcp/{n + 1}\n" for n in range(20_000))
    ),
    "same flow": lambda: _head(
        "tenants:\n  red:\n    networks: {app: 10.0.0.0/24}\n    guests: {a: {}, b: {}}\n    allow:\n"
        + "    - a -> b tcp/1\n" * 20_000
    ),
    "wrong flows": lambda: _head(
        "tenants:\n  red:\n    networks: {app: 10.0.0.0/24}\n    guests: {a: {}, b: {}}\n    allow:\n"
        + "".join(f"    - g{n} -> h{n} tcp/1\n" for n in range(20_000))
    ),
    "no flows": lambda: _head(
        "tenants:\n  red:\n    networks: {app: 10.0.0.0/24}\n    guests: {a: {}, b: {}}\n    allow: ["
        + ", ".join(["x"] * 50_000)
        + "]\n"
    ),
    "unknown keys": lambda: "version: 1\n" + "".join(f"key{n}: 1\n" for n in range(200_000)),
    "unknown keys of guests": lambda: _head(
        "tenants:\n  red:\n    networks: {app: 10.0.0.0/16}\n    guests:\n"
        + "".join(f"      g{n}: {{cpu: 1, ram: 2, disk: 3}}\n" for n in range(20_000))
    ),
    "unknown nodes": lambda: _head(
        "tenants:\n  red:\n    networks: {app: 10.0.0.0/16}\n    guests:\n"
        + "".join(f"      g{n}: {{node: n{n}}}\n" for n in range(20_000))
    ),
    "impossible names": lambda: _head(
        "tenants:\n  red:\n    networks: {app: 10.0.0.0/16}\n    guests:\n"
        + "".join(f"      G{n}: {{}}\n" for n in range(40_000))
    ),
    "networks": lambda: _head(
        "tenants:\n  red:\n    guests: {a: {network: n0}}\n    networks:\n"
        + "".join(f"      n{n}: 10.{n // 256}.{n % 256}.0/24\n" for n in range(4000))
    ),
    "duplicate keys": lambda: "version: 1\n" * 100_000,
    "nodes": lambda: "version: 1\nname: lab\nnodes:\n" + "".join(f"  n{n}: {{}}\n" for n in range(40_000)),
    "digits": lambda: "version: " + "9" * 4300 + "\n",
    "many digits": lambda: "version: " + "9" * 3_000_000 + "\n",
    "megabytes of text": lambda: "name: " + "a" * 4_000_000 + "\n",
    "megabytes of key": lambda: "a" * 4_000_000 + ": 1\n",
    "quoted": lambda: 'name: "' + "\\x1b" * 900_000 + '"\n',
    "folded": lambda: "name: >\n" + "  words\n" * 400_000,
    "comments": lambda: "# x\n" * 1_000_000,
    "white space": lambda: " " * 4_000_000,
    "above the limit": lambda: "a: 1\n" * 900_000,
    "arrows": lambda: _head(
        "tenants: {red: {networks: {a: 10.0.0.0/24}, guests: {a: {}}, allow: ['" + "a->" * 60 + "']}}\n"
    ),
    "flow items": lambda: "[" + "a," * 2_000_000 + "]",
    "anchors": lambda: "".join(f"k{n}: &a{n} 1\n" for n in range(120_000)),
}


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def _of_values(draw: random.Random) -> str:
    """Return a shipped topology after one to three random changes of its values.

    Values are replaced, removed, renamed or added.
    """
    data = yaml.safe_load(draw.choice(TOPOLOGIES).read_text())
    for _ in range(draw.randint(1, 3)):
        paths = list(_paths(data))
        if not paths:
            break
        *parents, last = draw.choice(paths)
        holder = data
        for part in parents:
            holder = holder[part]
        what = draw.randrange(4)
        if what == 0:
            holder[last] = copy.deepcopy(draw.choice(HOSTILE))
        elif what == 1:
            del holder[last]
        elif isinstance(holder, dict):
            name = draw.choice([item for item in HOSTILE if isinstance(item, str)])
            holder[name] = holder.pop(last) if what == 2 else copy.deepcopy(draw.choice(HOSTILE))
        else:
            holder.append(copy.deepcopy(draw.choice(HOSTILE)))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=draw.random() < 0.5)


def _of_text(draw: random.Random) -> str:
    """Return a shipped topology with some characters or lines changed."""
    text = draw.choice(TOPOLOGIES).read_text()
    for _ in range(draw.randint(1, 5)):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.choice((0, 1, 1, 3, 40)))
        piece = draw.choice(
            (
                "",
                "",
                ":",
                "- ",
                "{",
                "}",
                "[",
                "]",
                "&a ",
                "*a",
                "!x ",
                "|",
                "\t",
                "\r",
                "\x00",
                "\x1b[2J",
                "'",
                '"',
                "#",
                "%",
                "@",
                "<<: ",
                "? ",
                "---\n",
                "\ud800",
                "\u2028",
                "é",
                text[start:end] * 2,
            )
        )
        text = text[:start] + piece + text[end:]
    return text


def corpus(count: int, seed: int) -> list[tuple[str, str]]:
    """Return `count` hostile files as pairs of name and text.

    The fixed ones come first, if there is room.
    """
    draw = random.Random(seed)
    fixed = [*OTHERS.items(), *((name, make()) for name, make in EXPENSIVE.items())]
    if count < len(fixed) * 2:
        fixed = draw.sample(fixed, count // 2)
    makers = (_of_values, _of_values, _of_text)
    return [
        *fixed,
        *((f"mutation {number}", makers[number % 3](draw)) for number in range(count - len(fixed))),
    ]


@dataclass(frozen=True)
class Outcome:
    """The command's answer to one file.

    It has the exit code, the output (both streams), seconds of CPU, and MiB of memory used.
    """

    code: int
    output: str
    seconds: float
    memory: float

    def broken(self) -> list[str]:
        """Return the promises that this answer breaks."""
        found = [] if self.code in (0, 2) else [f"exit {self.code}"]
        if self.seconds > CPU:
            found.append(f"{self.seconds:.1f} s of CPU")
        if self.memory > MEMORY:
            found.append(f"{self.memory:.0f} MiB")
        if len(self.output.encode(errors="replace")) > OUTPUT:
            found.append(f"{len(self.output)} characters of output")
        if _CONTROL.search(self.output):
            found.append(f"a control character: {_CONTROL.findall(self.output)[:3]!r}")
        if self.code == 2 and not (_PLACE.search(self.output) or "cannot read" in self.output):
            found.append("no line")
        # What the file says is repeated in quotes.
        words = _PYTHON.search(re.sub(r"'[^'\n]*'|^\S+:[0-9]+: [^ ]*", "", self.output, flags=re.M))
        return [*found, *([f"Python: {words[0]}"] if words else [])]


def validate(text: str, folder: Path) -> Outcome:
    """Validate a text as a file by the real command, in a child process."""
    file, out = folder / "x.yaml", folder / "out"
    file.write_bytes(text.encode(errors="surrogatepass"))
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    child = os.fork()
    if child == 0:
        try:
            descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (int(CPU * 4), int(CPU * 4)))
            os.environ["COLUMNS"] = "80"
            sys.argv = ["testbed", "validate", str(file)]
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115 - a descriptor
            tool()
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException as error:  # noqa: BLE001 - the exit code is what is looked at
            os.write(2, f"Traceback: {type(error).__name__}: {error}"[:500].encode(errors="replace"))
            os._exit(1)
        os._exit(0)
    _, status, used = os.wait4(child, 0)
    text = out.read_bytes().decode(errors="replace").replace(str(folder), "")
    return Outcome(
        os.waitstatus_to_exitcode(status),
        text,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss / 2**10 - before / 2**20,
    )


def main() -> None:
    """Read the command line, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    codes: Counter[int] = Counter()
    broken: dict[str, list[str]] = {}
    worst: dict[str, tuple[float, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        for label, text in corpus(options.count, options.seed):
            outcome = validate(text, Path(name))
            codes[outcome.code] += 1
            used = {
                "seconds": round(outcome.seconds, 2),
                "memory in MiB": round(outcome.memory, 1),
                "octets of output": len(outcome.output.encode(errors="replace")),
            }
            worst = {what: max(worst.get(what, (0.0, "")), (amount, label)) for what, amount in used.items()}
            if promises := outcome.broken():
                broken[label] = [*promises, outcome.output[:400]]
    sys.stdout.write(
        json.dumps({"files": options.count, "exit codes": codes, "worst": worst, "broken": broken}, indent=1)
    )


if __name__ == "__main__":
    main()
