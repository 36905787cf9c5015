"""Rules about channels of guests (DEV-03), and what a node's program reads of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.hosts.rules import UnseenError
from testbed.verify.devices import channels
from testbed.verify.devices.channels import Channels, Logs, Socket

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded.json").read_text())
PATH = "/run/libvirt/qemu/channel/3-red.web/org.qemu.guest_agent.0"
OWN = Socket("red.web", PATH, True, (64100, 64100, 0o775), (64100, 64100, 0o750), 1)
WORKERS = {"red.web": 64100}


def _with(name: str, *rows: dict[str, object]) -> dict[str, object]:
    answers = dict(RECORDED["answers"])
    answers[name] = [*answers[name], *rows]
    return answers


def test_a_guest_of_ours_has_no_other_channel() -> None:
    assert channels.undeclared("red.web", RECORDED["xml"], RECORDED["answers"]) == []


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"label": "breach", "filename": "null"}, "chardevs"),
        ({"label": "charchannel0", "filename": "null"}, "chardevs"),
        ({"label": "charserial0", "filename": "file"}, "chardevs"),
        ({"name": "breach", "type": "child<virtserialport>"}, "peripheral"),
        ({"name": "breach", "type": "child<virtconsole>"}, "peripheral"),
        ({"name": "breach", "type": "child<vhost-vsock-pci>"}, "peripheral"),
    ],
)
def test_a_channel_of_which_libvirt_does_not_know(row: dict[str, object], name: str) -> None:
    assert len(channels.undeclared("red.web", RECORDED["xml"], _with(name, row))) == 1


def test_a_channel_of_another_domain_is_none_of_this_one() -> None:
    found = channels.undeclared("red.db", RECORDED["xml"], RECORDED["answers"])
    assert [text.split(" at ")[0] for text in found] == [
        "QEMU has the character device charchannel0",
        "QEMU has the character device charmonitor",
    ]


@pytest.mark.parametrize(
    "device",
    [
        "<channel type='null'><target type='virtio' name='x'/></channel>",
        "<redirdev bus='usb' type='spicevmc'/>",
        "<serial type='null'/>",
        "<filesystem/>",
    ],
)
def test_a_channel_in_libvirts_xml(device: str) -> None:
    xml = RECORDED["xml"].replace("</devices>", f"{device}</devices>")
    assert len(channels.undeclared("red.web", xml, RECORDED["answers"])) == 1


def test_an_agent_of_another_name_is_found() -> None:
    xml = RECORDED["xml"].replace('name="org.qemu.guest_agent.0"', 'name="other"')
    xml = xml.replace("name='org.qemu.guest_agent.0'", "name='other'")
    assert channels.undeclared("red.web", xml, RECORDED["answers"]) == ["libvirt's XML has the channel other"]


@pytest.mark.parametrize("answers", [{}, {"chardevs": [], "peripheral": []}, {"chardevs": [1]}])
def test_a_silent_qemu_is_no_sign_of_walls(answers: dict[str, object]) -> None:
    with pytest.raises(UnseenError):
        channels.undeclared("red.web", RECORDED["xml"], answers)


def test_a_private_socket() -> None:
    assert channels.exposed(Channels((OWN,)), WORKERS, WORKERS) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"owner": (64100, 64100, 0o777), "folder": (64100, 64100, 0o755)}, "has mode 777"),
        ({"folder": (64100, 5, 0o750), "owner": (64100, 5, 0o775)}, "has mode 775"),
        ({"owner": (0, 0, 0o600)}, "belongs to 0"),
        ({"folder": (64101, 64100, 0o750)}, "belongs to 64100 in a folder of 64101"),
        ({"listening": 0}, "has 0 listening"),
        ({"listening": 2}, "has 2 listening"),
        ({"socket": False}, "is no socket"),
    ],
)
def test_an_open_socket(change: dict[str, Any], text: str) -> None:
    found = channels.exposed(Channels((replace(OWN, **change),)), WORKERS, WORKERS)
    assert len(found) == 1
    assert text in found[0]


def test_a_second_socket_and_one_of_a_guest_that_is_gone() -> None:
    other = replace(OWN, path="/run/libvirt/qemu/channel/3-red.web/x/org.qemu.guest_agent.0")
    assert channels.exposed(Channels((OWN, other)), WORKERS, WORKERS) == [
        "red.web has 2 sockets of channels, not one"
    ]
    assert channels.exposed(Channels((OWN,)), {}, ()) == ["a channel of red.web is there, which does not run"]


def test_logs_with_characters_that_a_terminal_obeys() -> None:
    assert channels.obeyed(Logs((("/var/log/a", ascii("token plain")),), (ascii("token"),), 3)) == []
    found = channels.obeyed(Logs((("/var/log/a", ascii("token\x1b[31m")),), (ascii("token\x07"),), 3))
    assert [text.split(" has ")[0] for text in found] == ["/var/log/a", "the journal"]
    with pytest.raises(UnseenError):
        channels.obeyed(Logs((), (), 0))


def test_answers_of_another_form() -> None:
    for read in (channels.parsed, channels.parsed_logs):
        with pytest.raises(UnseenError):
            read({"sockets": 1})
