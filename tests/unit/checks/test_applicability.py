"""Applicability in topologies of odd shapes: each check is proven, or does not apply.

The reasons for the latter are listed.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from testbed.lab.session import Lab
from testbed.model import subjects
from testbed.model.topology import Topology
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import ATTRIBUTE, Declaration
from testbed.verify.runner.plugin import members
from tests.shapes import ODD, SHIPPED, lab_of

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden/good/not-applicable.txt"
SHAPE = pytest.mark.parametrize("shape", [*SHIPPED, *ODD])


class FakeHost:
    """Remembers the commands that it is given."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def must(self, commands: str, stdin: bytes = b"") -> str:
        self.commands.append(commands + stdin.decode())
        return ""

    def sudo(self, commands: str, stdin: bytes = b"") -> Any:
        self.commands.append(commands + stdin.decode())
        return SimpleNamespace(status=0, text="")


def _agent(*_: object) -> dict[str, object]:
    """Answer as the agent of a guest in which every program ends well."""
    return {"pid": 1, "exited": True, "exitcode": 0}


def _hypervisor() -> Any:
    """Return a hypervisor that takes every command and shows an empty domain."""
    return MagicMock(**{"live_xml.return_value": "<domain/>", "ask_monitor.side_effect": _monitor})


class _AnyFile(str):
    """The name of an image that may be any file's."""

    __slots__ = ()

    def __contains__(self, _: object) -> bool:
        return True


def _monitor(_: str, command: str, __: dict[str, object]) -> object:
    """Answer as a QEMU that has one image open, and has ended the job of a breach."""
    image = {"file": _AnyFile(), "node-name": "image", "image": {}}
    answers: dict[str, object] = {
        "query-block": [{"inserted": image}],
        "query-named-block-nodes": [{"node-name": "container", "drv": "luks", "file": _AnyFile()}],
        "query-jobs": [{"id": "breach", "status": "concluded"}],
    }
    return answers.get(command, {})


def _lab(topology: Topology) -> Any:
    """Return a lab whose machines and databases take every change."""
    hosts = {machine.name: FakeHost() for machine in topology.machines}
    nodes = {
        node.name: SimpleNamespace(
            name=node.name,
            host=hosts[node.name],
            hypervisor=_hypervisor(),
            agent=_agent,
            boot=MagicMock(),
            keys=SimpleNamespace(key=lambda node, tenant: f"key of {tenant} on {node}".encode()),
            define_key=MagicMock(),
            throttle=MagicMock(),
        )
        for node in topology.nodes
    }
    desired = defaultdict(lambda: SimpleNamespace(properties={}))
    return SimpleNamespace(
        topology=topology,
        nodes=nodes,
        host=hosts.__getitem__,
        central=MagicMock(),
        desired=desired,
        workspace=SimpleNamespace(machine=lambda name: Path("/nowhere") / name, connection=""),
    )


def _cases(topology: Topology) -> Iterator[tuple[Declaration, BreachContext]]:
    lab = cast(Lab, _lab(topology))
    for file in sorted((ROOT / "checks").glob("test_*.py")):
        for function in vars(importlib.import_module(f"checks.{file.stem}")).values():
            declared = getattr(function, ATTRIBUTE, None)
            if declared is not None:
                wanted = inspect.signature(function).parameters
                names = next(
                    (found for fixture, found in members(topology).items() if fixture in wanted), [""]
                )
                yield from ((declared, BreachContext(lab, name)) for name in names)


def _reasons(topology: Topology) -> list[tuple[str, str, str]]:
    """Return reason, control and case, and objective of every case that does not apply."""
    found = ((declared.applies(context), declared, context) for declared, context in _cases(topology))
    return sorted(
        (reason, f"{one.id} {context.case or 'fleet'}", one.objective)
        for reason, one, context in found
        if reason is not None
    )


def _told(shape: str) -> str:
    topology = lab_of(shape)
    cases = [
        (declared, context) for declared, context in _cases(topology) if declared.applies(context) is None
    ]
    breaches = sum(breach.applies(context) for declared, context in cases for breach in declared.breaches)
    lines = [f"{shape}: {len(cases)} of {len(list(_cases(topology)))} cases apply, with {breaches} breaches"]
    for reason, group in groupby(_reasons(topology), key=lambda item: item[0]):
        lines += [f"  {reason}:", *(f"    {case}: {objective}" for _, case, objective in group)]
    return "\n".join(lines)


