"""Namespaces of every kind with their processes, and mounts of each mount namespace."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache

from testbed.payload.inventory.base.collect import Records, Unread, read
from testbed.payload.inventory.host.processes import KINDS, Process

FIRST = "first"
_TITLES = 3  # control groups that name a namespace
_OCTAL = re.compile(r"\\([0-7]{3})")
_PEERS = re.compile(r":\d+")
_RUN = re.compile(r"(systemd-private-)[0-9a-f]{32}(-.*-)\w{6}(?=/|$)|(/proc/)\d+(?=/|$)|(/user/)\d+(?=/|$)")


class Spaces:
    """The namespaces of a machine.

    Args:
        names: of each namespace by its identity, such as ``net:[4026531840]``; the same after a restart.
        paths: a file through which each can be entered, or looked at.

    """

    def __init__(self, found: Iterable[Process]) -> None:
        self.members: dict[str, set[str]] = defaultdict(set)
        self._titles: dict[str, set[str]] = defaultdict(set)
        self.paths: dict[str, str] = {}
        self.pids: dict[str, int] = {}
        for process in found:
            for kind, mark in process.namespaces.items():
                self.members[mark].add(process.label)
                self._titles[mark].add(process.cgroup.lstrip("/") or process.exe or process.name)
                self.paths.setdefault(mark, f"/proc/{process.pid}/ns/{kind}")
                self.pids.setdefault(mark, process.pid)
            for mark, path in process.held.items():
                self.members[mark].add(f"held open by {process.label}")
                self.paths.setdefault(mark, path)
        self._first()
        self._mounted()
        self.names = {mark: self._name(mark) for mark in self.members}

    def _first(self) -> None:
        """Note those of the first process."""
        self.first = set()
        for kind in KINDS:
            try:
                mark = os.readlink(f"/proc/1/ns/{kind}")
            except OSError:
                continue
            self.first.add(mark)
            self.members[mark].add("")
            self.paths[mark], self.pids[mark] = f"/proc/1/ns/{kind}", 1

    def _mounted(self) -> None:
        """Note those that are mounted somewhere, with or without a process."""
        for pid in [pid for mark, pid in self.pids.items() if mark.startswith("mnt:")]:
            try:
                lines = read(f"/proc/{pid}/mountinfo", 2**22).splitlines()
            except Unread:
                continue
            for words in map(str.split, lines):
                kind = words[3].partition(":")[0]
                if kind in KINDS and ":[" in words[3]:
                    self.members[words[3]].add(f"mounted at {words[4]}")
                    self.paths.setdefault(words[3], f"/proc/{pid}/root{words[4]}")

    def _name(self, mark: str) -> str:
        titles = sorted(self._titles[mark] or self.members[mark])
        return FIRST if mark in self.first else f"{mark.partition(':')[0]} of {', '.join(titles[:_TITLES])}"

    def of(self, kind: str) -> dict[str, str]:
        """Return the name of each namespace of a kind, by its identity."""
        return {mark: name for mark, name in self.names.items() if mark.startswith(f"{kind}:")}

    def collect(self, records: Records) -> None:
        """Record namespaces other than the first of each kind, and what is mounted."""
        for mark, name in self.names.items():
            if name != FIRST:
                records.add("namespace", name, sorted(self.members[mark]))
        mounts = {name: self._mounts(mark, records) for mark, name in self.of("mnt").items()}
        usual = mounts.get(FIRST, {})
        for name, found in mounts.items():
            for place in sorted({*found, *usual}):
                stack = found.get(place, [])
                if name == FIRST or stack != usual.get(place, []):
                    records.add("mount", f"{name} {place}", stack)

    def _mounts(self, mark: str, records: Records) -> dict[str, list[dict[str, str]]]:
        """Return the mounts of a namespace, by place; the last one of a place is visible."""
        if mark not in self.pids:
            records.unread("mount", self.names[mark], "no process is in it")
            return {}
        found: dict[str, list[dict[str, str]]] = defaultdict(list)
        try:
            lines = read(f"/proc/{self.pids[mark]}/mountinfo", 2**22).splitlines()
        except Unread as error:
            records.unread("mount", self.names[mark], error)
            return {}
        for line in lines:
            place, mount = _mount(line)
            found[place].append(mount)
        return found


def _mount(line: str) -> tuple[str, dict[str, str]]:
    """Return place and properties of a mount, without its numbers (proc_pid_mountinfo(5))."""
    left, _, right = line.partition(" - ")
    words, (kind, source, options) = left.split(), right.split(" ", 2)
    root = re.sub(r"^(\w+):\[\d+\]", r"\1:[N]", words[3])
    spread = " ".join(_PEERS.sub("", word) for word in words[6:]) or "private"
    shown = {
        "type": kind,
        "from": source,
        "root": root,
        "options": words[5],
        "spreads": spread,
        "file system": _stable(options),
    }
    return _plain(words[4]), {name: _plain(value) for name, value in shown.items()}


def _stable(options: str) -> str:
    return ",".join(word for word in options.split(",") if not word.startswith(("fd=", "pgrp=", "pipe_ino=")))


@cache  # most namespaces have the same mounts
def _plain(text: str) -> str:
    plain = _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)
    return _RUN.sub(lambda found: "".join(part for part in found.groups() if part) + "N", plain)
