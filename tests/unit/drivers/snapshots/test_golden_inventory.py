"""The reading of a machine without identity: what it is handed, and what it prints on its console."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest

from testbed.drivers.snapshots import golden_inventory
from testbed.drivers.snapshots.golden_inventory import credential, digest_key, load, take
from testbed.errors import ProvisioningError
from testbed.inventory.records import FORMAT

RECORD = {"domain": "account", "key": "root", "value": ["0"]}
PACKED = zlib.compress(
    f"{json.dumps({'format': FORMAT, 'records': 1, 'seconds': 2.5})}\n{json.dumps(RECORD)}\n".encode()
)
PRINTED = f"testbed: inventory {base64.b64encode(PACKED).decode()}"


def test_the_credential_is_one_line_that_writes_a_program_which_removes_itself() -> None:
    (line,) = credential(digest_key("state")).splitlines()
    kind, path, mode, owner, group, age, content = line.split(" ")
    program = base64.b64decode(content).decode()
    compile(program, path, "exec")
    assert (kind, mode, owner, group, age) == ("f+~", "0700", "root", "root", "-")
    assert path.startswith("/usr/lib/testbed/before-saving.d/zz-")
    assert f"os.unlink({path!r})" in program
    assert program.startswith("#!/usr/bin/python3 -ISB\n")
    assert len(line) < 2**20  # octets of a line that systemd-tmpfiles reads


def test_states_have_keys_of_their_own() -> None:
    assert digest_key("a") != digest_key("b")


def test_the_reading_is_taken_out_of_the_console(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    half = len(PRINTED) // 2
    console.write_bytes(
        f"boot\r\n{PRINTED[:half]}\r\ntestbed: inventory {PRINTED[half:]}\r\nsaved\r\n".encode()
    )
    (tmp_path / golden_inventory.FILE).write_bytes(take(console))
    assert load(tmp_path).records == {("account", "root"): ["0"]}
    assert console.read_bytes() == b"boot\r\nsaved\r\n"


@pytest.mark.parametrize("text", ["", "boot\n", PRINTED[:-12], PRINTED.replace("A", "B"), f"{PRINTED} oops"])
def test_a_missing_or_damaged_reading_is_refused(tmp_path: Path, text: str) -> None:
    console = tmp_path / "console.log"
    console.write_text(text)
    with pytest.raises(ProvisioningError, match="cannot be read"):
        take(console)
