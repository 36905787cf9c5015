"""Limits the cost of one guest or machine for one run.

A place that answers late, too much or never must not hold a run for hours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from testbed import timeouts
from testbed.errors import InstrumentError

SECONDS: float = timeouts.PROBE_BUDGET
OCTETS = 256 * 2**20  # of answers in one run, after decompression


class Allowance:
    """The rest of the budget of one guest or machine.

    Args:
        name: of the guest or machine.
        clock: seconds; for tests.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._seconds, self._octets = SECONDS, OCTETS

    @contextmanager
    def question(self, expected: float) -> Iterator[None]:
        """Charge for one request: its duration if unanswered, else the delay of the answer.

        Args:
            expected: seconds that are not charged if an answer comes.

        Raises:
            InstrumentError: the budget is used up, and the request is not sent.
        """
        if self._seconds <= 0 or self._octets <= 0:
            what = f"{self._name} is not asked any more in this run"
            fact = f"answers that came late, or not at all, have cost {SECONDS:.0f} s"
            if self._octets <= 0:
                fact = f"its answers have come to {OCTETS} octets"
            raise InstrumentError(
                what, fact=fact, remedy="look into it; `testbed up` starts a silent guest again"
            )
        began = self._clock()
        try:
            yield
        except InstrumentError:
            self._seconds -= self._clock() - began
            raise
        self._seconds -= max(0.0, self._clock() - began - expected)

    def received(self, octets: int) -> None:
        """Charge for the octets of an answer."""
        self._octets -= octets
