"""The comparisons that checks make themselves: each way to be wrong turns the check red."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from checks import test_compute, test_overlay, test_reachability, test_spoofing, test_storage
from checks.support import disruptions, network_observation
from checks.support.breaches import address_breach
from checks.support.flow_shortcuts import shortcut
from checks.support.lodger import lodger, start_lodger, stop_lodger
from testbed.errors import InstrumentError
from testbed.model.resolve import resolve
from testbed.model.topology import Plane
from testbed.topology_file.loader import load
from testbed.verify.attackers.worker import Job
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import ATTRIBUTE
from tests.shapes import lab_of

LAB = lab_of("two-tenants")


def test_a_port_with_other_addresses_is_an_open_wall() -> None:
    nic = LAB.guests[0].nics[0]
    breach = address_breach("-", lambda _: nic, lambda _: [])
    row = {"port": nic.port, "addresses": nic.port_security}
    context: Any = SimpleNamespace(
        northbound=SimpleNamespace(ports=lambda: {"other": {"port": "-"}, "own": row})
    )
    assert not breach.in_force(context)
    row["addresses"] = f"{nic.port_security} 192.0.2.1"
    assert breach.in_force(context)


def test_a_machine_has_restarted_when_its_boot_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(
        disruptions, "time", SimpleNamespace(monotonic=lambda: next(clock) * 10.0, sleep=lambda _: None)
    )

    def reboot(*boots: str) -> list[str]:
        left = list(boots)

        def read(command: str, **_: object) -> str:
            return "" if "reboot" in command else left.pop(0) if len(left) > 1 else left[0]

        machine: Any = SimpleNamespace(name="node", read=read)
        disruptions._reboot(machine)
        return left

    assert reboot("a", "a", "a", "b") == ["b"]
    assert reboot("a", "b", "c", "d") == ["c", "d"]
    with pytest.raises(InstrumentError, match="does not come back"):
        reboot("a")


def test_a_lodger_has_no_disk_and_the_account_that_a_breach_gives_it() -> None:
    made: list[str] = []
    node = SimpleNamespace(
        name="node-a", hypervisor=SimpleNamespace(create=lambda text, paused: made.append(text))
    )
    context: Any = SimpleNamespace(topology=LAB, node=node, guest=LAB.guests_on("node-a")[0])
    start_lodger(context, account="root")
    root = ElementTree.fromstring(made[0])
    assert root.findall("devices/disk") == []
    assert root.findtext("seclabel[@model='dac']/label") == f"root:{lodger(context).worker}"


def test_a_lodger_that_stops_leaves_no_file_of_its_domain() -> None:
    """Its domain names a console; libvirt keeps a log and a profile as well."""
    made: list[str] = []
    commands: list[str] = []
    hypervisor = SimpleNamespace(create=lambda text, paused: made.append(text), destroy=lambda _: None)
    node = SimpleNamespace(name="node-a", hypervisor=hypervisor)
    context: Any = SimpleNamespace(
        topology=LAB,
        node=node,
        guest=LAB.guests_on("node-a")[0],
        host=SimpleNamespace(must=commands.append),
    )
    start_lodger(context)
    stop_lodger(context)
    logs = {item.attrib["file"] for item in ElementTree.fromstring(made[0]).iter("log")}
    assert logs
    assert {f"{log}*" for log in logs} <= {*commands[0].split()}


@pytest.mark.parametrize("told", ["1 0 0", "0 1 0", "0 0 1", "2 0 0"])
def test_page_merging_must_be_off_and_have_merged_nothing(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_compute, "processes", lambda *_: {})
    node: Any = SimpleNamespace(name="node-a", read=lambda _: "0 0 0")
    fleet: Any = SimpleNamespace(topology=LAB)
    test_compute.test_no_page_is_shared(fleet=fleet, node=node)
    node.read = lambda _: told
    with pytest.raises(AssertionError, match=r"run is|pages are shared"):
        test_compute.test_no_page_is_shared(fleet=fleet, node=node)


@pytest.mark.parametrize(("account", "message"), [("own", "reached"), ("other", "alone would allow")])
def test_a_volume_that_a_worker_opens_is_a_fail(
    account: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its own account, or under that which may open the file, so that only its profile is left."""
    opened = False

    def all_succeeded(_: object, jobs: list[Job]) -> list[set[Any]]:
        return [
            set(job.attempts) if opened and (job.uid is None) == (account == "own") else set() for job in jobs
        ]

    monkeypatch.setattr(test_storage, "all_succeeded", all_succeeded)
    monkeypatch.setattr(test_storage, "_require_own_pool", lambda *_: None)
    fleet: Any = SimpleNamespace(topology=LAB)
    owners = {disk: guest.uid for guest in LAB.guests for disk in guest.disks}

    def file(path: str) -> Any:
        return SimpleNamespace(uid=owners[path], mode=0o600)

    node: Any = SimpleNamespace(name="node-a", infra=SimpleNamespace(file=file))
    opened = True
    with pytest.raises(AssertionError, match=message):
        test_storage.test_no_worker_reaches_another_tenants_volumes(fleet=fleet, node=node)
    opened = False
    test_storage.test_no_worker_reaches_another_tenants_volumes(fleet=fleet, node=node)


