"""A guest agent whose guest is this machine: it opens files as the real one does (QEMU's
qga/commands-posix.c).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from itertools import count
from typing import Any

from testbed.errors import InstrumentError

_MODES = {"r": os.O_RDONLY, "r+": os.O_RDWR}


class LocalAgent:
    """Answers what `testbed.verify.guest_agent.Files` asks.

    Args:
        place: where a path of the guest lies here.

    """

    def __init__(self, place: Callable[[str], str]) -> None:
        self.place = place
        self.handles: dict[int, int] = {}
        self.numbers = count(1000)

    def agent(self, name: str, command: str, arguments: dict[str, Any], timeout: int) -> dict[str, Any]:
        """Open, read, write or close a file; raises InstrumentError if there is none."""
        assert name
        assert timeout
        answer: dict[str, Any] = getattr(self, command.replace("-", "_"))(arguments)
        return answer

    def guest_file_open(self, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            opened = os.open(self.place(arguments["path"]), _MODES[arguments["mode"]])
        except OSError as error:
            raise InstrumentError("the guest agent does not answer", fact=str(error), remedy="-") from error
        os.set_blocking(opened, False)
        handle = next(self.numbers)
        self.handles[handle] = opened
        return {"value": handle}

    def guest_file_read(self, arguments: dict[str, Any]) -> dict[str, Any]:
        text = os.read(self.handles[arguments["handle"]], arguments["count"])
        return {"count": len(text), "buf-b64": base64.b64encode(text).decode(), "eof": not text}

    def guest_file_write(self, arguments: dict[str, Any]) -> dict[str, Any]:
        text = base64.b64decode(arguments["buf-b64"])
        return {"count": os.write(self.handles[arguments["handle"]], text), "eof": False}

    def guest_file_close(self, arguments: dict[str, Any]) -> dict[str, Any]:
        os.close(self.handles.pop(arguments["handle"]))
        return {}
