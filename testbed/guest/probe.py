"""Observer and sender inside a guest: one JSON request in, one JSON document out (NET-01, NET-02, NET-04).

Runs as root and stands alone: one file, standard library only; `testbed.verify.network.compose` appends the
request. Whatever arrives from the network is hostile: parsed by bounds, kept in bounded amounts, never run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import select
import selectors
import shutil
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = "/run/testbed-probe"
MAX_RECORDS, MAX_PROBES, MAX_TEXT, SNAP = 2000, 5000, 160, 2048
_ARP, _IPV4, _IPV6, _TEST = 0x0806, 0x0800, 0x86DD, 0x88B5
_PACKET_ADD_MEMBERSHIP, _PACKET_STATISTICS, _SOL_PACKET, _PROMISCUOUS = 1, 6, 263, 1
_ETH_P_ALL, _OUTGOING = 3, 4
_PREFIX = re.compile(r"tb-[a-z0-9]{4,32}-")
Request = dict[str, Any]


class Seen(NamedTuple):
    """What a frame says about itself.

    ``token`` may be empty for ARP, and is the transaction id for an answer of DHCP, whose ``target`` is the address
    that it hands out; ``to`` is the MAC address that the frame is for.
    """

    kind: str
    token: str
    mac: str
    ip: str
    target: str
    to: str = ""


# Frames: what builds and reads them is pure.


def test_frame(mac: str, payload: bytes) -> bytes:
    """Return a frame of an ethertype for experiments, from an interface to itself."""
    return (_mac(mac) * 2 + struct.pack("!H", _TEST) + payload).ljust(60, b"\0")


def _mac(text: str) -> bytes:
    octets = bytes.fromhex(text.replace(":", ""))
    if len(octets) != 6:
        msg = f"{text!r} is not a MAC address"
        raise ValueError(msg)
    return octets


def _mac_text(octets: bytes) -> str:
    return octets.hex(":")


def find_token(data: bytes, prefix: str) -> str:
    """Return the first token of a run in some bytes, or the empty string."""
    found = re.search(re.escape(prefix).encode() + rb"[a-z0-9-]{1,40}\.", data[:SNAP])
    return found[0].decode() if found else ""


def parse(frame: bytes, prefix: str) -> Seen | None:
    """Return what a frame says if it is ARP, DHCP's answer, or carries a token of this run."""
    if len(frame) < 14:
        return None
    seen = _parse(frame, prefix)
    return seen and seen._replace(to=_mac_text(frame[:6]))


def _parse(frame: bytes, prefix: str) -> Seen | None:
    source, at = _mac_text(frame[6:12]), 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8") and at < 20:
        at += 4
    body = frame[at + 2 : SNAP]
    ethertype = int.from_bytes(frame[at : at + 2], "big")
    token = find_token(frame, prefix)
    if ethertype == _ARP:
        return _parse_arp(body, token)
    if ethertype == _IPV4 and len(body) >= 20 and body[0] >> 4 == 4:
        return _parse_ipv4(body, source, token)
    if ethertype == _IPV6 and len(body) >= 40 and token:
        sender, target = (socket.inet_ntop(socket.AF_INET6, body[at : at + 16]) for at in (8, 24))
        return Seen("ip6", token, source, sender, target)
    return Seen("raw", token, source, "", "") if token else None


def _parse_arp(body: bytes, token: str) -> Seen | None:
    if len(body) < 28 or body[:6] != b"\0\x01\x08\0\x06\x04":
        return None
    kind = {1: "arp-request", 2: "arp-reply"}.get(int.from_bytes(body[6:8], "big"))
    sender, target = socket.inet_ntoa(body[14:18]), socket.inet_ntoa(body[24:28])
    return Seen(kind, token, _mac_text(body[8:14]), sender, target) if kind else None


def _parse_ipv4(body: bytes, mac: str, token: str) -> Seen | None:
    sender, target = socket.inet_ntoa(body[12:16]), socket.inet_ntoa(body[16:20])
    rest = body[(body[0] & 15) * 4 :]
    if not token:
        if body[9] == 17 and rest[:4] == b"\0\x43\0\x44" and len(rest) >= 28 and rest[8] == 2:
            return Seen("dhcp", f"{int.from_bytes(rest[12:16], 'big'):08x}", mac, sender, socket.inet_ntoa(rest[24:28]))
        return None
    kind = {1: "icmp", 6: "tcp", 17: "udp"}.get(body[9], "ip")
    if kind == "icmp":
        kind = {b"\x08": "icmp", b"\0": "icmp-reply"}.get(rest[:1], "icmp-error")
    return Seen(kind, token, mac, sender, target)


# Interfaces of the guest.


def interface_of(mac: str) -> str:
    """Return the name of the interface with a MAC address, or the empty string."""
    for entry in sorted(Path("/sys/class/net").iterdir()):
        with contextlib.suppress(OSError):
            if (entry / "address").read_text().strip() == mac:
                return entry.name
    return ""


