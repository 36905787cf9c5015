"""Work that several machines are about, side by side: a lane for each machine (docs/decisions/0021)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import TypeVar

T = TypeVar("T")


def side_by_side(
    lanes: Sequence[Sequence[T]],
    do: Callable[[T], None],
    *,
    turn: Callable[[T], Hashable],
    stopped: Callable[[], bool],
    interrupted: Event | None = None,
) -> None:
    """Do something with every item of every lane, one after another in each lane, and each lane beginning
    elsewhere.

    Args:
        turn: what no two items may share that are done at the same time.
        stopped: whether nothing more shall be begun. Nor is anything begun after an error or an interrupt,
            which is raised when all that was begun has ended.
        interrupted: is set by an interrupt, so that what was begun can end sooner.

    """
    turns = {turn(item): Lock() for lane in lanes for item in lane}
    halted, interrupted = Event(), interrupted or Event()

    def drive(lane: Sequence[T], number: int) -> None:
        first = number * len(lane) // len(lanes)
        for item in (*lane[first:], *lane[:first]):
            with turns[turn(item)]:
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
