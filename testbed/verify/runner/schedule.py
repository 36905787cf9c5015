"""Orders the cases: by increasing effect; local ones of several machines in parallel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event

from testbed.engine.parallel import run_in_lanes
from testbed.verify.check import Effect
from testbed.verify.fleet import Fleet
from testbed.verify.runner.cases import Case
from testbed.verify.runner.trouble import Trouble

Prepare = Callable[[], object]
Do = Callable[[Case], None]


class Schedule:
    """Processes cases, those of the least effect first (docs/design.md, section 6, rule 8).

    Args:
        prepare: prepares instruments for checks of the whole fleet, beside local ones that do more than
            observe.
        stopped: returns whether no further case may begin.
        halted: set by an interrupt, so that cases that have begun can end sooner.
    """

    def __init__(
        self, fleet: Fleet, *, prepare: Prepare, stopped: Callable[[], bool], trouble: Trouble, halted: Event
    ) -> None:
        self._fleet, self._stopped, self._trouble, self._halted = fleet, stopped, trouble, halted
        self._prepare: Prepare | None = prepare

    def go(self, cases: Sequence[Case], do: Do) -> None:
        """Do something with every case, unless it is stopped."""
        shared = any(not case.declared.local for case in cases)
        for effect in sorted(Effect):
            level = [case for case in cases if case.declared.effect is effect]
            lanes = self._lanes(level)
            if lanes:
                self._side_by_side(lanes, do, prepare=shared and effect > Effect.OBSERVES)
                if effect > Effect.PROBES:
                    self._fleet.new_phase(self._fleet.focus)  # earlier observations may no longer hold
            for case in level:
                if case.fleet is self._fleet and not self._stopped():
                    do(case)

    def _lanes(self, cases: Sequence[Case]) -> list[list[Case]]:
        """Return the cases that are local to a machine, by machine, if there are several.

        Each machine has a view and evidence of its own.
        """
        lanes: dict[str, list[Case]] = defaultdict(list)
        for case in cases:
            case.fleet = self._fleet
            if case.declared.local:
                lanes[case.label].append(case)
        if len(lanes) < 2:
            return []
        for lane in lanes.values():
            view = self._fleet.separate()
            for case in lane:
                case.fleet = view
        return list(lanes.values())

    def _side_by_side(self, lanes: Sequence[Sequence[Case]], do: Do, *, prepare: bool) -> None:
        """Process the cases of several machines in parallel.

        Cases of the same check never run at the same time: so a check that observes the wrong machine does
        not find the state that was prepared for its own.
        """
        with ExitStack() as beside:
            if prepare and self._prepare:
                beside.enter_context(ThreadPoolExecutor(max_workers=1)).submit(self._prepared, self._prepare)
                self._prepare = None
            run_in_lanes(
                lanes,
                do,
                exclusive_key=lambda case: id(case.declared),
                stopped=self._stopped,
                interrupted=self._halted,
            )

    def _prepared(self, prepare: Prepare) -> None:
        with self._trouble.kept("getting ready what checks of the whole fleet need"):
            prepare()
