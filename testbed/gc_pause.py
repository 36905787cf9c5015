"""When Python looks for garbage that refers to itself: not while objects by the hundred thousand are made to
stay.

It looks whenever there are a quarter more objects than there were, at all of them; for large topologies that
is half of what reading, resolving and planning cost.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no such garbage meanwhile; where somebody else has said so already, go on like that. Decorates
    functions, too.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
