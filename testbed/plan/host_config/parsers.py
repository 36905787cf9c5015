"""Parse the output of a machine's commands into the values of its settings.

It is parsed on the outer machine, since a program takes 50 ms on an emulated machine. The output comes from a
root partition that may be compromised: it is only searched and compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from testbed.untrusted import bounded_json

_TABLE = re.compile(r"^table (\S+ \S+) \{(.*?)^\}", re.MULTILINE | re.DOTALL)
_SET = re.compile(r"^\tset (\S+) \{\n(.*?)^\t\}\n?", re.MULTILINE | re.DOTALL)
_VERDICT = re.compile(r"^.*(?:accept|reject|drop|counter).*$", re.MULTILINE)
_COPIES = re.compile(r"^.*\b(?:dup|fwd) to .*$", re.MULTILINE)
# A whole policy: another selector or template, or a level "use", would let packets pass in the clear.
_POLICY = re.compile(
    r"src (\S+) dst (\S+) proto udp \\\s+dir (in|out) priority \d+ ptype main \\\s+"
    r"tmpl src 0\.0\.0\.0 dst 0\.0\.0\.0\s*\\\s+"
    r"proto esp (?:spi 0x[0-9a-f]+ )?reqid \d+ mode transport\s*\\\s*"
)
# The actions by which OVN's rules in the first table continue in the pipeline, or end.
_CONTINUING = re.compile(
    r"(?:(?:(?:set_field|load|move):[^,()]+|resubmit\(,[0-9]+\)|pop_vlan|strip_vlan|drop)(?:,|$))+"
)
_POLICER = re.compile(r"\s*action order \d+:\s+police ")
_CONFINED = re.compile(r"libvirt-[0-9a-f-]+ \(enforce\)")
_UP = 1  # IFF_UP, netdevice(7)
_RULES = "/etc/nftables.conf:"
_NETWORK = "/proc/sys/net/"
PROTECTED = "every peer, both ways"


def lines(files: str, start: str) -> str:
    """Return the lines of one file, or of all files whose paths have the same beginning.

    The path of one file ends with a colon.
    """
    found = _named(files, start)
    return "\n".join(found if start.endswith(":") else [line.partition(":")[2] for line in found])


def _named(files: str, start: str) -> list[str]:
    """Return the rest of every line with this beginning; lines end only where grep ends them."""
    return [line[len(start) :] for line in files.split("\n") if line.startswith(start)]


def kernel(files: str) -> str:
    """Return names and values of the kernel's network settings."""
    return "\n".join(f"net/{line.replace(':', ' ', 1)}" for line in _named(files, _NETWORK))


def modes(printed: str, of: Sequence[str]) -> str:
    """Return those lines with name, mode and owner that belong to the given files."""
    return "\n".join(line for line in printed.splitlines() if line.partition(" ")[0] in of)


def tables(ruleset: str) -> dict[str, str]:
    """Return the content of each table of a rule set, by family and name."""
    return dict(_TABLE.findall(ruleset))


def elements(ruleset: str, table: str, name: str) -> str:
    """Return the text of one set of a table; empty if there is none."""
    sets: dict[str, str] = dict(_SET.findall(tables(ruleset).get(table, "")))
    return sets.get(name, "")


def firewall(ruleset: str, files: str, table: str, others: frozenset[str]) -> str:
    """Return whether the live table equals its file, its number of rules, and the other tables.

    Elements of sets are not compared.

    Args:
        ruleset: the rules that the kernel runs.
        files: lines of files; one holds the rules as the kernel lists them.
        table: family and name.
        others: tables that may exist, and are compared elsewhere.
    """
    live, wanted = (_rules(text, table) for text in (ruleset, lines(files, _RULES)))
    told = "as in the file" if live == wanted else f"not as in the file{_apart(live, wanted)}"
    names = [f"table {name}" for name in tables(ruleset) if name not in others]
    return "\n".join((told, str(len(_VERDICT.findall(live))), *names))


def _apart(live: str, wanted: str) -> str:
    """Return the lines of two tables that the other one does not have.

    The empty string means that they differ in their order only.
    """
    one, other = live.splitlines(), wanted.splitlines()
    parts = (
        ("too many", [line for line in one if line not in other]),
        ("missing", [line for line in other if line not in one]),
    )
    return "".join(f"; {word}: {', '.join(found)}" for word, found in parts if found)


def _rules(text: str, table: str) -> str:
    """Return a table without its sets, comments and empty lines."""
    told = map(str.strip, _SET.sub("", tables(text).get(table, "")).splitlines())
    return "\n".join(line for line in told if line and not line.startswith("#"))


def addresses(ruleset: str, table: str, name: str) -> str:
    """Return the IPv4 addresses of a set, one a line, sorted."""
    return "\n".join(sorted(re.findall(r"[0-9]+\.[0-9.]+", elements(ruleset, table, name))))


def pairs(ruleset: str, table: str, name: str) -> str:
    """Return the interfaces of a set and what each may name, one pair a line, sorted."""
    found = re.findall(r'"?(tap[0-9a-f]+)"? \. ([0-9a-fx:]+)', elements(ruleset, table, name))
    return "\n".join(sorted(f"{device} . {value}" for device, value in found))


