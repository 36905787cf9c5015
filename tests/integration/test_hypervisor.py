"""The libvirt driver against libvirt's own test driver."""

from __future__ import annotations

import pytest

from testbed.drivers.hypervisor import Hypervisor
from testbed.errors import InstrumentError, ProvisioningError

pytestmark = pytest.mark.integration
XML = "<domain type='test'><name>red.web</name><memory unit='MiB'>8</memory><os><type>hvm</type></os></domain>"


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


def test_what_libvirt_refuses_is_an_error_of_ours() -> None:
    hypervisor = Hypervisor("test:///default")
    with pytest.raises(ProvisioningError, match="cannot start a virtual machine") as caught:
        hypervisor.create("<domain type='test'/>")
    assert "libvirt says" in caught.value.fact
    with pytest.raises(InstrumentError, match=r"red\.web does not run"):
        hypervisor.agent("red.web", "guest-ping", {}, 1)
    hypervisor.close()


def test_a_hypervisor_that_is_not_there() -> None:
    with pytest.raises(ProvisioningError, match="cannot open the hypervisor"):
        Hypervisor("qemu+unix:///system?socket=/no/such/socket")
