"""The controller's databases, attacked with machines' keys, other keys and none (NET-08)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from checks.support.breaches import controller, shell_breach
from testbed.errors import InstrumentError
from testbed.model.exposure import NORTHBOUND
from testbed.model.topology import Plane
from testbed.plan.host_config.settings import SOUTHBOUND
from testbed.verify.breach_context import BreachContext
from testbed.verify.check import Breach, Effect, check
from testbed.verify.fleet import Fleet, MachineView

_ROLE, _PORT = "role=ovn-controller", 6642
_TABLES = ("Chassis", "Datapath_Binding", "Logical_Flow", "Port_Binding", "SB_Global")

# An OVSDB client (RFC 7047) without valid credentials, which asks for the names of the databases.
_STRANGER = """
import json, os, socket, ssl, subprocess, tempfile, time
address, port, own, tables = json.loads(REQUEST)
KEYS = ("/run/testbed/ovn/certificate.pem", "/run/testbed/ovn/key.pem")
decoder = json.JSONDecoder()

def call(channel, method, params):
    channel.sendall(json.dumps({"method": method, "params": params, "id": method}).encode())
    text = ""
    while True:
        more = channel.recv(65536)
        if not more:
            raise OSError("the channel ended")
        text += more.decode()
        while text:
            try:
                answer, end = decoder.raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            if answer.get("id") == method:
                return answer

def dial(wrap):
    return wrap(socket.create_connection((address, port), timeout=20))

def stranger(wrap):
    try:
        with dial(wrap) as channel:
            return "answered" if "OVN_" in str(call(channel, "list_dbs", [])) else "silent"
    except TimeoutError:
        return "late"
    except OSError as error:
        return "refused: %s" % error

def secured(*pair):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if pair:
        context.load_cert_chain(*pair)
    return context.wrap_socket

with tempfile.TemporaryDirectory() as folder:
    pair = [os.path.join(folder, name) for name in ("certificate", "key")]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
                    "-subj", "/CN=" + own, "-out", pair[0], "-keyout", pair[1]], check=True, capture_output=True)
    ways = {"in the clear": lambda channel: channel, "without a certificate": secured(),
            "with a certificate of its own making": secured(*pair)}
    answers = {"strangers": {name: stranger(way) for name, way in ways.items()}}
"""  # noqa: E501 - lines of a program

# With the node's credentials it writes a mark into rows of others, in one transaction for each table, and
# removes the mark where that was allowed. Then it uses the permissions of OVN's roles: it reads, claims
# another node's port, and waits until that node has it back.
_ATTACK = f"""{_STRANGER}
def marking(table, verb, value):
    where = [["name", "!=", own]] if table == "Chassis" else []
    mutation = ["external_ids", verb, value]
    return ["OVN_Southbound", {{"op": "mutate", "table": table, "where": where, "mutations": [mutation]}}]

def node():
    answers = {{}}
    with dial(secured(*KEYS)) as channel:
        for table in tables:
            answer = call(channel, "transact", marking(table, "insert", ["map", [["breach", "tried"]]]))
            answers[table] = json.dumps(answer)[:300]
            if not answer["error"] and all("error" not in item for item in answer["result"]):
                answers[table] = "written" if any(item.get("count") for item in answer["result"]) else "empty"
                call(channel, "transact", marking(table, "delete", ["set", ["breach"]]))
    return answers

def select(channel, table, *columns):
    answer = call(channel, "transact", ["OVN_Southbound", {{"op": "select", "table": table, "where": [], "columns": columns}}])
    return answer["result"][0]["rows"]

def places(channel):
    return {{row["logical_port"]: row["chassis"] for row in select(channel, "Port_Binding", "logical_port", "chassis")}}

def still():
    with dial(secured(*KEYS)) as channel:
        me = next(row["_uuid"] for row in select(channel, "Chassis", "_uuid", "name") if row["name"] == own)
        before = places(channel)
        others = sorted(port for port, chassis in before.items() if chassis not in (me, ["set", []]))
        found = {{"reads": {{"rules": len(select(channel, "Logical_Flow", "match")), "ports of other nodes": len(others)}}}}
        if others:
            change = {{"op": "update", "table": "Port_Binding", "where": [["logical_port", "==", others[0]]], "row": {{"chassis": me}}}}
            answer, started = call(channel, "transact", ["OVN_Southbound", change]), time.monotonic()
            found["claims"] = "taken" if not answer["error"] and "error" not in answer["result"][0] else "refused"
            now = since = started  # when it was last elsewhere: both nodes may claim it in the database for a moment
            while since + 0.5 > now and now < started + 60:
                time.sleep(0.05)
                now = time.monotonic()
                since = now if places(channel) != before else since
            found["back"], found["seconds"] = since + 0.5 <= now, round(since - started, 2)
    return found

try:
    answers["node"] = node()
    answers["still"] = still()
except OSError as error:
    answers["node"], answers["error"] = {{}}, str(error)