def test_what_does_not_apply_is_known() -> None:
    """A new case that does not apply, or a new reason, is noticed here.

    With TESTBED_UPDATE_GOLDEN=1 the file is written again.
    """
    told = "\n\n".join(map(_told, [*SHIPPED, *ODD])) + "\n"
    if os.environ.get("TESTBED_UPDATE_GOLDEN"):
        GOLDEN.write_text(told)
    assert GOLDEN.read_text() == told


@SHAPE
def test_a_reason_is_a_sentence_with_a_subject(shape: str) -> None:
    for reason, case, _ in _reasons(lab_of(shape)):
        assert re.fullmatch(r"(the|no|whichever) [a-z].* [a-z].*, so .*[a-z]", reason), (case, reason)


@SHAPE
def test_what_applies_can_be_proven(shape: str) -> None:
    """A check that applies has a breach that applies, which finds its objects in the topology.

    That holds when it opens and when it closes.
    """
    for declared, context in _cases(lab_of(shape)):
        if declared.applies(context) is None and not declared.id.startswith("ACC"):
            possible = [breach for breach in declared.breaches if breach.applies(context)]
            assert possible, (declared.id, context.case, declared.objective)
            for breach in possible:
                breach.open(context)
                breach.close(context)


def test_nothing_but_a_wall_that_is_not_there_is_left_out() -> None:
    """Networks of odd topologies are checked for all walls that they have.

    They lack a flow, a second tenant on a node, or guests on the first node.
    """
    for shape in (
        "no flow",
        "udp only",
        "icmp only",
        "separated",
        "an empty first node",
        "one guest on each node",
    ):
        network = {
            case
            for _, case, objective in _reasons(lab_of(shape))
            if case.startswith("NET") and case.endswith("fleet")
        }
        assert network <= ({"NET-13 fleet"} if shape in ("no flow", "one guest on each node") else set()), (
            shape
        )


def test_a_pair_is_of_two_tenants_and_on_one_node_where_there_are_such() -> None:
    def pair(shape: str) -> tuple[str, str]:
        found = subjects.pair(lab_of(shape))
        assert found is not None
        return found.attacker.guest.label, found.victim.guest.label

    assert pair("two-tenants") == ("red/web", "blue/db")
    assert pair("separated") == ("red/web", "blue/web")
    assert pair("one tenant without a flow") == ("red/web", "red/db")
    assert subjects.pair(lab_of("one tenant")) is None
    assert subjects.pair(lab_of("one guest")) is None


def test_a_shortcut_between_nodes_is_a_rule_on_each() -> None:
    """Frames leave by the tunnel to the victim's node, which knows them by their key."""
    topology = lab_of("one guest on each node")
    for declared, context in _cases(topology):
        if declared.id == "NET-01" and "leads from one guest's port" in declared.breaches[0].name:
            declared.breaches[0].open(context)
            sent, received = (cast(Any, context.lab.host(name)).commands[-1] for name in ("node-a", "node-b"))
            attacker, victim = (guest.nics[0] for guest in topology.guests)
            assert f"in_port={attacker.tap}" in sent
            assert f"output:{victim.tap}" in received
            assert "set_field:0xb4eac4->tun_id" in sent
            assert "tun_id=0xb4eac4" in received


def test_a_flow_is_attacked_on_the_network_that_joins_its_ends() -> None:
    """The interface that a flow uses is not the guest's first one."""
    topology = lab_of("a flow on a second network")
    found = subjects.sender(topology)
    assert (found.guest.label, found.network) == ("red/web", "red/back")
    other = subjects.neighbour(topology, found)
    assert other is not None
    assert other.guest.label == "red/db"


def test_who_leaves_leaves_two_tenants_behind() -> None:
    assert subjects.leaver(lab_of("two-tenants")) == "node-b"
    assert subjects.leaver(lab_of("separated")) == "node-a"
    assert subjects.leaver(lab_of("an empty node in the middle")) == "node-c"
    assert subjects.leaver(lab_of("one tenant on two nodes")) is None
