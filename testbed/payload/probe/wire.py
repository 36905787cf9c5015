"""The message format between the probe and its clients: compressed JSON in one line of text.

A nested guest's agent transfers about one kilobyte in a tenth of a second. Frames are repetitive, so
compression helps.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

MAX_MESSAGE = 16 * 2**20  # octets before compression


def pack(message: object) -> bytes:
    """Return a message as one line, without the newline."""
    return base64.b64encode(zlib.compress(json.dumps(message).encode()))


def unpack(line: bytes) -> Any:  # noqa: ANN401 - JSON
    """Return the message in a client's line; lines of guests need stricter limits.

    Raises:
        ValueError: the line is not a message, or the message is longer than `MAX_MESSAGE`.

    """
    try:
        return json.loads(inflate(line))
    except RecursionError as error:
        raise ValueError(str(error)) from error


def inflate(line: bytes) -> bytes:
    """Return the decompressed text of an untrusted line; it need not be JSON.

    Raises:
        ValueError: the line cannot be decompressed, or the text is longer than `MAX_MESSAGE`.

    """
    decoder = zlib.decompressobj()
    try:
        text = decoder.decompress(base64.b64decode(line, validate=True), MAX_MESSAGE)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not decoder.eof:
        raise ValueError("the message is cut off, or too long")
    return text
