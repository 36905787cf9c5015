"""Text in graphs: labels are quoted and escaped."""

from __future__ import annotations

from testbed.report.graph import _mermaid


def test_a_label_for_mermaid_is_quoted_and_escaped() -> None:
    assert _mermaid("red/web", 'a"b<') == '"red/web<br/>a#34;b#60;"'
