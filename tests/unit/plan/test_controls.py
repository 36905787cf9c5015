"""Every resource of every shipped topology belongs to controls.

Differences endanger the right ones.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from testbed.model.resolve import resolve
from testbed.model.topology import Topology
from testbed.plan import descriptions
from testbed.plan.controls import BY_PROPERTY, ITSELF, SEVERITY, STATE, Walls, pinning, rules
from testbed.plan.diff import Difference
from testbed.plan.resources import Key, Kind, desired
from testbed.topology_file.loader import read
from testbed.verify.check import ATTRIBUTE
from tests.sim.simulator import INPUTS

ROOT = Path(__file__).parents[3]
TOPOLOGIES = sorted((ROOT / "topologies").glob("*.yaml"))
# Controls of the catalogue that resources hold and no check of this repository declares.
NO_CHECK = {"AUD-01", "VMM-05"}


def _lab(path: Path) -> Topology:
    return resolve(read(path).spec)


def _declared() -> dict[str, str]:
    modules = [importlib.import_module(f"checks.{path.stem}") for path in (ROOT / "checks").glob("test_*.py")]
    found = [
        getattr(item, ATTRIBUTE)
        for module in modules
        for item in vars(module).values()
        if hasattr(item, ATTRIBUTE)
    ]
    return {item.id: item.severity for item in found}


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_every_property_of_every_resource_names_its_controls(path: Path) -> None:
    lab = _lab(path)
    walls = Walls.of_lab(lab)
    for key, resource in desired(lab, INPUTS).items():
        held = walls.held_by(key)
        assert held, key
        assert held <= set(SEVERITY), (key, held - set(SEVERITY))
        if key.kind is Kind.SETTING:
            assert key in walls.settings
        else:
            assert set(resource.properties) | {"size"} == set(BY_PROPERTY[key.kind]) | {"size"}, (
                key
            )  # an overlay has no size of its own
        for name in resource.properties:
            found = walls.endangered(Difference(key, name, "another", resource.properties[name]))
            assert found or name == STATE, (key, name)
            assert found <= set(SEVERITY)


def test_every_control_is_declared_by_a_check_or_known_to_have_none() -> None:
    declared = _declared()
    assert set(SEVERITY) - set(declared) <= NO_CHECK
    assert {name: SEVERITY[name] for name in declared if name in SEVERITY} == {
        n: s for n, s in declared.items() if n in SEVERITY
    }


RED = Key("controller", Kind.SWITCH, "red/app")
DROP = ["from-lport 1 drop: 1", "to-lport 1 drop: 1"]
TAKE = 'to-lport 1000 allow-related: outport == "p" && ip4.src == 10.0.0.2 && tcp.dst == 22'


@pytest.mark.parametrize(("extra", "controls"), [
    ("from-lport 2000 allow: ip", {"NET-01"}),
    ("to-lport 2000 allow: tcp.dst == 99", {"NET-01"}),
    ("from-lport 2000 allow: udp.src == 67", {"NET-01", "NET-06"}),
    ("from-lport 2000 allow: udp.src == 547", {"NET-01", "NET-06"}),
    ("from-lport 2000 allow: udp.dst == {4789, 6081}", {"NET-01", "NET-08"}),
    ('to-lport 2000 allow-related: outport == "p" && tcp.dst == 22', {"NET-01", "NET-04"}),
])  # fmt: skip
def test_a_rule_is_of_the_first_control_and_of_what_it_is_about(extra: str, controls: set[str]) -> None:
    assert rules([*DROP, TAKE, extra], [*DROP, TAKE]) == controls
    assert Walls({}).endangered(Difference(RED, "acls", [*DROP, TAKE, extra], [*DROP, TAKE])) == controls


def test_a_rule_that_is_missing_is_of_the_first_control() -> None:
    assert rules(DROP[:1], DROP) == {"NET-01"}


OWN = "0a:00:00:00:00:01 10.0.0.2 fd00::2"


@pytest.mark.parametrize(("found", "controls"), [
    ([], {"NET-02", "NET-03", "NET-04", "NET-05"}),
    ([""], {"NET-02", "NET-03", "NET-04", "NET-05"}),
    ([OWN, "0a:00:00:00:00:09 10.0.0.2"], {"NET-02", "NET-03"}),
    (["0a:00:00:00:00:01"], {"NET-03", "NET-04", "NET-05"}),
    ([f"{OWN} 10.0.0.9"], {"NET-03", "NET-04"}),
    ([f"{OWN} fd00::/64"], {"NET-04", "NET-05"}),
    (["0a:00:00:00:00:01 10.0.0.2"], {"NET-02", "NET-04"}),
])  # fmt: skip
def test_a_pinning_is_of_the_controls_of_what_it_lets_through(found: list[str], controls: set[str]) -> None:
    assert pinning(found, [OWN]) == controls


SERVICES = Key("node", Kind.SETTING, "services")
PORT = Key("controller", Kind.PORT, "red/web/app")


@pytest.mark.parametrize(
    ("key", "name", "found", "wanted", "controls"),
    [
        (PORT, "addresses", f"{OWN} unknown", OWN, {"NET-11"}),
        (PORT, "addresses", "0a:00:00:00:00:01 10.0.0.3", OWN, {"NET-06"}),
        (PORT, "bandwidth", 0, 500, {"NET-12"}),
        (RED, "options", ["vlan-passthru=true"], [], {"NET-07"}),
        (RED, "options", ["mcast_snoop=true"], [], {"NET-11"}),
        (RED, "options", ["exclude_ips=10.0.0.9"], [], {"NET-01"}),
        (RED, "dhcp", ["router=10.0.0.1"], [], {"NET-10"}),
        (RED, "", None, "red/app", {"NET-01", "NET-06", "NET-08", "NET-10"}),
        (Key("node", Kind.GUEST, "red/web"), "", None, "red/web", set()),
        (
            Key("node", Kind.GUEST, "red/web"),
            "",
            "red/web",
            None,
            set(" ".join(BY_PROPERTY[Kind.GUEST].values()).split()),
        ),
        (Key("node", Kind.GUEST, "red/web"), "state", "silent", "running", set()),
        (
            SERVICES,
            "value",
            "libvirtd active\nnftables failed",
            "libvirtd active\nnftables active",
            {"NET-08", "NET-09"},
        ),
        (SERVICES, "value", "unreadable", "auditd active", {"AUD-01"}),
    ],
)
def test_a_difference_is_of_the_controls_that_rest_on_it(
    key: Key, name: str, found: object, wanted: object, controls: set[str]
) -> None:
    assert Walls({}).endangered(Difference(key, name, found, wanted)) == controls  # type: ignore[arg-type]


def test_a_setting_that_nobody_knows_is_of_the_configuration_as_a_whole() -> None:
    assert Walls({}).endangered(Difference(Key("node", Kind.SETTING, "new"), "value", "a", "b")) == {ITSELF}


GUESTS = {"p": "red/web"}


@pytest.mark.parametrize(
    ("name", "found", "wanted", "told"),
    [
        (
            "acls",
            [*DROP, "from-lport 2000 allow: ip"],
            DROP,
            "rules: too many: every guest may send any IP packet (from-lport, priority 2000, allow)",
        ),
        (
            "acls",
            DROP[:1],
            DROP,
            "rules: missing: every guest may not be sent anything (to-lport, priority 1, drop)",
        ),
        (
            "acls",
            DROP,
            [*DROP, TAKE],
            (
                "rules: missing: red/web may be sent ip4.src == 10.0.0.2 && tcp.dst == 22 (to-lport, "
                "priority "
                "1000, allow-related)"
            ),
        ),
        (
            "acls",
            [*DROP, DROP[0]],
            DROP,
            "rules: too many: every guest may not send anything (from-lport, priority 1, drop)",
        ),
        (
            "acls",
            ["from-lport 5 reject: tcp"],
            [],
            (
                "rules: too many: every guest is answered with reject when it would send tcp (from-lport, "
                "priority 5, reject)"
            ),
        ),
        ("security", [], [OWN], f"source addresses: missing: '{OWN}'"),
        ("access", ["b", "a"], ["a", "b"], "access: another order"),
        ("value", "a 1\nb 2\nc 3", "a 1\nb 0\nc 3", "found 'b 2', wanted 'b 0'"),
        ("value", "a\nb", "a", "found 'b', wanted nothing"),
        ("value", "b\na", "a\nb", "found 'the same in another order', wanted nothing"),
        ("mode", "644", "600", "mode: found '644', wanted '600'"),
        ("dhcp6", None, ["server_id=a"], "what DHCPv6 tells: found nothing, wanted 'server_id=a'"),
        ("memory", 2 << 30, 1 << 30, "memory: found 2 GiB, wanted 1 GiB"),
    ],
)
def test_a_difference_is_told_in_words(name: str, found: object, wanted: object, told: str) -> None:
    assert descriptions.change(name, found, wanted, GUESTS) == told  # type: ignore[arg-type]


def test_a_long_list_is_bounded() -> None:
    told = descriptions.change(
        "acls", [f"from-lport {number} allow: {'x' * 400}" for number in range(2000, 2050)], [], {}
    )
    assert "and 45 more" in told
    assert len(told) < 1200


@pytest.mark.parametrize(
    "told",
    [
        descriptions.change("acls", ["from-lport 5 allow: ip\n::error::\x1b[2J"], [], {}),
        descriptions.change("mode", "644\n\x1b[2J", "600", {}),
        descriptions.resource(Key("node", Kind.VOLUME, "red/x\n::error::")),
    ],
)
def test_what_a_machine_says_stays_on_its_line(told: str) -> None:
    assert told.isprintable() or "\ufffd" in told
    assert not {"\n", "\x1b"} & set(told)