def has_address(name: str, address: str) -> bool:
    """Tell whether an interface has an IPv4 address as its first one (SIOCGIFADDR)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control, contextlib.suppress(OSError):
        answer = fcntl.ioctl(control, 0x8915, struct.pack("256s", name.encode()[:15]))
        return socket.inet_ntoa(answer[20:24]) == address
    return False


def _packet_socket(name: str, protocol: int) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    opened.bind((name, protocol))
    return opened


def _outlet(mac: str) -> socket.socket:
    """Return a socket that sends frames from the interface with a MAC address."""
    return _packet_socket(interface_of(mac) or "none", 0)


# The recorder.


class Recorder:
    """Sniffs and listens until its window ends or it is told to stop; reports through a file."""

    def __init__(self, request: Request) -> None:
        self.folder, self.prefix = _folder(request), _prefix(request)
        self.window = min(float(request["window"]), 7200.0)
        self.nics: list[dict[str, str]] = request["interfaces"]
        self.selector = selectors.DefaultSelector()
        self.sniffers: list[tuple[socket.socket, str]] = []
        self.open: dict[socket.socket, float] = {}
        self.seen: dict[tuple[Seen, str, str], list[float]] = {}
        self.down: set[str] = set()
        self.overflowed, self.dropped, self.gap, self.ack = False, 0, 0.0, ""
        self.started = self.beat = self.saved = time.monotonic()

    def prepare(self, request: Request) -> Request:
        """Open everything, with retries until ``patience`` seconds have passed; return the ready state."""
        deadline = time.monotonic() + min(float(request.get("patience", 10)), 120.0)
        wanted = [(kind, int(port)) for kind in ("tcp", "udp") for port in request.get(kind, [])][:128]
        missing, nics = {f"{kind}/{port}": "" for kind, port in wanted}, self._interfaces()
        while True:
            for kind, port in wanted:
                if f"{kind}/{port}" in missing and self._listen(kind, port, missing):
                    del missing[f"{kind}/{port}"]
            nics = self._interfaces()
            if time.monotonic() > deadline or (not missing and all(nic["interface"] and nic["address"] for nic in nics)):
                break
            time.sleep(0.2)
        for nic in nics:
            if nic["interface"]:
                self._sniff(nic["interface"], nic["label"])
        listening = [f"{kind}/{port}" for kind, port in wanted if f"{kind}/{port}" not in missing]
        return {"ready": True, "interfaces": nics, "listening": listening, "not_listening": missing, "pid": os.getpid()}

    def _interfaces(self) -> list[dict[str, Any]]:
        names = {nic["mac"]: interface_of(nic["mac"]) for nic in self.nics}
        return [
            {"label": nic["label"], "mac": nic["mac"], "interface": names[nic["mac"]],
             "address": bool(names[nic["mac"]]) and has_address(names[nic["mac"]], nic["address"])}
            for nic in self.nics
        ]  # fmt: skip

    def _listen(self, kind: str, port: int, errors: dict[str, str]) -> bool:
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        server.setblocking(False)
        try:
            if kind == "tcp":
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", port))
            if kind == "tcp":
                server.listen(32)
        except OSError as error:
            errors[f"{kind}/{port}"] = str(error)[:MAX_TEXT]
            server.close()
            return False
        self.selector.register(server, selectors.EVENT_READ, self._accept if kind == "tcp" else self._echo)
        return True

    def _sniff(self, name: str, label: str) -> None:
        sniffer = _packet_socket(name, _ETH_P_ALL)
        sniffer.setblocking(False)
        sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        member = struct.pack("iHH8s", socket.if_nametoindex(name), _PROMISCUOUS, 0, b"")
        sniffer.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, member)
        self.sniffers.append((sniffer, label))
        self.selector.register(sniffer, selectors.EVENT_READ, lambda opened: self._drain(opened, label))

    def _drain(self, sniffer: socket.socket, label: str) -> None:
        for _ in range(5000):
            try:
                frame, source = sniffer.recvfrom(SNAP)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    raise
                self.down.add(label)
            else:
                seen = parse(frame, self.prefix)
                if seen:
                    self._record(seen, label, "out" if source[2] == _OUTGOING else "in")

    def _record(self, seen: Seen, label: str, direction: str) -> None:
        """Remember when something was seen first and last, and how often."""
        now, times = time.monotonic(), self.seen.get((seen, label, direction))
        if times is not None:
            times[1:] = now, times[2] + 1
        elif len(self.seen) < MAX_RECORDS:
            self.seen[seen, label, direction] = [now, now, 1]
        else:
            self.overflowed = True

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            if len(self.open) >= 64:
                connection.close()
                return
            connection.setblocking(False)
            self.open[connection] = time.monotonic() + 10
            self.selector.register(connection, selectors.EVENT_READ, self._answer)

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            token = find_token(connection.recv(SNAP), self.prefix)
            if token:
                self._heard("tcp-accepted", token, connection.getpeername()[0], connection.getsockname()[0])
                connection.send(f"ok-{token}".encode())
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self.selector.unregister(connection)
        del self.open[connection]
        connection.close()

    def _echo(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            data, sender = server.recvfrom(SNAP)
            token = find_token(data, self.prefix)
            if token and not data.startswith(b"ok-"):
                self._heard("udp-received", token, sender[0], "")
                server.sendto(f"ok-{token}".encode(), sender)

    def _heard(self, kind: str, token: str, sender: str, own: str) -> None:
        label = next((nic["label"] for nic in self.nics if nic["address"] == own), "")
        self._record(Seen(kind, token, "", sender, own), label, "in")

    def run(self) -> None:
        """Work until the window ends; the last thing written says whether it did."""
        while time.monotonic() < self.started + self.window:
            for key, _ in self.selector.select(0.2):
                key.data(key.fileobj)
            now = time.monotonic()
            self.gap, self.beat = max(self.gap, now - self.beat), now
            for connection in [opened for opened, end in self.open.items() if end < now]:
                self._close(connection)
            asked = _read(self.folder / "ask")
            if asked != self.ack or now - self.saved > 2:
                self.save(asked, ended=False)
        self.save(self.ack, ended=True)

    def save(self, ack: str, *, ended: bool) -> None:
        """Write down what is known so far, with everything the kernel still holds."""
        for sniffer, label in self.sniffers:
            self._drain(sniffer, label)
            counts = sniffer.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            self.dropped += struct.unpack("II", counts)[1]
        self.ack, self.saved = ack, time.monotonic()
        records = [{**seen._asdict(), "label": label, "direction": way, "at": round(first - self.started, 3),
                    "until": round(last - self.started, 3), "times": times}
                   for (seen, label, way), (first, last, times) in self.seen.items()]  # fmt: skip
        state = {"ack": ack, "ended": ended, "lived": round(self.beat - self.started, 3), "gap": round(self.gap, 3),
                 "dropped": self.dropped, "overflowed": self.overflowed, "down": sorted(self.down),
                 "records": records}  # fmt: skip
        (self.folder / "state.new").write_text(json.dumps(state))
        (self.folder / "state.new").rename(self.folder / "state")


def _folder(request: Request) -> Path:
    return Path(request.get("folder", FOLDER))


def _prefix(request: Request) -> str:
    prefix = str(request["token"])
    if not _PREFIX.fullmatch(prefix):
        msg = f"{prefix!r} is no token of a run"
        raise ValueError(msg)
    return prefix


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _self_test(request: Request, stage: str) -> None:
    """Send a frame from each interface to itself; a recorder that hears at all records it as outgoing."""
    for nic in request["interfaces"]:
        with contextlib.suppress(OSError):
            payload = f"{_prefix(request)}self-{stage}.".encode()
            with _outlet(nic["mac"]) as out:
                out.send(test_frame(nic["mac"], payload))


def listen(request: Request) -> Request:
    """Start a recorder that outlives this program; return what it listens on."""
    stop(request)
    folder = _folder(request)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    inside, outside = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _record(request, outside)
        finally:
            os._exit(0)
    os.close(outside)
    os.waitpid(child, 0)
    with os.fdopen(inside, "rb") as pipe:
        ready = select.select([pipe], [], [], float(request.get("patience", 10)) + 20)[0]
        text = pipe.read() if ready else b""
    return dict(json.loads(text)) if text else {"ready": False, "error": "the recorder ended before it was ready"}


def _record(request: Request, pipe: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    lock = (_folder(request) / "pid").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write(str(os.getpid()))
    lock.flush()
    try:
        recorder = Recorder(request)
        answer = recorder.prepare(request)
        _self_test(request, "start")
    except (OSError, ValueError, KeyError, TypeError) as error:
        os.write(pipe, json.dumps({"ready": False, "error": repr(error)[:MAX_TEXT]}).encode())
        return
    os.write(pipe, json.dumps(answer).encode())
    os.close(pipe)
    recorder.run()


def _recording(folder: Path) -> bool:
    """Tell whether a recorder runs: it holds the lock on its file for as long as it lives."""
    with contextlib.suppress(FileNotFoundError), (folder / "pid").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def collect(request: Request) -> Request:
    """Return what the recorder has seen; it counts as alive only if it answers now."""
    folder, stage = _folder(request), secrets.token_hex(4)
    _self_test(request, stage)
    (folder / "ask").write_text(stage)
    deadline = time.monotonic() + min(float(request.get("patience", 10)), 120.0)
    while True:
        state: Request = json.loads(_read(folder / "state") or "{}")
        alive = state.get("ack") == stage and not state["ended"]
        if alive or state.get("ended") or not _recording(folder) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    own = f"{_prefix(request)}self-"
    mine = {(record["label"], record["token"]) for record in state.get("records", ()) if record["token"].startswith(own)}
    state["records"] = [record for record in state.get("records", ()) if not record["token"].startswith(own)]
    state["self_test"] = all((nic["label"], f"{own}{at}.") in mine for nic in request["interfaces"] for at in ("start", stage))
    return {**state, "alive": alive}


def stop(request: Request) -> Request:
    """End the recorder, if its lock says that it runs, and forget what it has seen."""
    folder, stopped = _folder(request), False
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if _recording(folder):
            process = os.pidfd_open(int((folder / "pid").read_text()))
            signal.pidfd_send_signal(process, signal.SIGKILL)
            stopped = bool(select.select([process], [], [], 10)[0])
    shutil.rmtree(folder, ignore_errors=True)
    return {"stopped": stopped}


# The sender.


def ask(probe: Request) -> str:
    """Use a service as anyone does, from the probe's own interface; return its answer.

    Raises:
        OSError: refused, unreachable, or no answer in time.

    """
    token, kind = str(probe["token"]).encode(), probe["kind"]
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp-connect" else socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface_of(probe["mac"]).encode())
        opened.bind((probe["address"], 0))
        opened.settimeout(min(float(probe.get("timeout", 5)), 60))
        opened.connect((probe["ip"], int(probe["port"])))
        opened.sendall(token)
        return opened.recv(MAX_TEXT).decode(errors="replace")


def send(request: Request) -> Request:
    """Send every probe, within ``budget`` seconds; return what became of each."""
    deadline = time.monotonic() + min(float(request.get("budget", 120)), 1800)
    results = []
    with contextlib.ExitStack() as opened:
        outlets = Outlets(opened)
        for probe in request["probes"][:MAX_PROBES]:
            result = {"id": probe["id"], "sent": False, "error": "no time left", "answer": ""}
            for attempt in range(min(int(probe.get("repeat", 1)), 20)):
                if time.monotonic() > deadline or (attempt and result["answer"]):
                    break
                time.sleep(min(float(probe.get("spacing", 0.02)), 2) if attempt else 0)
                result.update(_attempt(probe, outlets))
            results.append(result)
    return {"results": results}


def stream(request: Request) -> Request:
    """Send the frames of every probe in turns for ``duration`` seconds, one each ``spacing`` seconds."""
    started, spacing = time.monotonic(), float(request.get("spacing", 0.005))
    end, rounds = started + min(float(request["duration"]), 300.0), 0
    frames = [(probe["mac"], bytes.fromhex(probe["frame"])) for probe in request["probes"][:MAX_PROBES]]
    with contextlib.ExitStack() as opened:
        outlets = Outlets(opened)
        while frames and time.monotonic() < end:
            for mac, frame in frames:
                outlets.send(mac, frame)
                time.sleep(spacing)
            rounds += 1
    return {"rounds": rounds, "lasted": round(time.monotonic() - started, 3)}


class Outlets:
    """One packet socket for each interface: the kernel lets every opening and closing wait for a grace period."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.open: dict[str, socket.socket] = {}

    def send(self, mac: str, frame: bytes) -> None:
        """Send a frame from the interface with a MAC address."""
        if mac not in self.open:
            self.open[mac] = self.stack.enter_context(_outlet(mac))
        self.open[mac].send(frame)


