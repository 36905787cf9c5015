"""Options of DHCP messages, as far as they are well-formed."""

from __future__ import annotations

from testbed.verify.witnesses import dhcp_answers


def test_padding_between_options_is_skipped() -> None:
    """RFC 2132, 3.1: octet 0 is an option without a length."""
    text = dhcp_answers._MAGIC + b"\0\0\x35\1\5\0\x36\4abcd\xff\x35\1\6"
    assert dhcp_answers._options(text) == [(0x35, b"\5"), (0x36, b"abcd")]
    assert dhcp_answers._options(b"-" + text) == []
