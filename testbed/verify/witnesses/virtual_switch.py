"""Witnesses of a network wall besides packets: OVN's databases and nodes' OpenFlow tables.

Packets sample; `pipeline` asks a node's switch for its verdict on a frame, and `logical` compares the
databases with the topology (NET-01 to NET-07).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from testbed.errors import InstrumentError
from testbed.model.topology import Guest, GuestNic
from testbed.plan.controls import Walls, pinning
from testbed.plan.descriptions import change, owners
from testbed.plan.diff import differences
from testbed.plan.resources import Kind, central
from testbed.untrusted import bounded_json
from testbed.verify.fleet import Fleet, MachineView
from testbed.verify.probe.client import Probe
from testbed.verify.witnesses.nd_guard_model import guards

# Datapath actions that forward no packet out of the switch.
_WITHIN = frozenset(
    {"", "drop", "meter", "ct", "ct_clear", "recirc", "hash", "set", "set_masked", "push_vlan", "pop_vlan"}
)
# Speaks JSON-RPC to ovs-vswitchd's control socket over one connection: an ovs-appctl process for each frame
# would be slower.
_TRACE = """
import glob, json, socket
answers, decoder = {}, json.JSONDecoder()
with socket.socket(socket.AF_UNIX) as control:
    control.settimeout(30)
    control.connect(glob.glob("/var/run/openvswitch/ovs-vswitchd.*.ctl")[0])
    for number, (mark, port, frame) in enumerate(json.loads(REQUEST)):
        call = {"method": "ofproto/trace", "params": ["br-int", "in_port=" + port, frame], "id": number}
        control.sendall(json.dumps(call).encode())
        text = ""
        while True:
            text += control.recv(65536).decode()
            try:
                answer = decoder.raw_decode(text)[0]
                break
            except ValueError:
                pass
        actions = [line for line in str(answer["result"]).splitlines() if line.startswith("Datapath actions: ")]
        answers[mark] = "; ".join(line[18:] for line in actions) if actions else "no answer: %.200s" % answer["error"]
print(json.dumps(answers))
"""  # noqa: E501 - lines of a program


def pipeline(fleet: Fleet, probes: Sequence[Probe]) -> dict[str, str]:
    """Return the verdict of the sender's node on each frame, by mark, as datapath actions.

    See `passes`. A frame that the node's guard stops does not reach the datapath: its verdict is ``drop``.

    Raises:
        InstrumentError: a node's switch or guard cannot be asked, or gives no answer.
    """
    walls = guards(fleet)
    taps = {nic.mac: (guest.node, nic.tap) for guest in fleet.topology.guests for nic in guest.nics}
    asked: dict[str, list[tuple[str, str, str]]] = {}
    for probe in probes:
        node, tap = taps[probe.sender.mac]
        if probe.frame is not None:
            asked.setdefault(node, []).append((probe.mark, tap, probe.frame(b"trace").hex()))
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = pool.map(lambda node: _trace(fleet.machines[node], asked[node]), asked)
        told = {mark: actions for found in answers for mark, actions in found.items()}
    stopped = {
        mark
        for node in walls
        for mark, tap, frame in asked.get(node, ())
        if walls[node].stops(tap, bytes.fromhex(frame))
    }
    return {mark: "drop" if mark in stopped else actions for mark, actions in told.items()}


def passes(actions: str) -> bool:
    """Return whether datapath actions forward a frame.

    Forwarding means an output to a port, a tunnel or a program (ovs-actions(7)).
    """
    text = actions
    # Remove the innermost brackets until none is left: only names of top-level actions count.
    while (inner := re.sub(r"[({][^(){}]*[)}]", "", text)) != text:
        text = inner
    return any(word.strip() not in _WITHIN for word in re.split("[,;]", text))


def _trace(machine: MachineView, frames: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    answers: dict[str, str] = machine.python(_TRACE, json.dumps(frames))
    silent = [text for text in answers.values() if text.startswith("no answer")]
    if silent or len(answers) != len(frames):
        fact = silent[0] if silent else f"{len(answers)} answers to {len(frames)} questions"
        raise InstrumentError(
            f"the switch of {machine.name} cannot be asked", fact=fact, remedy="repeat the check"
        )
    return answers


@dataclass(frozen=True, slots=True)
class WitnessFinding:
    """One difference of a database or a guard from the topology.

    Args:
        controls: ids of the controls whose wall rests on the setting.
    """

    controls: frozenset[str]
    text: str

    def __str__(self) -> str:
        return self.text


def against(findings: Iterable[WitnessFinding], control: str) -> list[str]:
    """Return the findings that concern one control's wall."""
    return [finding.text for finding in findings if control in finding.controls]


