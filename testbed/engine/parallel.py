"""Runs work on several machines in parallel, in a lane for each (docs/decisions/0021)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import TypeVar

T = TypeVar("T")


def run_in_lanes(
    lanes: Sequence[Sequence[T]],
    do: Callable[[T], None],
    *,
    exclusive_key: Callable[[T], Hashable],
    stopped: Callable[[], bool],
    interrupted: Event | None = None,
) -> None:
    """Call a function for every item: lanes in parallel, the items of a lane in sequence.

    Each lane starts at another position, so that lanes with the same items meet less often. After an error or
    an interrupt no more items are started; it is raised when all running items have ended.

    Args:
        lanes: the items of each lane.
        do: the function.
        exclusive_key: returns the exclusive key of an item; items with equal keys never run at the same time.
        stopped: returns whether no more items shall be started.
        interrupted: set after an interrupt, so that running items can end early.

    """
    if not lanes:
        return
    locks = {exclusive_key(item): Lock() for lane in lanes for item in lane}
    halted, interrupted = Event(), interrupted or Event()

    def drive(lane: Sequence[T], number: int) -> None:
        first = number * len(lane) // len(lanes)
        for item in (*lane[first:], *lane[:first]):
            with locks[exclusive_key(item)]:
                if halted.is_set() or stopped():
                    return
                do(item)

    with ThreadPoolExecutor(max_workers=len(lanes)) as pool:
        going = [pool.submit(drive, lane, number) for number, lane in enumerate(lanes)]
        try:
            wait(going, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            interrupted.set()
            raise
        finally:
            halted.set()
    for future in going:
        future.result()
