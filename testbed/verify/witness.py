"""Witnesses of a network wall besides packets: OVN's databases, and the nodes' own OpenFlow pipelines.

Packets sample; `pipeline` asks a node's switch what it would do with a frame, and `logical` compares what the
databases say with what the topology declares (NET-01 to NET-07).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from testbed.errors import InstrumentError
from testbed.plan.resources import Kind, central
from testbed.verify.fleet import Fleet, Machine
from testbed.verify.guard import guards
from testbed.verify.probing import Probe

_WITHIN = frozenset({"", "drop", "meter", "ct", "ct_clear", "recirc", "hash", "set", "set_masked", "push_vlan", "pop_vlan"})
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
"""


def pipeline(fleet: Fleet, probes: Sequence[Probe]) -> dict[str, str]:
    """Return by mark what the sender's node would do with each frame now, as actions of its datapath; see `passes`.

    What the node's guard stops does not come to its datapath.

    Raises:
        InstrumentError: a node's switch or guard cannot be asked, or cannot tell.

    """
    walls = guards(fleet)
    taps = {nic.mac: (guest.node, nic.tap) for guest in fleet.testbed.guests for nic in guest.nics}
    asked: dict[str, list[tuple[str, str, str]]] = {}
    for probe in probes:
        node, tap = taps[probe.sender.mac]
        if probe.frame is not None:
            asked.setdefault(node, []).append((probe.mark, tap, probe.frame(b"trace").hex()))
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = pool.map(lambda node: _trace(fleet.machines[node], asked[node]), asked)
        told = {mark: actions for found in answers for mark, actions in found.items()}
    stopped = {mark for node in walls for mark, tap, frame in asked.get(node, ()) if walls[node].stops(tap, bytes.fromhex(frame))}
    return {mark: "drop" if mark in stopped else actions for mark, actions in told.items()}


def passes(actions: str) -> bool:
    """Tell whether some of a datapath's actions send a frame on: to a port, a tunnel or a program (ovs-actions(7))."""
    text = actions
    while (inner := re.sub(r"[({][^(){}]*[)}]", "", text)) != text:
        text = inner
    return any(word.strip() not in _WITHIN for word in re.split("[,;]", text))


def _trace(machine: Machine, frames: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    answers: dict[str, str] = machine.python(_TRACE, json.dumps(frames))
    silent = [text for text in answers.values() if text.startswith("no answer")]
    if silent or len(answers) != len(frames):
        fact = silent[0] if silent else f"{len(answers)} answers to {len(frames)} questions"
        raise InstrumentError(f"the switch of {machine.name} cannot be asked", fact=fact, remedy="repeat the check")
    return answers


def logical(fleet: Fleet) -> list[str]:
    """Return where OVN's northbound and southbound databases differ from what the topology declares.

    Raises:
        InstrumentError: the southbound database cannot be read.
        ProvisioningError: the northbound database cannot be read.

    """
    started, northbound = time.time(), fleet.lab.central.northbound
    found: dict[Kind, Mapping[str, Mapping[str, Any]]] = {Kind.SWITCH: northbound.switches(), Kind.PORT: northbound.ports()}
    fleet.evidence.record(fleet.testbed.controller.name, "northbound", "switches and ports", found, started)
    findings = []
    for resource in central(fleet.testbed):
        live = found[resource.key.kind].get(resource.key.name, {})
        findings += [
            f"northbound: {name} of {resource.key.name} is {_short(live.get(name))} and not {_short(value)}"
            for name, value in resource.properties.items()
            if live.get(name) != value
        ]
    behind = [finding for guard in guards(fleet).values() for finding in guard.findings]
    return findings + _southbound(fleet) + behind


def _short(value: object) -> str:
    return str(value) if len(str(value)) < 80 else f"something else ({len(value) if isinstance(value, list) else 1} items)"


def _southbound(fleet: Fleet) -> list[str]:
    machine = fleet.machines[fleet.testbed.controller.name]
    text = machine.read("ovn-sbctl --format=json --columns=logical_port,port_security,chassis,up list Port_Binding; echo; "
                        "ovn-sbctl --format=json --columns=_uuid,name,hostname list Chassis")  # fmt: skip
    try:
        bindings, chassis = (rows(json.loads(line)) for line in text.splitlines() if line)
    except (ValueError, KeyError, TypeError) as error:
        fact = f"{type(error).__name__}: {error}"
        raise InstrumentError("OVN's southbound database cannot be read", fact=fact, remedy="repeat the check") from error
    names = {row["_uuid"]: row["name"] for row in chassis}
    ports = {row["logical_port"]: row for row in bindings}
    findings = []
    for guest in fleet.testbed.guests:
        for nic in guest.nics:
            row = ports.get(nic.port, {})
            facts = {"port_security": row.get("port_security"), "chassis": names.get(row.get("chassis")), "up": row.get("up")}
            wanted = {"port_security": nic.pinned, "chassis": guest.node, "up": True}
            findings += [f"southbound: {name} of {guest.label} is {facts[name]} and not {wanted[name]}" for name in wanted
                         if facts[name] != wanted[name]]  # fmt: skip
    return findings


def rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a table as OVSDB's tools print it in JSON (RFC 7047, 5.1)."""
    return [{name: _value(cell) for name, cell in zip(table["headings"], row, strict=True)} for row in table["data"]]


def _value(cell: Any) -> Any:  # noqa: ANN401 - JSON
    match cell:
        case ["uuid", str(text)]:
            return text
        case ["set", [*items]]:
            return [_value(item) for item in items]
        case ["map", [*pairs]]:
            return {key: _value(item) for key, item in pairs}
    return cell