def protection(policies: str, own: str, peers: Sequence[str]) -> str:
    """Return whether the kernel demands ESP in transport mode to and from each peer only.

    Args:
        policies: output of ``ip -o xfrm policy``.
        own: a machine's own address, and those of its peers.

    Returns:
        `PROTECTED`, or a line for each policy that is missing or not declared.

    """
    found = {_policy(line) for line in policies.splitlines() if "socket" not in line}
    wanted = {
        line for peer in peers for line in (f"in {peer}/32 {own}/32 esp", f"out {own}/32 {peer}/32 esp")
    }
    missing, foreign = (
        (f"missing: {line}" for line in wanted - found),
        (f"not declared: {line}" for line in found - wanted),
    )
    return "\n".join(sorted((*missing, *foreign))) or PROTECTED


def _policy(line: str) -> str:
    found = _POLICY.fullmatch(line)
    return f"{found[3]} {found[1]} {found[2]} esp" if found else line


def bridge(own: str, files: str) -> str:
    """Return the number of addresses of the integration bridge, and whether it is up."""
    return f"{len(own.splitlines())}\n{_number(lines(files, '/sys/class/net/br-int/flags:')) & _UP}"


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return -1


def delivering(flows: str) -> str:
    """Return the number of rules of OpenFlow's first table that deliver frames at once.

    OVN's own rules there continue with its pipeline or drop.
    """
    rules = [line.partition("actions=") for line in flows.splitlines()]
    return str(sum(bool(found) and _CONTINUING.fullmatch(text.strip()) is None for _, found, text in rules))


def mirrors(filters: str, switch: str, ruleset: str) -> str:
    """Return everything that copies or diverts frames, one a line.

    It is looked for among traffic control's filters that are no policers, the switch's mirrors, and the rules
    of any table.
    """
    acting = [
        line.strip() for line in filters.splitlines() if "action order" in line and not _POLICER.match(line)
    ]
    named = [str(row[0]) for row in _rows(switch, ["name"])]
    return "\n".join((*acting, *named, *(line.strip() for line in _COPIES.findall(ruleset))))


def claims(switch: str, own: frozenset[tuple[str, str]]) -> str:
    """Return the interfaces that claim a logical port not their own, with the port, one a line."""
    named = [(str(name), dict(ids)) for name, (_, ids) in _rows(switch, ["name", "external_ids"])]
    found = [(name, str(ids["iface-id"])) for name, ids in named if "iface-id" in ids]
    return "\n".join(" ".join(claim) for claim in found if claim not in own)


def _rows(tables: str, columns: list[str]) -> Iterator[list[Any]]:
    """Yield the rows of the tables with exactly these columns.

    Each line is a table, as ``ovs-vsctl --format=json`` prints it.

    Raises:
        ValueError: no table has these columns, or a line is no JSON.

    """
    found = [table for table in map(bounded_json.read, tables.splitlines()) if table["headings"] == columns]
    if not found:
        raise ValueError(f"no table of {', '.join(columns)}")
    for table in found:
        yield from table["data"]


def unconfined(labels: str) -> str:
    """Return the AppArmor labels of workers that are not confined as required, one a line."""
    return "\n".join(line or "none" for line in labels.splitlines() if not _CONFINED.fullmatch(line))


def services(printed: str, names: Sequence[str]) -> str:
    """Return the state of each service, one a line, and whether the integration bridge is there.

    Raises:
        ValueError: there are not as many states as services.

    """
    states = printed.splitlines()
    there = states[-1:] == ["br-int"]
    told = [f"{name} {state}" for name, state in zip(names, states[: len(states) - there], strict=True)]
    return "\n".join((*told, "br-int is there" if there else "br-int is not there"))


def members(files: str, group: str) -> str:
    """Return the members of a group, with commas between them."""
    groups = [line for line in lines(files, "/etc/group:").splitlines() if line.startswith(f"{group}:")]
    return groups[0].rpartition(":")[2]


def beneath(files: str, folder: str) -> str:
    """Return the files of a folder, sorted."""
    return "\n".join(sorted(line for line in files.splitlines() if line.startswith(f"{folder}/")))


def unmatched(files: str, known: str) -> str:
    """Return the files whose whole path does not match a regular expression, sorted."""
    return "\n".join(sorted(line for line in files.splitlines() if not re.fullmatch(known, line)))


def called(files: str, start: str) -> str:
    """Return the files whose names have this beginning, sorted."""
    return "\n".join(sorted(line for line in files.splitlines() if line.rpartition("/")[2].startswith(start)))


def additions(files: str) -> str:
    """Return the rules that are added to every worker's profile, without comments."""
    added = "\n".join(lines(files, f"/etc/apparmor.d/{folder}") for folder in ("local/", "abstractions/"))
    return "\n".join(line for line in added.splitlines() if not line.startswith("#")).strip()


def mounted(files: str, folder: str) -> str:
    """Return the type of the file system that is mounted on a folder; of several mounts the last counts."""
    mounts = [line.split() for line in lines(files, "/proc/self/mounts:").splitlines()]
    return next((words[2] for words in reversed(mounts) if len(words) > 2 and words[1] == folder), "none")


def read_only(files: str, printed: str, folder: str) -> str:
    """Return the first option of the mount on a folder, and the modes and owners of its files.

    Of several mounts the last counts. Equal modes and owners are listed once.
    """
    mounts = [line.split() for line in lines(files, "/proc/self/mounts:").splitlines()]
    options = [words[3].partition(",")[0] for words in mounts if len(words) > 3 and words[1] == folder]
    shapes = {line.partition(" ")[2] for line in printed.splitlines() if line.startswith(f"{folder}/")}
    return "\n".join((*options[-1:], *sorted(shapes)))
