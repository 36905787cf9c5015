"""How the probe and whoever asks it write to one another: JSON, compressed, one line of text for each
message.

A nested guest's agent passes a hundred kilobytes on in as many tenths of a second; frames are repetitive.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

MAX_MESSAGE = 16 * 2**20  # octets before compression


def pack(message: object) -> bytes:
    """Return a message as one line without its end."""
    return base64.b64encode(zlib.compress(json.dumps(message).encode()))


def unpack(line: bytes) -> Any:  # noqa: ANN401 - JSON
    """Return the message of a line from who asks, which need not be one; what a guest says is read within
    closer bounds.

    Raises:
        ValueError: it is none, or longer than `MAX_MESSAGE`.

    """
    try:
        return json.loads(inflate(line))
    except RecursionError as error:
        raise ValueError(str(error)) from error


def inflate(line: bytes) -> bytes:
    """Return the JSON text of a line, which need not be a message.

    Raises:
        ValueError: it is none, or longer than `MAX_MESSAGE`.

    """
    decoder = zlib.decompressobj()
    try:
        text = decoder.decompress(base64.b64decode(line, validate=True), MAX_MESSAGE)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not decoder.eof:
        raise ValueError("the message is cut off, or too long")
    return text
