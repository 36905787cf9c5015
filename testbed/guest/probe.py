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
_ARP, _IPV4, _TEST = 0x0806, 0x0800, 0x88B5
_PACKET_ADD_MEMBERSHIP, _PACKET_STATISTICS, _SOL_PACKET, _PROMISCUOUS = 1, 6, 263, 1
_ETH_P_ALL, _OUTGOING = 3, 4
_BROADCAST = "ff:ff:ff:ff:ff:ff"
_PREFIX = re.compile(r"tb-[a-z0-9]{4,32}-")
Request = dict[str, Any]


class Seen(NamedTuple):
    """What a frame says about itself; ``token`` is empty for ARP, and the transaction id for DHCP."""

    kind: str
    token: str
    mac: str
    ip: str
    target: str


# Frames: builders and parsers are pure.


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = int(sum(struct.unpack(f"!{len(data) // 2}H", data)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(target: str, source: str, ethertype: int, payload: bytes) -> bytes:
    """Return an Ethernet frame, padded to the minimum length."""
    return (_mac(target) + _mac(source) + struct.pack("!H", ethertype) + payload).ljust(60, b"\0")


def arp_request(source_mac: str, source_ip: str, target_ip: str) -> bytes:
    """Return the body of an ARP request (RFC 826)."""
    head = struct.pack("!HHBBH", 1, _IPV4, 6, 4, 1)
    return head + _mac(source_mac) + socket.inet_aton(source_ip) + bytes(6) + socket.inet_aton(target_ip)


def ipv4(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    """Return an IPv4 packet (RFC 791) with a random identification."""
    fields = (0x45, 0, 20 + len(payload), secrets.randbits(16), 0, 64, protocol, 0)
    head = struct.pack("!BBHHHBBH", *fields) + socket.inet_aton(source) + socket.inet_aton(target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def icmp_echo(payload: bytes, identifier: int) -> bytes:
    """Return an ICMP echo request (RFC 792)."""
    rest = struct.pack("!HH", identifier, 1) + payload
    return struct.pack("!BBH", 8, 0, checksum(b"\x08\0\0\0" + rest)) + rest


def tcp_syn(source: str, target: str, ports: tuple[int, int], payload: bytes) -> bytes:
    """Return a TCP SYN that carries data, as RFC 9293 (3.4) permits."""
    segment = struct.pack("!HHIIBBHHH", *ports, secrets.randbits(32), 0, 5 << 4, 2, 64240, 0, 0) + payload
    total = checksum(_pseudo(source, target, 6, len(segment)) + segment)
    return segment[:16] + struct.pack("!H", total) + segment[18:]


def udp(source: str, target: str, ports: tuple[int, int], payload: bytes) -> bytes:
    """Return a UDP datagram (RFC 768)."""
    datagram = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    total = checksum(_pseudo(source, target, 17, len(datagram)) + datagram) or 0xFFFF
    return datagram[:6] + struct.pack("!H", total) + datagram[8:]


def dhcp_discover(mac: str, transaction: int) -> bytes:
    """Return a DHCP discover message (RFC 2131): a question that a tenant network answers to every guest."""
    head = struct.pack("!BBBBIHH", 1, 1, 6, 0, transaction, 0, 0x8000) + bytes(16) + _mac(mac).ljust(16, b"\0")
    return head + bytes(192) + b"\x63\x82\x53\x63" + b"\x35\x01\x01" + b"\x37\x03\x01\x03\x33" + b"\xff"


def _pseudo(source: str, target: str, protocol: int, length: int) -> bytes:
    return socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, protocol, length)


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
    source, at = _mac_text(frame[6:12]), 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8") and at < 20:
        at += 4
    body = frame[at + 2 : SNAP]
    ethertype = int.from_bytes(frame[at : at + 2], "big")
    if ethertype == _ARP:
        return _parse_arp(body)
    token = find_token(frame, prefix)
    if ethertype == _IPV4 and len(body) >= 20 and body[0] >> 4 == 4:
        return _parse_ipv4(body, source, token)
    return Seen("raw", token, source, "", "") if token else None


def _parse_arp(body: bytes) -> Seen | None:
    if len(body) < 28 or body[:6] != b"\0\x01\x08\0\x06\x04":
        return None
    kind = {1: "arp-request", 2: "arp-reply"}.get(int.from_bytes(body[6:8], "big"))
    sender, target = socket.inet_ntoa(body[14:18]), socket.inet_ntoa(body[24:28])
    return Seen(kind, "", _mac_text(body[8:14]), sender, target) if kind else None


def _parse_ipv4(body: bytes, mac: str, token: str) -> Seen | None:
    sender, target = socket.inet_ntoa(body[12:16]), socket.inet_ntoa(body[16:20])
    rest = body[(body[0] & 15) * 4 :]
    if body[9] == 17 and rest[:4] == b"\0\x43\0\x44" and len(rest) >= 16 and rest[8] == 2:
        return Seen("dhcp", f"{int.from_bytes(rest[12:16], 'big'):08x}", mac, sender, target)
    if not token:
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
        self.seen: dict[tuple[Seen, str, str], float] = {}
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
        if len(self.seen) < MAX_RECORDS:
            self.seen.setdefault((seen, label, direction), time.monotonic())
        elif (seen, label, direction) not in self.seen:
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
        records = [{**seen._asdict(), "label": label, "direction": way, "at": round(at - self.started, 3)}
                   for (seen, label, way), at in self.seen.items()]  # fmt: skip
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
                out.send(ethernet(nic["mac"], nic["mac"], _TEST, payload))


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


def frame_of(probe: Request) -> bytes:
    """Return the frame of a raw probe; its addresses are forged where the probe says so."""
    own, target, kind = str(probe.get("source_mac", probe["mac"])), str(probe.get("target_mac", _BROADCAST)), probe["kind"]
    source, address = str(probe.get("source_ip", probe["address"])), str(probe.get("ip", "255.255.255.255"))
    payload, ports = str(probe["token"]).encode(), (40000 + secrets.randbelow(20000), int(probe.get("port") or 0))
    if kind == "arp":
        return ethernet(target, own, _ARP, arp_request(own, source, address))
    if kind == "dhcp":
        discover = dhcp_discover(own, int(probe["transaction"], 16))
        packet = ipv4("0.0.0.0", address, 17, udp("0.0.0.0", address, (68, 67), discover))
    elif kind == "icmp":
        packet = ipv4(source, address, 1, icmp_echo(payload, secrets.randbits(16)))
    elif kind == "tcp-syn":
        packet = ipv4(source, address, 6, tcp_syn(source, address, ports, payload))
    elif kind == "udp":
        packet = ipv4(source, address, 17, udp(source, address, ports, payload))
    else:
        msg = f"there is no probe {kind!r}"
        raise ValueError(msg)
    return ethernet(target, own, _IPV4, packet)


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


def _attempt(probe: Request, outlets: Outlets) -> Request:
    try:
        if probe["kind"] in ("tcp-connect", "udp-ask"):
            return {"answer": ask(probe), "sent": True, "error": ""}
        outlets.send(probe["mac"], frame_of(probe))
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
    phases = {"listen": listen, "send": send, "collect": collect, "finish": finish, "stop": stop}
    try:
        answer, status = phases[request["phase"]](request), 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        answer, status = {"error": repr(error)[:MAX_TEXT]}, 1
    print(json.dumps(answer))
    return status