def _as_stranger(frame: bytes) -> bytes:
    """Return a frame with another, random source MAC address."""
    return frame[:6] + b"\x0e" + secrets.token_bytes(5) + frame[12:]


def _attempt(probe: Request, outlets: Outlets) -> Request:
    try:
        if probe["kind"] in ("tcp-connect", "udp-ask"):
            return {"answer": ask(probe), "sent": True, "error": ""}
        frame = bytes.fromhex(probe["frame"])
        for number in range(min(int(probe.get("copies", 1)), MAX_PROBES)):
            outlets.send(probe["mac"], _as_stranger(frame) if number else frame)
    except (OSError, ValueError, KeyError) as error:
        return {"error": (str(error) or repr(error))[:MAX_TEXT]}
    return {"sent": True, "error": ""}


def finish(request: Request) -> Request:
    """Return what the recorder has seen, and end it."""
    seen = collect(request)
    stop(request)
    return seen


def main(request: Request) -> int:
    """Run one phase and print its answer."""
    phases = {"listen": listen, "send": send, "stream": stream, "collect": collect, "finish": finish, "stop": stop}
    try:
        answer, status = phases[request["phase"]](request), 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        answer, status = {"error": repr(error)[:MAX_TEXT]}, 1
    print(json.dumps(answer))
    return status