def test_a_frame_that_the_firewall_did_not_refuse_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    injection = SimpleNamespace(mark="g0")
    observation = SimpleNamespace(arrivals=lambda _: {})
    found = SimpleNamespace(injections=[injection], refused={"g0"}, observation=observation)
    fleet: Any = SimpleNamespace(observe_once=lambda *_: found, topology=SimpleNamespace(nodes=()))
    monkeypatch.setattr(test_overlay, "require_agreement", lambda *_: None)
    test_overlay.test_no_other_host_enters_the_tunnels(fleet=fleet)
    found.refused = set()
    with pytest.raises(AssertionError, match="1 of 1 were not refused"):
        test_overlay.test_no_other_host_enters_the_tunnels(fleet=fleet)


@pytest.mark.parametrize(
    ("old", "new", "open_ways"),
    [
        ("", "", 0),
        ("proto esp", "proto comp", 2),
        ("mode transport", "mode tunnel", 2),
        ("dir out", "dir fwd", 1),
        ("proto udp dir in", "proto tcp dir in", 1),
    ],
)
def test_a_kernel_that_asks_for_no_encryption_with_a_peer_is_a_fail(
    old: str, new: str, open_ways: int
) -> None:
    one, other = (f"{node.address(Plane.FABRIC)}/32" for node in LAB.nodes)
    line = "src {} dst {} proto udp dir {} priority 1 tmpl proto esp reqid 1 mode transport"
    told = "\n".join((line.format(other, one, "in"), line.format(one, other, "out")))
    machine: Any = SimpleNamespace(name=LAB.nodes[0].name, read=lambda _: told.replace(old, new))
    fleet: Any = SimpleNamespace(topology=LAB)
    assert len(test_overlay._unencrypted(fleet, machine)) == open_ways
    machine.read = lambda _: f"{told}\n{line.format(other, one, 'in').replace('esp', 'comp')}"
    assert len(test_overlay._unencrypted(fleet, machine)) == 1


def test_only_frames_of_a_control_speak_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lies = [SimpleNamespace(control=control, mark=control, probe=None) for control in ("NET-02", "NET-03")]
    found = SimpleNamespace(forgeries=lies, observation=None, require_agreement=lambda _: None)
    monkeypatch.setattr(network_observation, "survey", lambda _: found)
    monkeypatch.setattr(network_observation, "_testimony", lambda lie, *_: [f"{lie.mark} arrived"])
    monkeypatch.setattr(
        network_observation,
        "virtual_switch",
        SimpleNamespace(
            pipeline=lambda *_: {"NET-02": "", "NET-03": ""}, against=lambda *_: [], logical=None
        ),
    )
    fleet: Any = SimpleNamespace(observe_once=lambda name, do: do() if name == "pipeline" else [])
    assert network_observation.judge(fleet, "NET-03") == ["NET-03 arrived"]
    with pytest.raises(InstrumentError, match="nothing was sent for NET-04"):
        network_observation.judge(fleet, "NET-04")


