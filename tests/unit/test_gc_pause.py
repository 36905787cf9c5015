"""The garbage collector is off while many objects are made, and only then."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from testbed.gc_pause import gc_disabled


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


def test_it_is_looked_for_again_afterwards_whatever_happens() -> None:
    @gc_disabled()
    def fails() -> None:
        assert not gc.isenabled()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert gc.isenabled()


def test_one_inside_another_changes_nothing() -> None:
    @gc_disabled()
    def inner() -> bool:
        return gc.isenabled()

    with gc_disabled():
        assert not inner()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_who_has_turned_it_off_finds_it_off() -> None:
    gc.disable()
    with gc_disabled():
        pass
    assert not gc.isenabled()
