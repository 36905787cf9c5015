"""The Vagrantfiles, as Vagrant itself reads them; no machine is started."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "Vagrantfile", ROOT / "examples/vagrant/Vagrantfile"]
pytestmark = pytest.mark.integration

# What a provider's block may set is known to Vagrant only where the provider is usable; Hyper-V is on Windows
# alone.
HYPERV = """
require "vagrant"
require Vagrant.source_root.join("plugins/providers/hyperv/config").to_s
config = VagrantPlugins::HyperV::Config.new
puts ARGV.reject { |name| config.respond_to?("#{name}=") }
"""


@functools.cache
def plugins(program: str) -> str:
    return subprocess.run(
        [program, "plugin", "list"], capture_output=True, text=True, timeout=120, check=False
    ).stdout


class Vagrant:
    """Vagrant with folders of its own, so that it knows no box and no machine of the account."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("vagrant")
        if program is None:
            pytest.skip("vagrant is not installed: run script/setup --tests, on a release that has it")
        if "vagrant-libvirt" not in plugins(program):
            pytest.skip("vagrant has no vagrant-libvirt: run script/setup --tests, on a release that has it")
        self.program = program
        self.folder = folder
        self.checkout = folder / "checkout"
        self.stubs = folder / "stubs"
        self.stubs.mkdir()
        topologies = self.checkout / "topologies"
        topologies.mkdir(parents=True)
        shutil.copy(ROOT / "topologies/two-tenants.yaml", topologies)
        self.use(FILES[0])

    def use(self, file: Path, old: str = "", new: str = "") -> None:
        """Take a Vagrantfile, with one change."""
        text = file.read_text()
        assert old in text
        (self.checkout / "Vagrantfile").write_text(text.replace(old, new))

    def run(self, *words: str, **settings: str) -> tuple[int, str]:
        mine = {
            name: value for name, value in os.environ.items() if not name.startswith(("TESTBED", "VAGRANT"))
        }
        variables = {
            **mine,
            "VAGRANT_HOME": str(self.folder / "home"),
            "VAGRANT_DOTFILE_PATH": str(self.folder / "dot"),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_NO_COLOR": "1",
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            "PATH": f"{self.stubs}:{os.environ['PATH']}",
            **settings,
        }
        argv = [self.program, *words]
        done = subprocess.run(
            argv, cwd=self.checkout, env=variables, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.fixture
def vagrant(tmp_path: Path) -> Vagrant:
    return Vagrant(tmp_path)


@pytest.mark.parametrize("file", FILES, ids=["top", "example"])
def test_vagrant_knows_each_setting_of_libvirt(vagrant: Vagrant, file: Path) -> None:
    vagrant.use(file)
    status, said = vagrant.run("validate")
    assert status == 0, said
    vagrant.use(file, "libvirt.machine_type", "libvirt.machine_typo")
    status, said = vagrant.run("validate")
    assert status == 1
    assert "The following settings shouldn't exist: machine_typo" in said


def test_vagrant_knows_each_setting_of_virtualbox(vagrant: Vagrant) -> None:
    stub = vagrant.stubs / "VBoxManage"
    stub.write_text("#!/bin/sh\necho 7.0.20r163906\n")
    stub.chmod(0o755)
    status, said = vagrant.run("validate", VAGRANT_DEFAULT_PROVIDER="virtualbox")
    assert status == 0, said
    vagrant.use(FILES[0], "virtualbox.memory", "virtualbox.memorie")
    status, said = vagrant.run("validate", VAGRANT_DEFAULT_PROVIDER="virtualbox")
    assert status == 1
    assert "The following settings shouldn't exist: memorie" in said


def test_vagrant_knows_each_setting_of_hyperv(vagrant: Vagrant) -> None:
    names = sorted(set(re.findall(r"\bhyperv\.(\w+) =", FILES[0].read_text())))
    assert "enable_virtualization_extensions" in names
    argv = ["ruby", "-e", HYPERV, *names, "no_such_setting"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["no_such_setting"]


def test_all_wrong_settings_are_reported_at_once(vagrant: Vagrant) -> None:
    wrong = {
        "TESTBED_CPUS": "0",
        "TESTBED_MEMORY": "8GB",
        "TESTBED_DISK": "2 GiB",
        "TESTBED_DRIVER": "xen",
        "TESTBED_PORT": "80",
        "TESTBED_TOPOLOGY": "../outside.yaml",
        "TESTBED_BOX": "a box",
        "TESTBED_PROVE": "some",
        "TESTBED_ONLY": "$(reboot)",
        "TESTBED_SLOW": "yes",
    }
    status, said = vagrant.run("validate", **wrong)
    assert status != 0
    for name, value in wrong.items():
        assert f'{name} is wrong: it is "{value}". Use ' in said
    status, said = vagrant.run("validate", TESTBED_MEMORY="3 GiB", TESTBED_CPUS="1", TESTBED_PROVE="one")
    assert status == 0, said


def test_a_missing_box_is_one_sentence_and_no_look_up(vagrant: Vagrant) -> None:
    status, said = vagrant.run("up", TESTBED_DRIVER="qemu")
    assert status == 1
    assert "The outer machine is emulated" in said
    assert "The box testbed/outer is missing: there is no" in said
    assert "Run script/vagrant box once" in said
    assert "could not be found" not in said


def test_another_provider_needs_a_box_of_its_own(vagrant: Vagrant) -> None:
    stub = vagrant.stubs / "VBoxManage"
    stub.write_text("#!/bin/sh\necho 7.0.20r163906\n")
    stub.chmod(0o755)
    status, said = vagrant.run("up", VAGRANT_DEFAULT_PROVIDER="virtualbox")
    assert status == 1
    assert "There is no box for virtualbox" in said
    assert "Set TESTBED_BOX" in said


def test_every_verb_that_is_called_exists() -> None:
    verbs = set(re.findall(r'^  "([a-z]+) \d"', (ROOT / "script/vagrant").read_text(), re.MULTILINE))
    called = set(re.findall(r"script/vagrant ([a-z]+)", "".join(file.read_text() for file in FILES)))
    assert called == verbs - {"test"}
