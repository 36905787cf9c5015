"""What the tool makes of hostile answers, judged (DEV-03)."""

from __future__ import annotations

import os

import pytest

from testbed.errors import InstrumentError
from testbed.hosts.rules import UnseenError
from testbed.payload.attacks.hostile_agent import TRUE, words
from testbed.untrusted.text import clean
from testbed.verify.agents import answers as agent_answers
from testbed.verify.agents import memory_peaks
from testbed.verify.agents.answers import Answered, Pings
from testbed.verify.guest_agent import Output

NAMES = ("red.first", "red/first")
REFUSED = InstrumentError("the guest agent of red.first answers garbage", fact=words("t"), remedy="-")


def _faults(**changes: object) -> list[str]:
    kept: dict[str, object] = {
        "name": "x", "seconds": 1.0, "limit": 5.0, "answer": None, "error": REFUSED, "right": None,
    }  # fmt: skip
    return agent_answers.faults(Answered(**{**kept, **changes}), NAMES)  # type: ignore[arg-type]


def test_an_error_in_time_that_names_the_guest() -> None:
    assert _faults() == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seconds": 5.5}, "took 5.5 s of 5 s"),
        ({"error": InstrumentError("an agent fails", fact="-", remedy="-")}, "does not name the guest"),
        ({"error": RecursionError()}, "fails with RecursionError"),
        ({"error": None, "answer": {"pid": 4242}}, "takes {'pid': 4242} for an answer"),
        ({"error": None, "answer": {"pid": 4242}, "right": {"pid": TRUE}}, "takes {'pid': 4242}"),
        ({"name": "next", "right": {"pid": TRUE}}, "a right answer is refused"),
    ],
)
def test_a_fault(changes: dict[str, object], text: str) -> None:
    assert text in "; ".join(_faults(**changes))


def test_the_right_answer_and_clean_output() -> None:
    assert _faults(error=None, answer={"pid": TRUE}, right={"pid": TRUE}) == []
    assert _faults(error=None, answer=Output(0, words("t").encode(), b""), right="") == []


def test_a_text_that_is_not_escaped_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("testbed.untrusted.text.clean", lambda text, limit=0: str(text))
    assert "not escaped in the error" in "; ".join(_faults())
    assert "output is not escaped" in "; ".join(
        _faults(error=None, answer=Output(0, words("t").encode(), b""), right="")
    )


def test_what_terminals_and_pipelines_obey() -> None:
    assert agent_answers.obeyed("\x1b[1m") == "a character U+001B"
    assert agent_answers.obeyed("a\n  ::error::") == "a line that begins with two colons"
    assert agent_answers.obeyed("a ##vso[x]") == "a command of a pipeline"
    assert agent_answers.obeyed(clean("\x1b ##vso[x]\n| ::error::")) == ""


def test_pings_of_other_guests() -> None:
    calm, pings = Pings(), Pings()
    calm.took("red/web", 2.0)
    with pytest.raises(UnseenError):
        pings.faults(calm)
    for _ in range(3):
        pings.took("red/web", 0.5)
    assert pings.faults(calm) == []
    pings.took("red/web", 11.0)
    pings.failed("blue/web", "no\x1b answer")
    assert len(pings.faults(calm)) == 2
    assert "\x1b" not in "".join(pings.faults(calm))


@pytest.mark.parametrize("slow", [True, False])
def test_guests_that_were_slow_before_show_nothing(slow: bool) -> None:
    calm, pings = Pings(), Pings()
    if slow:
        calm.took("red/web", 6.0)
    else:
        calm.failed("red/web", "no answer")
    pings.took("red/web", 11.0)
    with pytest.raises(UnseenError, match="before the hostile agent"):
        pings.faults(calm)


def test_the_memory_of_a_process() -> None:
    assert memory_peaks.sizes("VmPeak:\t9 kB\nVmHWM:\t 20 kB\nVmRSS:\t 10 kB\n") == (20480, 10240)
    with pytest.raises(InstrumentError):
        memory_peaks.sizes("VmHWM: 1 kB")
    assert memory_peaks.grown("x", 0, memory_peaks.GROWTH) == []
    assert memory_peaks.grown("x", 0, 2 * memory_peaks.GROWTH) == ["the memory of x has grown by 192 MiB"]


def test_this_process_grows_and_is_seen() -> None:
    peak = memory_peaks.PeakOfProcess(os.getpid())
    assert peak.faults("this") == []
    text = bytearray(2 * memory_peaks.GROWTH)
    text[::4096] = bytes(len(text[::4096])).replace(b"\0", b"x")
    del text
    assert len(peak.faults("this")) == 1
