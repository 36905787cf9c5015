"""The program that reads workers, against this test's own process (PRC-03, PRC-04)."""

from __future__ import annotations

import os

import pytest

from testbed.payload import workers


def test_a_thread_that_has_ended_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    own, real = os.getpid(), os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [*real(path), "4194305"])
    (found,) = set(workers._threads(own))
    assert found[2] in (0, 1)


def test_a_process_that_has_ended_is_not() -> None:
    with pytest.raises(FileNotFoundError):
        list(workers._threads(4194305))


def test_a_process_whose_first_thread_has_ended_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda _: ["4194305"])
    with pytest.raises(ProcessLookupError):
        list(workers._threads(4194305))
