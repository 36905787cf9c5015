"""libvirt's configuration files, read as libvirt reads them: a comment and the text of a string set nothing
(PRC-02). Pure.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n]+|\#[^\n]*)"""
    r'''|"""(?P<long>.*?)"""|"(?P<double>[^"\n]*)"'''
    r"""|'(?P<single>[^'\n]*)'|(?P<number>-?[0-9]+)|(?P<name>[A-Za-z_][\w.:-]*)|(?P<sign>[=\[\],])""",
    re.DOTALL,
)
_STRINGS = ("long", "double", "single")
Value = int | str | list[str]
_Tokens = list[tuple[str, str]]


def read(text: str) -> dict[str, list[Value]]:
    """Return every value that is set, by name, in the order of the file.

    Raises:
        ValueError: libvirt would not take the file, or means by it what is not known here.

    """
    tokens, found = _tokens(text), dict[str, list[Value]]()
    while tokens:
        (kind, name), (_, sign) = tokens.pop(0), tokens.pop(0) if tokens else ("", "")
        if kind != "name" or sign != "=" or not tokens:
            raise ValueError(f"{name!r} is no setting")
        found.setdefault(name, []).append(_value(tokens))
    return found


def _tokens(text: str) -> _Tokens:
    found, at = [], 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or token.lastgroup is None:
            raise ValueError(f"{text[at : at + 40]!r} cannot be read")
        if token.lastgroup != "blank":
            found.append((token.lastgroup, token[token.lastgroup]))
        at = token.end()
    return found


def _value(tokens: _Tokens) -> Value:
    kind, text = tokens.pop(0)
    if kind == "number":
        return int(text)
    if kind in _STRINGS:
        return text
    if text != "[":
        raise ValueError(f"{text!r} is no value")
    members: list[str] = []
    while tokens:
        kind, text = tokens.pop(0)
        if text == "]" and kind == "sign":
            return members
        if kind in _STRINGS:
            members.append(text)
        elif text != ",":
            raise ValueError(f"{text!r} is no member of a list")
    raise ValueError("a list has no end")
