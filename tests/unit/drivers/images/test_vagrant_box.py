"""The key of a box and the box that a folder has; tests/vagrant packs one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from testbed.drivers.host.content_store import file_digest
from testbed.drivers.images import vagrant_box
from testbed.errors import UsageError

ROOT = Path(__file__).parents[4]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in vagrant_box._SOURCES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_each_input_of_a_box_changes_its_key(checkout: Path) -> None:
    before = vagrant_box.key("a", checkout)
    assert vagrant_box.key("a", checkout) == before
    keys = {before, vagrant_box.key("b", checkout)}
    for name in vagrant_box._SOURCES:
        with (checkout / name).open("a") as stream:
            stream.write("# changed\n")
        keys.add(vagrant_box.key("a", checkout))
    assert len(keys) == 2 + len(vagrant_box._SOURCES)


def test_an_installed_package_makes_no_box(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot make a box"):
        vagrant_box.key("a", tmp_path)


def test_only_a_whole_box_of_this_key_is_used_again(tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    partial.write_bytes(b"content")
    partial.chmod(0o600)
    box = vagrant_box._publish(partial, tmp_path, "0123")
    assert vagrant_box.find(tmp_path, "0123") == box
    assert [path.stat().st_mode & 0o777 for path in (box.file, box.catalogue)] == [0o644, 0o644]
    assert vagrant_box.find(tmp_path, "4567") is None
    box.file.write_bytes(b"altered")
    assert vagrant_box.find(tmp_path, "0123") is None
    (tmp_path / "box.json").write_text("[]")
    assert vagrant_box.find(tmp_path, "0123") is None


def test_the_catalogue_has_version_and_digest_of_the_content(tmp_path: Path) -> None:
    versions = set()
    for content in (b"one", b"two"):
        partial = tmp_path / "partial"
        partial.write_bytes(content)
        box = vagrant_box._publish(partial, tmp_path, "0123")
        versions.add(box.version)
        item = json.loads(box.catalogue.read_text())["versions"][0]
        assert item["version"] == box.version
        assert re.fullmatch(r"0\.1\.\d+", box.version)
        assert item["providers"][0]["checksum"] == file_digest(box.file)
        assert item["providers"][0]["url"] == f"file://{box.file}"
    assert len(versions) == 2, "Vagrant would keep the older disk"


def test_script_setup_finds_nothing_to_install_in_the_box() -> None:
    text = (ROOT / "script/setup").read_text()
    lists = [re.search(rf'^{name}="([^"]+)"', text, re.MULTILINE) for name in ("packages", "optional")]
    wanted = {package for found in lists if found for package in found[1].split()}
    recipe = yaml.safe_load((ROOT / "playbooks/boxes.yaml").read_text())["images"]["outer"]
    assert len(wanted) > 10
    assert wanted - set(recipe["packages"]) == set()
