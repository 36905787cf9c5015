"""How helpers are judged, given how attempts ended on a real node (PRC-06)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.plan.host_config.helper import PROFILE, PROGRAM
from testbed.verify.attackers import helper

WORKERS = {"red.web": 7, "blue.web": 8}
ATTEMPTS = (
    helper.OWN, "read /volume", "connect to /run/socket", "trace red.web", "start /usr/bin/true",
    "load a module", "take on the profile of libvirtd",
)  # fmt: skip
REFUSED = "EACCES"
BOUND = (2, 1, 0, 0)
FREE = (0, 0, 2**41 - 1, 2**41 - 1)


def _child(label: str, thread: tuple[int, ...], done: tuple[str, ...], place: str = "own") -> dict[str, Any]:
    outcomes = {attempt: "done" if attempt.startswith(done) else REFUSED for attempt in ATTEMPTS}
    worn = {"pid": 9, "label": label, "account": 0, "threads": [thread], "mounts": place, "network": place}
    return {"worn": worn, "outcomes": outcomes}


def _answer() -> dict[str, Any]:
    """Return the answer of a node whose walls are closed."""
    label = f"{PROFILE} (enforce)"
    root = _child("unconfined", FREE, ATTEMPTS, "first")
    virtlogd = {
        "pid": 5, "program": PROGRAM, "label": label, "account": 0, "threads": [BOUND], "mounts": "own",
        "network": "own", "serves": sorted(WORKERS), "filters": 3,
        "layers": {
            "profile": _child(label, FREE, (helper.OWN, "connect to"), "first"),
            "privileges": _child("unconfined", BOUND, (helper.OWN, "start", "take on")),
            "everything": _child(label, BOUND, (helper.OWN,)),
        },
    }  # fmt: skip
    return {"before": root, "helpers": [virtlogd], "after": deepcopy(root)}


def _with(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> dict[str, Any]:
    answer = _answer()
    change(answer, answer["helpers"][0])
    return answer


def test_closed_walls_are_no_fault() -> None:
    assert helper.judged(_answer(), WORKERS) == ((), ())


@pytest.mark.parametrize("layer", helper.LAYERS)
@pytest.mark.parametrize("attempt", ATTEMPTS[1:])
def test_each_attempt_that_succeeds_is_a_fault_of_the_layers_that_must_refuse_it(
    layer: str, attempt: str
) -> None:
    answer = _with(lambda _, item: item["layers"][layer]["outcomes"].update({attempt: "done"}))
    spared = {"profile": ("connect",), "privileges": ("start", "take on"), "everything": ()}[layer]
    wanted = () if attempt.startswith(spared) else (
        f"{PROGRAM} (process 5) can {attempt}, as far as its {layer} goes",
    )  # fmt: skip
    assert helper.judged(answer, WORKERS) == ((), wanted)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label", f"{PROFILE} (complain)"),
        ("label", "unconfined"),
        ("threads", [BOUND, (2, 1, 2, 0)]),
        ("threads", [BOUND, (2, 1, 0, 2)]),
        ("threads", [BOUND, (0, 1, 0, 0)]),
        ("threads", [BOUND, (2, 0, 0, 0)]),
    ],
)
def test_a_helper_that_is_less_confined_is_a_fault(field: str, value: Any) -> None:
    def loosen(_: object, item: dict[str, Any]) -> None:
        item[field] = value
        for layer in ("profile", "everything"):
            item["layers"][layer]["worn"]["label"] = item["label"]

    loose, reached = helper.judged(_with(loosen), WORKERS)
    assert len(loose) == 1
    assert reached == ()


def test_a_process_that_shares_a_pipe_with_a_worker_must_be_declared() -> None:
    stranger = {**_answer()["helpers"][0], "pid": 6, "program": "/usr/bin/cat", "serves": ["red.web"]}
    loose, _ = helper.judged(_with(lambda answer, _: answer["helpers"].append(stranger)), WORKERS)
    assert loose == ("/usr/bin/cat (process 6), which serves red.web: no profile is declared for it",)


def test_a_helper_that_is_less_confined_is_a_fault_even_if_attempts_end_oddly() -> None:
    def change(_: object, item: dict[str, Any]) -> None:
        item["threads"] = [FREE]
        item["layers"]["everything"]["outcomes"]["load a module"] = "EIO"

    loose, reached = helper.judged(_with(change), WORKERS)
    assert len(loose) == 2
    assert reached == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda answer, _: answer["before"]["outcomes"].update({"load a module": "EPERM"}),
        lambda answer, _: answer["after"]["outcomes"].update({"load a module": "EPERM"}),
        lambda answer, _: answer["after"]["outcomes"].pop("load a module"),
        lambda answer, _: answer.update(before={}),
        lambda answer, _: answer["helpers"].clear(),
        lambda answer, _: answer["helpers"][0].update(program="/usr/bin/cat"),
        lambda _, item: item["layers"].pop("profile"),
        lambda _, item: item["layers"].update(profile={}),
        lambda _, item: item["layers"]["everything"]["outcomes"].pop("trace red.web"),
        lambda _, item: item["layers"]["everything"]["outcomes"].update({helper.OWN: "EACCES"}),
        lambda _, item: item["layers"]["everything"]["outcomes"].update({"trace red.web": "ESRCH"}),
        lambda _, item: item["layers"]["profile"]["worn"].update(label="unconfined"),
        lambda _, item: item["layers"]["privileges"]["worn"].update(threads=[FREE]),
        lambda _, item: item["layers"]["privileges"]["worn"].update(mounts="first"),
        lambda _, item: item["layers"]["everything"]["worn"].update(network="first"),
    ],
)
def test_attempts_that_would_not_have_shown_an_open_wall_are_not_judged(change: Any) -> None:
    with pytest.raises(UnseenError):
        helper.judged(_with(change), WORKERS)


CONFIGURED = {
    "AppArmorProfile": PROFILE, "CapabilityBoundingSet": "", "AmbientCapabilities": "",
    "NoNewPrivileges": "yes", "ProtectSystem": "strict", "PrivateNetwork": "yes",
}  # fmt: skip


def _printed(**changed: str) -> str:
    return "\n".join(f"{name}={value}" for name, value in {**CONFIGURED, **changed}.items())


def test_a_unit_as_declared_is_no_fault() -> None:
    assert helper.misconfigured(_printed()) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AppArmorProfile", "unconfined"), ("CapabilityBoundingSet", "cap_dac_override"),
        ("AmbientCapabilities", "cap_kill"), ("NoNewPrivileges", "no"), ("ProtectSystem", "full"),
        ("PrivateNetwork", "no"),
    ],
)  # fmt: skip
def test_each_property_that_would_loosen_the_next_start_is_a_fault(name: str, value: str) -> None:
    assert helper.misconfigured(_printed(**{name: value})) == (
        f"the unit virtlogd.service has {name}={value}",
    )


def test_a_manager_that_does_not_tell_is_not_judged() -> None:
    with pytest.raises(UnseenError):
        helper.misconfigured("NoNewPrivileges=yes")
