"""Every parser of octets that come from a guest, a node or a file, and the errors that it may raise."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from testbed.drivers.hypervisor.connection import Domain
from testbed.drivers.places.guest_start import addressed
from testbed.drivers.places.node import _live
from testbed.drivers.ssh.command_session import Session, SessionStream
from testbed.errors import InstrumentError, ProvisioningError, TopologyError, UsageError
from testbed.inventory import records as inventory
from testbed.model.reachability import endpoints
from testbed.model.resolve import resolve
from testbed.payload.probe import wire
from testbed.plan.host_config.settings import settings as settings_of
from testbed.plan.libvirt_xml import machine as domains
from testbed.report import formats, screen
from testbed.report.result import content_of, exit_code
from testbed.report.sarif import sarif
from testbed.topology_file.loader import load
from testbed.untrusted import bounded_json
from testbed.verify.guest_agent import Files
from testbed.verify.observation import observe, tap_witness
from testbed.verify.observation.arrivals import Observation
from testbed.verify.observation.declared_flows import uses
from testbed.verify.openflow import fleet_paths, flow_table, symbolic
from testbed.verify.openflow.header_space import cube
from testbed.verify.probe import client
from testbed.verify.probe.tokens import Tokens
from testbed.verify.witnesses import dhcp_answers, firewall_log, libvirt_conf, virtual_switch
from tests.fuzz import seeds

ROOT = Path(__file__).parents[2]
LAB = resolve(load((ROOT / "topologies/one-node.yaml").read_text(), "one-node.yaml").spec)
TOKENS = Tokens("tb-0123abcd-", b"key")
FLEET: Any = SimpleNamespace(topology=LAB)


@dataclass(frozen=True)
class Target:
    """A parser.

    Args:
        parse: called with octets.
        seeds: well-formed input, which is mutated.
        errors: what the parser may raise.

    """

    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    errors: tuple[type[Exception], ...]


def _topology(data: bytes) -> None:
    spec = load(data.decode(errors="replace"), "x.yaml").spec
    resolve(spec)


def _guest(data: bytes) -> None:
    """Read an answer of a probe, and draw every conclusion from it that a check draws."""
    probe = client.ProbeClient("red/web", lambda *_: b"", pipe=SimpleNamespace(allowance=_Endless()))
    answer = probe._read(base64.b64encode(_zip(data)), wire.inflate)
    addressed(answer.get("value"))
    for judge in (_listeners, _observed, _glanced, _sent):
        try:
            judge(answer)
        except InstrumentError:
            continue


class _Endless:
    def received(self, octets: int) -> None:
        """Count nothing."""


def _zip(data: bytes) -> bytes:
    import zlib  # noqa: PLC0415

    return zlib.compress(data, 1)


def _listeners(answer: dict[str, Any]) -> None:
    observe._require_listeners({"red/web": answer}, {"tcp": [80]})


def _glanced(answer: dict[str, Any]) -> None:
    TOKENS.marks_of(tap_witness._glanced("node", answer))


def _sent(answer: dict[str, Any]) -> None:
    results = client.results_of({guest.label: answer for guest in LAB.guests})
    probes = [use.probe("before") for use in uses(LAB)]
    client.require_sent(probes, results)


def _observed(answer: dict[str, Any]) -> None:
    records = client.listed(answer, "records")
    marks = [(use, f"{use.mark}{stage}") for use in uses(LAB) for stage in ("before", "after")]
    told = {
        guest.label: [
            *records,
            *({"token": TOKENS.of(mark)} for use, mark in marks if use.target.guest == guest.label),
        ]
        for guest in LAB.guests
    }
    answers = {mark: f"ok-{TOKENS.of(mark)}" for _, mark in marks}
    fleet: Any = SimpleNamespace(topology=LAB)
    client.require_receiver("red/web", {**answer, **client._SOUND}, down=answer.get("down"))
    seen = Observation.compared(TOKENS, told, dict.fromkeys(told, records), answers, {}, None)
    one, other = endpoints(LAB)[:2]
    for conclude in (
        lambda: seen.resolved(one, other),
        lambda: seen.windows(marks[0][1]),
        lambda: (seen.concealed(), seen.past(), seen.arrivals(marks[0][1])),
        lambda: observe._require_controls(fleet, seen),
        lambda: [dhcp_answers.read_offer(_hex(item.get("frame"))) for item in records],
        lambda: tap_witness.records_of({LAB.nodes[0].name: answer}, LAB),
    ):
        try:
            conclude()
        except InstrumentError:
            continue


def _hex(value: object) -> bytes:
    try:
        return bytes.fromhex(str(value))
    except ValueError:
        return str(value).encode(errors="replace")


def _agent(data: bytes) -> None:
    """Read a file through an agent whose answers, one after the other, are a list of JSON."""
    answers = bounded_json.read(data)
    left = iter(answers if isinstance(answers, list) else [answers])
    clock = count()

    def agent(*_: object) -> dict[str, Any]:
        found = next(left, {"buf-b64": None})
        return found if isinstance(found, dict) else {"value": found}

    files = Files(SimpleNamespace(agent=agent), LAB.guests[0], lambda: float(next(clock)))
    files.read("/run/x")
    files.write("/run/x", b"four")


def _session(data: bytes) -> None:
    """Let a session with a command and a stream read octets of a node."""
    session = Session.__new__(Session)
    session._write, session._close = (lambda _: None), (lambda: None)
    session._answers = BytesIO(data)
    session._lock, session._numbers, session._alive = _Lock(), count(), True
    waiting: Future[tuple[int, bytes, bytes] | None] = Future()
    stream = SessionStream(lambda _: None)
    session._waiting, session._streams = {0: waiting}, {1: stream}
    session._listen()
    if not waiting.done():
        raise Late("a command waits although its session has ended")
    if waiting.exception() is None and (found := waiting.result()) is not None:
        status, out, err = found
        assert isinstance(status, int)
        assert isinstance(out, bytes)
        assert isinstance(err, bytes)
    assert not session.alive
    while stream.recv(1):
        pass


class _Lock:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _result(data: bytes) -> None:
    found = content_of(data.decode(errors="replace"))
    exit_code(found)
    screen.verdicts(found, 80)
    formats.markdown(found)
    formats.junit(found)
    sarif(found, None, version="0")


def _ledger(data: bytes) -> None:
    machine: Any = SimpleNamespace(name="node", read=lambda _: data.decode(errors="replace"))
    found = firewall_log.read_ledger(machine)
    found.refuses("10.0.0.1", "10.0.0.2", "tcp", 22, 3.0)
    found.passed("udp", 53)
    assert isinstance(found.full, str)


def _openflow(data: bytes) -> None:
    tables = flow_table.read(data.decode(errors="replace"))
    symbolic.SymbolicWalk(tables, symbolic.ANY).start([cube(in_port=1)])


def _bridge(data: bytes) -> None:
    machine: Any = SimpleNamespace(name="node-a", read=lambda *_, **__: data.decode(errors="replace"))
    fleet_paths._bridge(machine, {"172.20.1.2": "node-b"})


def _southbound(data: bytes) -> None:
    machine: Any = SimpleNamespace(name="controller", read=lambda _: data.decode(errors="replace"))
    virtual_switch._southbound(
        SimpleNamespace(topology=LAB, machines={LAB.controller.name: machine})  # type: ignore[arg-type]
    )


def _domain(data: bytes) -> None:
    text = data.decode(errors="replace")
    for read in (domains.read_mark, domains.interface_count, domains.waits):
        read(text)
    _live(Domain("x", "u", "running", text))


def _settings(data: bytes) -> None:
    """Read every setting of a node from the same octets."""
    text = data.decode(errors="replace")
    for setting in settings_of(LAB, LAB.nodes[0]):
        assert isinstance(setting.reading(dict.fromkeys(setting.observe, text)), str)


def _inventory(data: bytes) -> None:
    inventory.unpack(_zip(data)).data()


TARGETS: dict[str, Target] = {
    "topology": Target(
        _topology,
        tuple(path.read_bytes() for path in sorted((ROOT / "topologies").glob("*.yaml"))),
        (TopologyError,),
    ),
    "guest": Target(_guest, seeds.ANSWERS, (InstrumentError,)),
    "agent": Target(_agent, seeds.AGENT, (InstrumentError, ValueError)),
    "session": Target(_session, seeds.SESSION, ()),
    "result": Target(_result, seeds.results(), (UsageError,)),
    "ledger": Target(_ledger, seeds.LEDGER, (InstrumentError,)),
    "openflow": Target(_openflow, seeds.FLOWS, (InstrumentError,)),
    "bridge": Target(_bridge, seeds.BRIDGE, (InstrumentError,)),
    "southbound": Target(_southbound, seeds.southbound(LAB), (InstrumentError,)),
    "domain": Target(_domain, seeds.domains(LAB), (ProvisioningError,)),
    "settings": Target(_settings, seeds.SETTINGS, ()),
    "libvirt-conf": Target(
        lambda data: libvirt_conf.read(data.decode(errors="replace")), seeds.CONF, (ValueError,)
    ),
    "inventory": Target(_inventory, seeds.INVENTORY, (ValueError,)),
}
