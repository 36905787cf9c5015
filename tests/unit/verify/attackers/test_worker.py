"""Attempts of a probe that runs as a worker, between two positive controls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import InstrumentError
from testbed.verify.attackers.worker import Attempt, Job, all_succeeded, in_words, jobs_of, processes
from tests.shapes import lab_of

GUEST, OTHER = lab_of("one-node").guests[:2]
ATTEMPTS = (Attempt("read", "/etc/shadow"), Attempt("list", "/var/lib/a b"), Attempt("signal", "1"))
OUTCOMES = ["done", "EACCES", "done", "ESRCH", "done"]
WORKER = {
    "label": "libvirt-1 (enforce)",
    "accounts": [64100] * 4,
    "groups": [64100] * 4,
    "others": [104, 64100],
    "capabilities": [0, 0, 0, 0, 0],
    "bound": 1,
    "filters": [2, 1],
    "namespaces": {"mnt": "mnt:[2]", "net": "net:[1]"},
    "group": "0::/machine.slice/emulator",
}
ALONE = {**WORKER, "accounts": [0] * 4, "groups": [0] * 4, "others": [], "bound": 0, "filters": [0, 0]}


def _machine(*answers: Any) -> Any:
    """Return a machine whose program answers so, once for each job."""
    return SimpleNamespace(name="node", python=lambda *_, **__: list(answers))


def _answer(*outcomes: str, **worn: Any) -> dict[str, Any]:
    """Return the answer to one job, whose probe wears something else in some layers."""
    return {"worker": WORKER, "worn": {**WORKER, **worn}, "outcomes": list(outcomes or OUTCOMES)}


def succeeded(
    machine: Any, guest: Any, attempts: tuple[Attempt, ...], *, uid: int | None = None
) -> set[Attempt]:
    """Make the attempts of one job."""
    (found,) = all_succeeded(machine, [Job(guest, attempts, uid)])
    return found


def test_what_succeeded_is_what_the_probe_says() -> None:
    assert succeeded(_machine(_answer()), GUEST, ATTEMPTS) == {ATTEMPTS[1]}


def test_each_job_has_its_own_answer_and_its_own_words() -> None:
    jobs = [Job(GUEST, ATTEMPTS), Job(OTHER, (ATTEMPTS[0],), 64101), Job(OTHER, ATTEMPTS, 0)]
    one = {**_answer("done", "done", "done"), "worn": {**ALONE, "accounts": [64101] * 4}}
    none = {**_answer("done", "EPERM", "EPERM", "EPERM", "done"), "worn": ALONE}
    found = all_succeeded(_machine(_answer(), one, none), jobs)
    assert found == [{ATTEMPTS[1]}, {ATTEMPTS[0]}, set()]
    assert in_words(jobs, found) == [
        f"the worker of {GUEST.label} reached: list /var/lib/a b",
        f"the profile of {OTHER.label} alone would allow: read /etc/shadow",
    ]


def test_an_attacker_tries_everything_as_itself_and_each_part_with_its_profile_alone() -> None:
    own = Attempt("read", "/dev/pts/2")
    jobs = jobs_of(GUEST, {64101: ATTEMPTS[:2], 0: ATTEMPTS[2:]}, [own])
    assert [(job.uid, job.attempts) for job in jobs] == [
        (None, (*ATTEMPTS, own)),
        (64101, ATTEMPTS[:2]),
        (0, ATTEMPTS[2:]),
    ]
    assert {job.controlled[0].target for job in jobs if job.uid is None} == {GUEST.root_disk}
    assert {job.controlled[0].target.rpartition("/")[2] for job in jobs[1:]} == {"root.raw"}


@pytest.mark.parametrize("outcomes", [OUTCOMES[:-1], [*OUTCOMES, "done"], ["done"]], ids=str)
def test_a_probe_that_broke_off_tells_nothing(outcomes: list[str]) -> None:
    with pytest.raises(InstrumentError, match="broke off"):
        succeeded(_machine(_answer(*outcomes)), GUEST, ATTEMPTS)


@pytest.mark.parametrize("answers", [(), (_answer(), _answer())], ids=["none", "two"])
def test_as_many_jobs_are_answered_as_were_asked(answers: Any) -> None:
    with pytest.raises(InstrumentError, match="broke off"):
        succeeded(_machine(*answers), GUEST, ATTEMPTS)


@pytest.mark.parametrize("place", [0, -1])
def test_a_probe_that_cannot_open_its_own_volume_is_blind(place: int) -> None:
    outcomes = list(OUTCOMES)
    outcomes[place] = "EACCES"
    with pytest.raises(InstrumentError, match="is blind"):
        succeeded(_machine(_answer(*outcomes)), GUEST, ATTEMPTS)


@pytest.mark.parametrize(
    ("layer", "worn"),
    [
        ("label", "unconfined"),
        ("accounts", [64100, 64100, 0, 64100]),
        ("groups", [0] * 4),
        ("others", [0, 104, 64100]),
        ("capabilities", [0, 0, 0, 0, 1]),
        ("capabilities", [0, 0, 1 << 21, 0, 0]),
        ("bound", 0),
        ("filters", [0, 0]),
        ("filters", [2, 2]),
        ("namespaces", {"mnt": "mnt:[1]", "net": "net:[1]"}),
        ("group", "0::/system.slice/ssh.service"),
    ],
)
def test_a_probe_without_a_layer_is_found_out(layer: str, worn: Any) -> None:
    with pytest.raises(InstrumentError, match="does not wear") as caught:
        succeeded(_machine(_answer(**{layer: worn})), GUEST, ATTEMPTS)
    assert caught.value.fact == layer


@pytest.mark.parametrize(
    "worn",
    [{"accounts": [0, 0, 64100, 0]}, {"others": [104]}, {"label": "unconfined"}, {"capabilities": [1] * 5}],
)
def test_a_probe_with_the_profile_alone_wears_that_and_the_account(worn: Any) -> None:
    answer = {"worker": WORKER, "worn": ALONE, "outcomes": OUTCOMES}
    assert succeeded(_machine(answer), GUEST, ATTEMPTS, uid=0) == {ATTEMPTS[1]}
    with pytest.raises(InstrumentError, match="does not wear"):
        succeeded(_machine({**answer, "worn": {**ALONE, **worn}}), GUEST, ATTEMPTS, uid=0)


def test_a_guest_without_a_worker_is_named() -> None:
    with pytest.raises(InstrumentError, match="has no worker"):
        succeeded(_machine({}), GUEST, ATTEMPTS)


@pytest.mark.parametrize(
    "answer", [None, {"worker": WORKER}, {**_answer(), "more": 1}, {**_answer(), "outcomes": [1]}]
)
def test_an_answer_of_another_form_tells_nothing(answer: Any) -> None:
    with pytest.raises(InstrumentError, match=r"another form|broke off"):
        succeeded(_machine(answer), GUEST, ATTEMPTS)


def _listing(*answers: str) -> Any:
    return SimpleNamespace(name="node", read=lambda _: "\n".join(answers))


@pytest.mark.parametrize("text", ["", "a", "a 1\nb", "a 1\nb x", "a 1 2"])
def test_every_worker_is_told(text: str) -> None:
    assert processes(_listing("a 1", "b 22"), [GUEST]) == {"a": 1, "b": 22}
    with pytest.raises(InstrumentError, match="cannot be told"):
        processes(_listing(text), [GUEST])


def test_a_node_without_guests_may_have_no_worker() -> None:
    assert processes(_listing(""), []) == {}
    assert processes(_listing("a 1"), []) == {"a": 1}
    with pytest.raises(InstrumentError, match="cannot be told"):
        processes(_listing("a"), [])
