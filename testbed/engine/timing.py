"""What took how long, and what everything else had to wait for. Pure, except for its clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from testbed.untrusted.text import line

_WIDTH = 60  # columns of a chart's longest bar
_NAME = 80  # characters of a name


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work.

    Args:
        start: seconds since the trace began; so is `end`.
        after: names of what had to be done before, as far as it was done at all.

    """

    name: str
    start: float
    end: float
    after: tuple[str, ...] = ()


class Trace:
    """Collects spans; safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    @contextmanager
    def span(self, name: str, after: Sequence[str] = ()) -> Iterator[None]:
        """Measure what is done meanwhile, whether it succeeds or not."""
        start = self._clock() - self._began
        try:
            yield
        finally:
            with self._lock:
                self._spans.append(Span(name, start, self._clock() - self._began, tuple(after)))

    @property
    def spans(self) -> list[Span]:
        """All that has ended, in the order in which it began."""
        with self._lock:
            return sorted(self._spans, key=lambda span: (span.start, span.end))


def critical_path(spans: Sequence[Span]) -> list[Span]:
    """Return the chain that nothing else could have made shorter: from the last end backwards, always to what
    was waited for longest.
    """
    by_name = {span.name: span for span in spans}
    path: list[Span] = []
    span = max(spans, key=lambda item: item.end, default=None)
    while span is not None and span not in path:
        path.append(span)
        span = max(
            (by_name[name] for name in span.after if name in by_name), key=lambda item: item.end, default=None
        )
    return path[::-1]


def chart(spans: Sequence[Span]) -> str:
    """Draw spans as bars over time, those of the critical path marked with an asterisk; the empty string if
    there are none.
    """
    if not spans:
        return ""
    critical = {span.name for span in critical_path(spans)}
    total = max(span.end for span in spans) or 1.0
    shown = {
        span.name: line(span.name, _NAME) for span in spans
    }  # what is not in the topology is called as its node calls it
    names = max(map(len, shown.values()))
    lines = [f"  {'':{names}}  seconds  0{f'{total:.0f}':>{_WIDTH - 1}}"]
    for span in spans:
        at, length = (round(value / total * _WIDTH) for value in (span.start, span.end - span.start))
        bar = f"{' ' * min(at, _WIDTH - 1)}{'#' * max(1, min(length, _WIDTH - at))}"
        lines.append(
            (
                f"{'*' if span.name in critical else ' '} {shown[span.name]:{names}}  "
                f"{span.end - span.start:7.1f}  {bar}"
            ).rstrip()
        )
    waited = sum(span.end - span.start for span in spans if span.name in critical)
    return "\n".join(
        (
            *lines,
            f"* the critical path, {waited:.0f} of {total:.0f} s: only what is on it makes all of it faster",
        )
    )