def logical(fleet: Fleet) -> list[WitnessFinding]:
    """Return the differences of OVN's databases and the nodes' guards from the topology.

    Raises:
        InstrumentError: the southbound database cannot be read, or a guest's port is not in use, so that
            packets prove nothing.
        ProvisioningError: the northbound database cannot be read.
    """
    behind = [finding for guard in guards(fleet).values() for finding in guard.findings]
    return [
        *_northbound(fleet),
        *_southbound(fleet),
        *(WitnessFinding(frozenset({control}), text) for control, text in behind),
    ]


def _northbound(fleet: Fleet) -> list[WitnessFinding]:
    started, northbound = time.time(), fleet.lab.central.northbound
    place = fleet.topology.controller.name
    found: dict[Kind, Mapping[str, Mapping[str, Any]]] = {
        Kind.SWITCH: northbound.switches(),
        Kind.PORT: northbound.ports(),
    }
    fleet.evidence.record(place, "northbound", "switches and ports", found, started)
    wanted = {resource.key: resource for resource in central(fleet.topology)}
    live = {key: found[key.kind][key.name] for key in wanted if key.name in found[key.kind]}
    walls, owned = Walls.of_lab(fleet.topology), owners(wanted)
    return [
        WitnessFinding(walls.endangered(item), f"northbound: {item.told(owned)}")
        for item in differences(wanted, live)
    ]


def _southbound(fleet: Fleet) -> list[WitnessFinding]:
    machine = fleet.machines[fleet.topology.controller.name]
    text = machine.read(
        "ovn-sbctl --format=json --columns=logical_port,port_security,chassis,up list Port_Binding; echo; "
        "ovn-sbctl --format=json --columns=_uuid,name,hostname list Chassis"
    )
    try:
        bindings, chassis = (rows(bounded_json.read(line)) for line in text.splitlines() if line)
        names = {row["_uuid"]: row["name"] for row in chassis}
        ports = {row["logical_port"]: row for row in bindings}
    except (ValueError, KeyError, TypeError) as error:
        fact = f"{type(error).__name__}: {error}"
        raise InstrumentError(
            "OVN's southbound database cannot be read", fact=fact, remedy="repeat the check"
        ) from error
    nics = [(guest, nic) for guest in fleet.topology.guests for nic in guest.nics]
    idle = [guest.label for guest, nic in nics if ports.get(nic.port, {}).get("up") is not True]
    if idle:
        fact = f"OVN says that nothing uses the port of {', '.join(idle[:6])}"
        raise InstrumentError("a guest is not on its network", fact=fact, remedy="run `testbed up`")
    return [finding for guest, nic in nics for finding in _bound(guest, nic, ports[nic.port], names)]


def _bound(
    guest: Guest, nic: GuestNic, row: Mapping[str, Any], names: Mapping[str, str]
) -> Iterator[WitnessFinding]:
    """Yield the mistakes in the southbound database's row of a guest's port."""
    security, where = row.get("port_security"), names.get(str(row.get("chassis")), "no node")
    live = list(map(str, security)) if isinstance(security, list) else [str(security)] if security else []
    if live != [nic.port_security]:
        told = change("security", live, [nic.port_security], {})
        yield WitnessFinding(
            pinning(live, [nic.port_security]),
            f"southbound: interface of {guest.label} on {nic.network}: {told}",
        )
    if where != guest.node:
        told = (
            f"southbound: the interface of {guest.label} on {nic.network} is bound on {where}, and must be "
            f"on {guest.node}"
        )
        yield WitnessFinding(frozenset({"NET-08", "NET-13"}), told)


def rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a table in the JSON format of OVSDB's tools (RFC 7047, 5.1)."""
    return [
        {name: _value(cell) for name, cell in zip(table["headings"], row, strict=True)}
        for row in table["data"]
    ]


def _value(cell: Any) -> Any:  # noqa: ANN401 - JSON
    match cell:
        case ["uuid", str(text)]:
            return text
        case ["set", [*items]]:
            return [_value(item) for item in items]
        case ["map", [*pairs]]:
            return {key: _value(item) for key, item in pairs}
    return cell
