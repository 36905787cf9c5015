"""Namespaces of labs: what is gone already needs no end."""

from __future__ import annotations

import subprocess
from pathlib import Path

from testbed.drivers.namespaces.lab_namespaces import Enclosure, destroy


def test_a_holder_that_has_ended_meanwhile_is_no_error(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    destroy(Enclosure("lab", tmp_path, ended.pid))