@pytest.mark.parametrize(
    "look",
    [look for look in vars(test_spoofing).values() if hasattr(look, ATTRIBUTE)],
    ids=lambda look: getattr(look, ATTRIBUTE).id,
)
def test_a_forged_frame_that_arrives_fails_its_own_control(
    look: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    arrived: list[str] = []

    def judge(_: object, control: str) -> list[str]:
        asked.add(control)
        return arrived

    monkeypatch.setattr(test_spoofing, "judge", judge)
    monkeypatch.setattr(test_spoofing, "stolen", lambda *_: [])
    look(None)
    arrived.append("it came")
    with pytest.raises(AssertionError, match="it came"):
        look(None)
    assert asked == {getattr(look, ATTRIBUTE).id}


def test_a_stolen_lease_fails_net_06(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_spoofing, "judge", lambda *_: [])
    monkeypatch.setattr(test_spoofing, "stolen", lambda *_: ["red/web has blue/db's"])
    with pytest.raises(AssertionError, match="1 leases of others: red/web has"):
        test_spoofing.test_no_guest_serves_or_steals_leases(None)  # type: ignore[arg-type]


def test_a_neighbour_is_let_through_on_its_own_node() -> None:
    """No flow joins the guests of the second node, which is not the node of the case."""
    text = (
        "version: 1\nname: x\nnodes: {node-a: {}, node-b: {}}\ntenants:\n"
        "  red: {networks: {app: 10.0.0.0/24}, guests: {web: {node: node-a}}}\n"
        '  blue: {networks: {app: [10.0.0.0/24, "fd00:a::/64"]}, '
        "guests: {web: {node: node-b}, db: {node: node-b}}}\n"
    )
    lab = resolve(load(text, "x.yaml", machine_memory=None).spec)
    ran: dict[str, list[str]] = {node.name: [] for node in lab.nodes}
    host = {name: SimpleNamespace(must=commands.append) for name, commands in ran.items()}
    context = BreachContext(SimpleNamespace(topology=lab, host=host.__getitem__), "")  # type: ignore[arg-type]
    declared = getattr(test_reachability.test_reach_is_what_the_topology_allows, ATTRIBUTE)
    (breach,) = (breach for breach in declared.breaches if "may ask for the IPv6" in breach.name)
    assert breach.applies(context)
    breach.open(context)
    (command,) = ran["node-b"]
    assert str(lab.guests_on("node-b")[1].nics[0].address6) in command
    assert ran["node-a"] == []


@pytest.mark.parametrize("status", [{"node-a": 0, "node-b": 0}, {"node-a": 0, "node-b": 1}])
def test_a_shortcut_is_open_while_each_node_has_its_rule(status: dict[str, int]) -> None:
    hosts = {
        name: SimpleNamespace(sudo=lambda _, found=found: SimpleNamespace(status=found))
        for name, found in status.items()
    }
    lab: Any = SimpleNamespace(topology=lab_of("one guest on each node"), host=hosts.__getitem__)
    breach = shortcut("-", "dl_dst={victim}")
    assert breach.in_force(BreachContext(lab, "")) is not any(status.values())


def test_a_bystander_is_no_end_of_the_flow_and_sends_on_its_network() -> None:
    context: Any = SimpleNamespace(topology=LAB)
    found = test_spoofing._neighbours(context)
    assert found is not None
    source, other = found
    flow = next(
        item
        for item in test_spoofing.flows(LAB)
        if item.source.guest == source and other != item.target.guest
    )
    assert (source.nics[0], other.node) == (flow.source.nic, source.node)
    assert other not in (source, flow.target.guest)


@pytest.mark.parametrize(
    ("held", "sound"),
    [
        ({"answers": [2], "turned": True}, True),
        ({"answers": [2], "turned": False}, False),
        ({"answers": [0], "turned": True}, False),
        ({"turned": True}, False),
        ({"answers": [2]}, False),
    ],
)
def test_a_connection_that_was_not_held_says_nothing_about_a_change(
    held: dict[str, Any], sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(request: dict[str, Any]) -> dict[str, Any]:
        return held if request["phase"] == "hold" else {}

    asked: list[str] = []

    def in_guest(_: object, guest: Any) -> Any:
        asked.append(guest.label)
        return SimpleNamespace(ask=ask)

    monkeypatch.setattr(disruptions, "in_guest", in_guest)
    monkeypatch.setattr(disruptions, "_require_used", lambda *_: None)
    monkeypatch.setattr(disruptions, "time", SimpleNamespace(sleep=lambda _: None))
    northbound = SimpleNamespace(change_rules=lambda *_: None)
    fleet: Any = SimpleNamespace(
        topology=LAB,
        lab=SimpleNamespace(central=SimpleNamespace(northbound=northbound)),
        leavings=SimpleNamespace(made=lambda *_: nullcontext()),
    )
    tokens: Any = SimpleNamespace(of=lambda mark: mark, prefix="-")
    if sound:
        assert disruptions._change_policy(fleet, tokens) == held
        assert asked == ["red/web"]  # the source of the first flow
        return
    with pytest.raises(InstrumentError, match="holds no connection"):
        disruptions._change_policy(fleet, tokens)
