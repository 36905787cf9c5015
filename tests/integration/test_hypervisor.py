"""The libvirt driver against libvirt's own test driver."""

from __future__ import annotations

import libvirt
import pytest

from testbed.drivers.hypervisor.connection import Hypervisor
from testbed.errors import InstrumentError, ProvisioningError

pytestmark = pytest.mark.integration
XML = (
    "<domain type='test'><name>red.web</name><memory unit='MiB'>8</memory><os><type>hvm</type></os></domain>"
)


def test_domains_start_pause_resume_and_stop() -> None:
    hypervisor = Hypervisor("test:///default")
    hypervisor.create(XML)
    states = {}
    for change in (hypervisor.suspend, hypervisor.resume):
        change("red.web")
        states[change.__name__] = {domain.name: domain.state for domain in hypervisor.domains()}["red.web"]
    assert states == {"suspend": "paused", "resume": "running"}
    hypervisor.destroy("red.web")
    hypervisor.destroy("red.web")
    assert "red.web" not in {domain.name for domain in hypervisor.domains()}
    hypervisor.close()


def test_a_domain_that_ends_while_it_is_being_stopped_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    hypervisor = Hypervisor("test:///default")
    error = libvirt.libvirtError("")

    def destroy(_: libvirt.virDomain) -> None:
        raise error

    monkeypatch.setattr(libvirt.virDomain, "destroy", destroy)
    error.err = (libvirt.VIR_ERR_NO_DOMAIN, 0, "no domain with matching uuid", 0, "", None, None, 0, 0)
    hypervisor.destroy("test")
    error.err = (libvirt.VIR_ERR_INTERNAL_ERROR, 0, "it refuses", 0, "", None, None, 0, 0)
    with pytest.raises(ProvisioningError, match="cannot stop test"):
        hypervisor.destroy("test")
    hypervisor.close()


def test_what_libvirt_refuses_is_an_error_of_ours() -> None:
    hypervisor = Hypervisor("test:///default")
    with pytest.raises(ProvisioningError, match="cannot start a virtual machine") as caught:
        hypervisor.create("<domain type='test'/>")
    assert "libvirt says" in caught.value.fact
    with pytest.raises(InstrumentError, match=r"red\.web does not run"):
        hypervisor.agent("red.web", "guest-ping", {}, 1)
    assert hypervisor.disk_reads("red.web") == ""  # no sign of progress, and no error
    hypervisor.close()


def test_a_hypervisor_that_is_not_there() -> None:
    with pytest.raises(ProvisioningError, match="cannot open the hypervisor"):
        Hypervisor("qemu+unix:///system?socket=/no/such/socket")


def test_a_guest_that_was_created_anew_is_asked_though_an_older_one_was_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A domain that has ended is not used, although a new one has its name."""
    hypervisor = Hypervisor("test:///default")
    gone = libvirt.libvirtError("")
    gone.err = (libvirt.VIR_ERR_NO_DOMAIN, 0, "no domain with matching uuid", 0, "", None, None, 0, 0)
    answers = ['{"return": {}}', gone, '{"return": {"pid": 7}}', gone, gone]
    asked = []

    def command(domain: libvirt.virDomain, *_: object) -> str:
        asked.append(domain.UUIDString())
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", command)
    hypervisor.create(XML)
    assert hypervisor.agent("red.web", "guest-ping", {}, 1) == {}
    hypervisor.destroy("red.web")
    hypervisor.create(XML)
    assert hypervisor.agent("red.web", "guest-exec", {}, 1) == {"pid": 7}
    assert asked[0] == asked[1] != asked[2]
    with pytest.raises(InstrumentError, match="does not answer"):
        hypervisor.agent("red.web", "guest-ping", {}, 1)
    assert hypervisor.disk_reads("red.web") == ""  # no sign of progress, and no error
    hypervisor.close()


def test_a_closed_hypervisor_holds_no_domain_that_would_keep_its_connection_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close, left = libvirt.virConnect.close, []
    monkeypatch.setattr(libvirt.virConnect, "close", lambda connection: left.append(close(connection)))
    hypervisor = Hypervisor("test:///default")
    hypervisor.suspend("test")
    hypervisor.close()
    assert left == [0]
