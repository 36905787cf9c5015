"""Pause Python's cyclic garbage collector while many objects are made that stay alive.

A full collection starts whenever the number of objects has grown by a quarter, and visits all of them. For
large topologies that is half of the time for reading, resolving and planning.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable the cyclic garbage collector inside the block.

    Calls can be nested: only the outermost enables it again, and only if it was enabled before. Works as a
    decorator, too.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
