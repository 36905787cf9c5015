"""The program that asks the kernel for modules as an ordinary account, and the judgement of its answer."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.payload.attacks import attempts
from testbed.payload.kernel import module_requests as program
from testbed.verify.witnesses import module_requests as judge

LISTED = """\
# Aliases extracted from modules themselves.
alias net-pf-21 rds
alias net-pf-2-proto-132 sctp
alias net-pf-2-proto-256-type-1 smc
alias net-pf-16-proto-16-family-wireguard wireguard
alias net-pf-16-proto-4-type-2-6 tcp_diag
alias tty-ldisc-18 pps-ldisc
alias pci:v00001AF4d00001000sv*sd*bc*sc*i* virtio_pci
alias net-pf-21x evil
alias rtnl-link-dummy dummy
alias rtnl-link-nlmon nl-mon
"""
# One of each form that Linux 6.12 has.
LISTED_BY_A_KERNEL = (
    "net-pf-10-proto-115-type-2",
    "net-pf-15",
    "net-pf-16-proto-16-family-SMC_GEN_NETLINK",
    "net-pf-16-proto-20",
    "net-pf-16-proto-4-type-1",
    "net-pf-16-proto-4-type-10-255",
    "net-pf-16-proto-4-type-17",
    "net-pf-16-proto-4-type-2-262",
    "net-pf-2-proto-256-type-1",
    "net-pf-43",
)
ANSWER: dict[str, Any] = {
    "outcomes": {
        **{f"net-pf-{number}": "EAFNOSUPPORT" for number in range(20, 40)},
        "interfaces in a namespace": "EPERM",
    },
    "loaded": [],
    "control": {"a socket of TCP": "done", "root's file": "EACCES"},
}


def test_the_kernel_names_what_can_be_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "modules.alias"
    file.write_text(LISTED)
    assert program._aliases(str(file), program._LINK) == {
        "dummy": "dummy",
        "nlmon": "nl_mon",
    }
    assert program._aliases(str(file), program._ALIAS) == {
        "net-pf-21": "rds",
        "net-pf-2-proto-132": "sctp",
        "net-pf-2-proto-256-type-1": "smc",
        "net-pf-16-proto-16-family-wireguard": "wireguard",
        "net-pf-16-proto-4-type-2-6": "tcp_diag",
        "tty-ldisc-18": "pps_ldisc",
    }


@pytest.mark.parametrize(
    "alias",
    [
        "net-pf-2-proto-6",  # TCP
        "net-pf-2-proto-17-type-2",  # UDP
        "net-pf-16",  # netlink
        "net-pf-16-proto-16-family-nlctrl",  # the family of generic netlink that all have
        "tty-ldisc-0",  # that of every terminal
    ],
)
def test_what_every_kernel_has_is_got(alias: str) -> None:
    assert attempts.outcome(program._ask, alias) == "done"


@pytest.mark.parametrize(
    ("alias", "error"),
    [
        ("net-pf-2-proto-254-type-1", {"EPROTONOSUPPORT"}),
        ("net-pf-16-proto-16-family-undeclared", {"ENOENT"}),
        ("tty-ldisc-29", {"EINVAL"}),
        ("net-pf-45", {"EAFNOSUPPORT", "EINVAL", "EPERM"}),
        ("undeclared", {"EINVAL"}),
    ],
)
def test_what_no_kernel_has_is_an_error(alias: str, error: set[str]) -> None:
    assert attempts.outcome(program._ask, alias) in error


@pytest.mark.parametrize("alias", sorted({*LISTED_BY_A_KERNEL}))
def test_no_request_breaks_the_others_off(alias: str) -> None:
    assert attempts.outcome(program._ask, alias)


def test_interfaces_are_asked_for_in_a_namespace_of_the_child() -> None:
    before = Path("/proc/self/ns/net").readlink()
    assert attempts.tried([("links", program._links, (["undeclared"],))]) == {"links": "done"}
    assert Path("/proc/self/ns/net").readlink() == before


def test_an_answer_of_the_kernel_that_is_an_error_is_raised() -> None:
    with pytest.raises(OSError, match="No such file") as raised:
        program._generic("undeclared")
    assert raised.value.errno == errno.ENOENT


def test_modules_that_were_loaded_are_the_result() -> None:
    assert judge.loaded(ANSWER) == []
    assert judge.loaded({**ANSWER, "loaded": ["rds"]}) == ["rds"]


@pytest.mark.parametrize(
    "change",
    [
        {"control": {"a socket of TCP": "done", "root's file": "done"}},  # it is root
        {"control": {"a socket of TCP": "EPERM", "root's file": "EACCES"}},  # it may do nothing at all
        {"control": {}},
        {"outcomes": {}},  # the child broke off
        {"outcomes": {"net-pf-21": "done"}},
        {"outcomes": {f"net-pf-{number}": "EAFNOSUPPORT" for number in range(20, 40)}},  # no namespace
        {"loaded": "rds"},
        {"more": 1},
    ],
)
def test_an_answer_that_shows_nothing_is_no_pass(change: dict[str, Any]) -> None:
    with pytest.raises(UnseenError):
        judge.loaded({**ANSWER, **change})