print(json.dumps(answers))
"""  # noqa: E501 - lines of a program


_WAYS = 3  # ways in which `_STRANGER` connects


def _require_refusals(answers: Mapping[str, str], asked: int) -> None:
    """Require that every foreign client was refused; a late answer is no refusal.

    Raises:
        InstrumentError: one was not refused, or did not ask.
    """
    unsure = [
        f"{name}: {answer}" for name, answer in answers.items() if not str(answer).startswith("refused: ")
    ]
    if unsure or len(answers) != asked:
        fact = f"{len(answers)} answers to {asked} questions; {'; '.join(unsure)}"
        raise InstrumentError(
            "a database did not refuse every foreign client", fact=fact[:300], remedy="repeat the check"
        )


def _connect(context: BreachContext, *words: str) -> None:
    context.lab.central.host.must(f"ovn-sbctl set-connection {' '.join(words)}")


def _speaks(name: str, *words: str) -> Breach:
    """Return a breach by another connection setting of the southbound database."""
    return Breach(
        name,
        open=lambda context: _connect(context, *words),
        close=lambda context: _connect(context, _ROLE, f"pssl:{_PORT}"),
        in_force=lambda context: (
            context.lab.central.host.must("ovn-sbctl get-connection").strip() != SOUTHBOUND
        ),
    )


@check(
    id="NET-08",
    objective=(
        "A fallen node writes no rows but its own into the southbound database, and a client without a valid "
        "certificate reads none"
    ),
    severity="critical",
    effect=Effect.DISTURBS,
    breaches=(
        _speaks("the southbound database knows no roles", f"pssl:{_PORT}"),
        _speaks("the southbound database speaks in the clear", _ROLE, f"ptcp:{_PORT}"),
    ),
)
def test_a_fallen_node_speaks_for_itself_only(fleet: Fleet, node: MachineView) -> None:
    place = str(fleet.topology.controller.address(Plane.MANAGEMENT))
    answers = node.python(_ATTACK, json.dumps([place, _PORT, node.name, _TABLES]))
    fleet.evidence.record(
        node.name, "measured", "what OVN's roles leave to a fallen node", answers.get("still"), time.time()
    )
    told = sorted(name for name, answer in answers["strangers"].items() if answer == "answered")
    assert not told, f"the southbound database answers foreign clients: {', '.join(told)}"
    _require_refusals(answers["strangers"], _WAYS)
    if set(answers["node"]) != set(_TABLES):
        fact = answers.get("error", "not every table was tried")
        raise InstrumentError(
            f"{node.name} cannot speak to the southbound database", fact=fact, remedy="run `testbed up`"
        )
    written = sorted(table for table, answer in answers["node"].items() if answer == "written")
    assert not written, f"{node.name} writes others' rows in {', '.join(written)}"
    if answers.get("still", {}).get("back") is False:
        raise InstrumentError(
            "a port that was claimed is not back at its node",
            fact=str(answers["still"]),
            remedy="run `testbed up`",
        )
    odd = {
        table: answer
        for table, answer in answers["node"].items()
        if "permission error" not in answer and answer != "empty"
    }
    if odd or set(answers["node"].values()) == {"empty"}:
        raise InstrumentError(
            "the southbound database refuses for another reason than its roles",
            fact=str(odd)[:300],
            remedy="-",
        )


_AUTHORITY = "/run/testbed/ovn/administrators.pem"
_CERTIFICATE = "with a machine's certificate"


@check(
    id="NET-08",
    objective=(
        "Only administrators speak to the northbound database: no machine's certificate opens it, and no "
        "stranger's"
    ),
    severity="critical",
    effect=Effect.PROBES,
    breaches=(
        shell_breach(
            "the northbound database takes the certificate of any machine",
            opens=lambda _: f"cat /run/testbed/ovn/ca.pem >> {_AUTHORITY}",
            closes=lambda _: f"sed -i '/END CERTIFICATE/q' {_AUTHORITY}",
            shows=lambda _: f"[ $(grep -c BEGIN {_AUTHORITY}) = 2 ]",
            where=controller,
        ),
        shell_breach(
            "the northbound database speaks in the clear",
            opens=lambda _: "ovn-nbctl set-connection ptcp:6641",
            closes=lambda _: "ovn-nbctl set-connection pssl:6641",
            shows=lambda _: "ovn-nbctl get-connection | grep -q ptcp",
            where=controller,
        ),
    ),
)
def test_the_northbound_database_knows_administrators_only(fleet: Fleet) -> None:
    # Runs on the controller, behind its firewall: only the administrator's address reaches the port (NET-09).
    machine = fleet.machines[fleet.topology.controller.name]
    program = (
        f"{_STRANGER}\nanswers['strangers'][{_CERTIFICATE!r}] = stranger(secured(*KEYS))\n"
        "print(json.dumps(answers))"
    )
    answers = machine.python(program, json.dumps(["127.0.0.1", NORTHBOUND, machine.name, []]))["strangers"]
    told = sorted(name for name, answer in answers.items() if answer == "answered")
    assert not told, f"the northbound database answers foreign clients: {', '.join(told)}"
    _require_refusals(answers, _WAYS + 1)
    if _CERTIFICATE not in answers or not fleet.lab.central.northbound.switches():
        what = "the northbound database does not answer administrators either"
        raise InstrumentError(what, fact=str(answers)[:300], remedy="run `testbed up`")
