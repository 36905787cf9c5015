"""What an ssh server offers is read from its first packet, within bounds, and judged by a list."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from testbed.errors import InstrumentError
from testbed.hosts.rules import UnseenError
from testbed.verify.witnesses.ssh_algorithms import POLICY, STRICT, Offer, offered, parsed, weak

LISTS = [
    f"curve25519-sha256,{STRICT}",
    "ssh-ed25519",
    "aes128-ctr",
    "aes256-ctr",
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "none",
    "none,zlib@openssh.com",
]
BANNER = b"SSH-2.0-OpenSSH_10.0\r\n"


def packet(lists: list[str] = LISTS) -> bytes:
    """Return a whole packet that begins a key exchange (RFC 4253, 7.1)."""
    body = b"".join(len(names).to_bytes(4, "big") + names.encode() for names in [*lists, "", ""])
    payload = bytes([20]) + bytes(16) + body + bytes(5)
    return (len(payload) + 5).to_bytes(4, "big") + bytes([4]) + payload + bytes(4)


@contextmanager
def server(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """Serve one connection after another on a port of the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    serve(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def offer(**change: str) -> Offer:
    names = {kind: frozenset(text.split(",")) for kind, text in change.items()}
    good = parsed(packet()[4:])
    return Offer("SSH-2.0-x", {**good, **{kind.replace("_", " "): value for kind, value in names.items()}})


def test_both_directions_of_a_connection_are_read() -> None:
    with server(lambda connection: connection.sendall(b"a word before\r\n" + BANNER + packet())) as port:
        found = offered("127.0.0.1", port)
    assert found.version == "SSH-2.0-OpenSSH_10.0"
    assert found.names["cipher"] == {"aes128-ctr", "aes256-ctr"}
    assert found.names["MAC"] == {"hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"}
    assert weak(found) == []


def test_a_packet_may_come_in_pieces() -> None:
    def serve(connection: socket.socket) -> None:
        for octet in BANNER + packet():
            connection.sendall(bytes([octet]))

    with server(serve) as port:
        assert weak(offered("127.0.0.1", port)) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"key_exchange": f"{STRICT},diffie-hellman-group14-sha1"},
            "key exchange diffie-hellman-group14-sha1",
        ),
        ({"key_exchange": "curve25519-sha256"}, f"no {STRICT}"),
        ({"host_key": "ssh-ed25519,ssh-rsa"}, "host key ssh-rsa"),
        ({"cipher": "aes128-ctr,3des-cbc"}, "cipher 3des-cbc"),
        ({"MAC": "hmac-sha1"}, "MAC hmac-sha1"),
        ({"compression": "zlib"}, "compression zlib"),
    ],
)
def test_each_weak_algorithm_is_named(change: dict[str, str], fault: str) -> None:
    assert weak(offer(**change)) == [fault]


@pytest.mark.parametrize("kind", sorted(POLICY))
def test_an_offer_of_nothing_is_no_pass(kind: str) -> None:
    found = offer()
    with pytest.raises(UnseenError, match=f"no {kind} is offered"):
        weak(Offer("x", {**found.names, kind: frozenset()}))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400\r\n" * 40,
        b"x" * 1000,
        BANNER,
        BANNER + b"\xff\xff\xff\xff",
        BANNER + packet()[:40],
        BANNER + packet().replace(b"\x14", b"\x15", 1),
        BANNER + (30).to_bytes(4, "big") + bytes([4, 20]) + bytes(16) + b"\x7f\xff\xff\xff" + bytes(8),
    ],
    ids=["nothing", "another service", "no end", "no packet", "large", "cut off", "another packet", "a lie"],
)
def test_another_answer_is_an_error_in_time(answer: bytes) -> None:
    began = time.monotonic()
    with server(lambda connection: connection.sendall(answer)) as port, pytest.raises(InstrumentError):
        offered("127.0.0.1", port, seconds=1.0)
    assert time.monotonic() - began < 5


def test_a_server_that_says_nothing_is_given_up() -> None:
    began, over = time.monotonic(), threading.Event()
    with server(lambda _: over.wait(10)) as port:
        with pytest.raises(InstrumentError, match="names no algorithms"):
            offered("127.0.0.1", port, seconds=1.0)
        over.set()
    assert time.monotonic() - began < 5


def test_a_server_that_starts_again_is_asked_again() -> None:
    answers = iter([b"", BANNER + packet()])
    with server(lambda connection: connection.sendall(next(answers))) as port:
        assert weak(offered("127.0.0.1", port)) == []
