"""What one guest or machine may cost one run: so that nobody who answers late, or much, or never, holds a run
for hours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from testbed.errors import InstrumentError

SECONDS = 900.0  # of answers that came late or never, in one run
OCTETS = 256 * 2**20  # of answers, in one run, as they are after decompression


class Allowance:
    """What is left of it for one guest or machine.

    Args:
        name: of the guest or machine.
        clock: seconds; for tests.

    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._seconds, self._octets = SECONDS, OCTETS

    @contextmanager
    def question(self, expected: float) -> Iterator[None]:
        """Charge for one question: all of its time if there is no answer, else what it takes longer than it
        should.

        Args:
            expected: seconds that the answer may take for nothing.

        Raises:
            InstrumentError: nothing is left, and the question is not asked.

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
        """Charge for an answer."""
        self._octets -= octets
