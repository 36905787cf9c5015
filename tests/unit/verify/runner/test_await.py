"""Whether a machine answers is asked of running machines only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.errors import ProvisioningError
from testbed.plan.resources import OUTER, Key, Kind
from testbed.verify.runner import run


def _late(_: float) -> None:
    raise ProvisioningError("-", fact="it is late", remedy="-")


@pytest.mark.parametrize(
    ("state", "wait", "told"),
    [
        ("running", lambda _: None, "node answers"),
        ("running", _late, "node does not answer: it is late"),
        ("shut off", lambda _: None, "node does not answer: it is shut off"),
        (None, lambda _: None, "node does not answer: it is not there"),
    ],
)
def test_a_machine_that_does_not_run_does_not_answer(state: str | None, wait: Any, told: str) -> None:
    host: Any = SimpleNamespace(name="node", wait=wait)
    machines: Any = {} if state is None else {Key(OUTER, Kind.MACHINE, "node"): {"state": state}}
    assert run._await(host, machines) == told
