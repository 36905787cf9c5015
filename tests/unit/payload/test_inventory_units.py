"""Units of systemd: the manager's wire format, its refusals, and files of units."""

from __future__ import annotations

import json
import socket
import struct
import threading
from pathlib import Path

import pytest

from testbed.payload.inventory.base.collect import Records, Unread
from testbed.payload.inventory.host import bus, manager, units

OK = b"OK 0123\r\n"
# ListUnits of systemd 257 for one unit, as the specification of D-Bus lays it out: a(ssssssouso).
LISTED = ("x.service", "Words", "loaded", "active", "running", "", "/unit/x", 0, "", "/")


def _padded(data: bytes, size: int) -> bytes:
    return data + bytes(-len(data) % size)


def _text(data: bytes, text: str) -> bytes:
    return _padded(data, 4) + struct.pack("<I", len(text)) + text.encode() + b"\0"


def listing(*found: tuple[str | int, ...]) -> bytes:
    body = bytes(8)
    for unit in found:
        body = _padded(body, 8)
        for value in unit:
            body = (
                _text(body, value) if isinstance(value, str) else _padded(body, 4) + struct.pack("<I", value)
            )
    return struct.pack("<II", len(body) - 8, 0) + body[8:]


def variant(value: str | list[str] | int, data: bytes = b"") -> bytes:
    if isinstance(value, int):
        return _padded(data + b"\1t\0", 8) + struct.pack("<Q", value)
    if isinstance(value, str):
        return _text(data + b"\1s\0", value)
    inner = b""
    for item in value:
        inner = _text(inner, item)
    return _padded(data + b"\2as\0", 4) + struct.pack("<I", len(inner)) + inner


def commands(data: bytes, *found: tuple[str, list[str]]) -> bytes:
    """Lay out a(sasasttttuii) as a variant: programs, arguments, flags, and the numbers of their last run."""
    data = _padded(data + b"\x0fa(sasasttttuii)\0", 4)
    start = len(data)
    body = _padded(data + bytes(4), 8)
    first = len(body)
    for program, arguments in found:
        body = _padded(_text(_padded(body, 8), program), 4)
        inner = b""
        for argument in arguments:
            inner = _text(inner, argument)
        body += struct.pack("<I", len(inner)) + inner
        body = _padded(body, 4) + bytes(4)  # no flags
        body = _padded(body, 8) + struct.pack("<QQQQIii", 1, 2, 3, 4, 5, 6, 7)
    return body[:start] + struct.pack("<I", len(body) - first) + body[start + 4 :]


def settings(**told: object) -> bytes:
    """Lay out a{sv} of texts, lists of texts, numbers, and of bytes as they are behind a name."""
    body = bytes(8)
    for name, value in told.items():
        body = _text(_padded(body, 8), name)
        if callable(value):
            body = value(body)
        elif isinstance(value, bool):
            body = _padded(body + b"\1b\0", 4) + struct.pack("<I", value)
        else:
            body = variant(value, body)  # type: ignore[arg-type]
    return struct.pack("<II", len(body) - 8, 0) + body[8:]


def answer(serial: int, body: bytes, kind: int = 2) -> bytes:
    fields = _padded(b"\5\1u\0" + struct.pack("<I", serial), 8) + b"\x08\1g\0\1v\0"
    header = struct.pack("<cBBBIII", b"l", kind, 1, 1, len(body), 99, len(fields))
    return _padded(header + fields, 8) + body


class Stub:
    """Stands in for the manager: each question has an answer by its member or property."""

    def __init__(self, path: Path, told: dict[str, bytes], *, greeting: bytes = OK, pieces: int = 1) -> None:
        self.path, self.told, self.greeting, self.pieces = path, told, greeting, pieces
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.asked: list[bytes] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with self.listener, self.listener.accept()[0] as client:
            data = b""
            while b"BEGIN\r\n" not in data:
                data += client.recv(65536)
            client.sendall(self.greeting)
            data = data.partition(b"BEGIN\r\n")[2]
            while piece := client.recv(65536):
                data = self._answered(client, data + piece)

    def _answered(self, client: socket.socket, data: bytes) -> bytes:
        while len(data) >= 16:
            size, serial, fields = struct.unpack_from("<III", data, 4)
            end = 16 + fields + -fields % 8 + size
            if len(data) < end:
                break
            question, data = data[:end], data[end:]
            self.asked.append(question)
            body = next(body for name, body in self.told.items() if name.encode() + b"\0" in question)
            signal = answer(0, b"", kind=4)
            reply = signal + (
                answer(serial, body) if body != b"error" else answer(serial, _text(b"", "no"), 3)
            )
            step = len(reply) // self.pieces + 1
            for at in range(0, len(reply), step):
                client.sendall(reply[at : at + step])
        return data


@pytest.mark.parametrize("pieces", [1, 9])
def test_units_and_properties_are_read_from_the_wire(tmp_path: Path, pieces: int) -> None:
    other = ("y.slice", "", "loaded", "active", "active", "", "/unit/y", 7, "start", "/job/7")
    told = {"ListUnits": listing(LISTED, other), "Paths": variant(["/a", "/bc"]), "Path": variant("/x")}
    Stub(tmp_path / "private", {**told, "Stamp": variant(2**40)}, pieces=pieces)
    with manager.Manager(str(tmp_path / "private"), 20) as asked:
        assert asked.units() == [
            ("x.service", "loaded", "active", "running", "/unit/x"),
            ("y.slice", "loaded", "active", "active", "/unit/y"),
        ]
        wanted = [("/unit/x", "i.Unit", name) for name in ("Path", "Paths", "Stamp") * 150]
        assert asked.properties(wanted) == ["/x", ["/a", "/bc"], 2**40] * 150


def test_an_error_a_refusal_and_an_end_are_unread(tmp_path: Path) -> None:
    Stub(tmp_path / "error", {"Path": b"error"})
    with manager.Manager(str(tmp_path / "error"), 20) as asked, pytest.raises(Unread, match="answers: no"):
        asked.properties([("/unit/x", "i.Unit", "Path")])
    Stub(tmp_path / "refusal", {}, greeting=b"REJECTED EXTERNAL\r\n")
    with pytest.raises(Unread, match="refuses"):
        manager.Manager(str(tmp_path / "refusal"), 20)
    Stub(tmp_path / "type", {"Path": b"\1z\0"})
    with manager.Manager(str(tmp_path / "type"), 20) as asked, pytest.raises(Unread, match="type 'z'"):
        asked.properties([("/unit/x", "i.Unit", "Path")])
    with pytest.raises(Unread, match="does not answer"):
        manager.Manager(str(tmp_path / "absent"), 20)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (struct.pack("<I", 2**31), "s"),
        (struct.pack("<I", 2**31), "as"),
        (b"\1\0\0\0", "t"),
        (b"", "y"),
        (struct.pack("<II", 8, 0) + bytes(8), "a()"),
        (b"", "!"),
        (b"", ""),
    ],
)
def test_an_answer_that_is_cut_off_or_of_no_type_is_unread(data: bytes, kind: str) -> None:
    with pytest.raises(Unread, match=r"cut off|of type"):
        bus.Reader(data).value(kind)


def test_values_of_every_type_are_read_and_skipped() -> None:
    data = struct.pack("<BxhHxxiII4xqQd", 1, -2, 3, -4, 5, 1, -6, 7, 0.0) + b"\1g\0" + b"\1y\0\x09"
    reader, skipping = bus.Reader(data), bus.Reader(data)
    kinds = ["y", "n", "q", "i", "u", "b", "x", "t", "d", "g", "v"]
    assert bus.parts("".join(kinds)) == tuple(kinds)
    assert bus.parts("a(sa{sv})aasy") == ("a(sa{sv})", "aas", "y")
    assert [reader.value(kind) for kind in kinds] == [1, -2, 3, -4, 5, True, -6, 7, 0, "g", 9]
    for kind in kinds:
        skipping.skip(kind)
    assert skipping.at == reader.at == len(data)


def test_properties_that_are_as_in_the_last_object_are_not_parsed_again() -> None:
    parsed: list[str] = []

    def shown(name: str, value: object) -> object:
        parsed.append(name)
        return value or None

    properties = manager.Properties(lambda name: name != "Skipped", shown)
    first = settings(Skipped=["a", "b"], Kept=2**40, Words="x", Flag=True, Off=False)
    assert properties.read(first) == {"Kept": 2**40, "Words": "x", "Flag": True}
    assert parsed == ["Kept", "Words", "Flag", "Off"]
    parsed.clear()
    longer = settings(Skipped=["a", "b", "c"], Kept=2**40, Words="xy", Flag=True, Off=False, More=["z"])
    assert properties.read(longer) == {"Kept": 2**40, "Words": "xy", "Flag": True, "More": ["z"]}
    assert parsed == ["Words", "More"]
    parsed.clear()
    assert properties.read(first) == {"Kept": 2**40, "Words": "x", "Flag": True}
    assert parsed == ["Words"]
    with pytest.raises(Unread, match="cut off"):
        properties.read(first[:-4])


def test_a_number_that_is_not_wanted_decides_on_nothing() -> None:
    asked: list[str] = []

    def wanted(name: str) -> bool:
        asked.append(name)
        return name == "Kept"

    properties = manager.Properties(wanted, lambda _, value: value)
    assert properties.read(settings(Time=1, On=True, Text="x", Kept=2)) == {"Kept": 2}
    asked.clear()
    assert properties.read(settings(Time=2, On=False, Text="xyz", Kept=3)) == {"Kept": 3}
    assert asked == ["Text", "Kept"]
    whole = settings(Kept=4, Time=1)
    assert manager.Properties(wanted, lambda _, value: value).read(whole) == {"Kept": 4}
    cut = struct.pack("<II", len(whole) - 16, 0) + whole[8:-8]  # the length says so too
    properties.read(whole)
    with pytest.raises(Unread, match="cut off"):
        properties.read(cut)


def recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, bytes]
) -> dict[tuple[str, str], object]:
    """Return the records of units that a manager with these answers has."""
    usual = {
        "Environment": variant([]),
        "UnitsLoadStartTimestamp": variant(2**60),
        "SourcePath": variant(""),
        "DropInPaths": variant([]),
        "FragmentPath": variant(""),
        "GetAll": settings(),
        "ListUnits": listing(LISTED),
    }
    stub = Stub(tmp_path / "private", {**usual, **told})
    monkeypatch.setattr(manager.Manager.__init__, "__defaults__", (str(stub.path), 20.0))
    monkeypatch.setattr(units, "_FOLDERS", ())
    records = Records()
    units.collect(records)
    return {(item["domain"], item["key"]): item["value"] for item in map(json.loads, records.sorted())}


def test_each_unit_but_devices_is_a_record_with_its_files_and_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragment = tmp_path / "x.service"
    fragment.write_text(
        "# words\n[Service]\nExecStart=/bin/x  -p\nEnvironment=PASSWORD=hunter2\nSetCredential=a:hunter2\n"
    )
    device = ("a.device", "", "loaded", "active", "plugged", "", "/unit/a", 0, "", "/")
    scope = ("session-7.scope", "", "loaded", "active", "running", "", "/unit/m", 0, "", "/")
    told = {
        "ListUnits": listing(LISTED, device, scope),
        "Environment": variant(["LANG=C", "TOKEN=hunter2"]),
        "UnitsLoadStartTimestamp": variant(int(fragment.stat().st_ctime * 1_000_000) + 5_000_000),
        "DropInPaths": variant([str(tmp_path / "gone.conf")]),
        "FragmentPath": variant(str(fragment)),
    }
    found = recorded(tmp_path, monkeypatch, told)
    assert set(found) == {
        ("unit", "x.service"),
        ("unit", "session-N.scope"),
        ("manager's environment", "LANG=C"),
        ("manager's environment", "TOKEN=(masked)"),
    }
    assert found["unit", "x.service"] == {
        "states": "loaded active",
        "files": [str(fragment), f"{tmp_path}/gone.conf"],
        "lines": [
            "[Service]",
            "ExecStart=/bin/x -p",
            "Environment=PASSWORD=(masked)",
            "SetCredential=a:(masked)",
            f"unread: {tmp_path}/gone.conf: No such file or directory",
        ],
    }
    assert isinstance(found["unit", "session-N.scope"], dict)
    assert found["unit", "session-N.scope"]["states"] == "loaded active running"


def test_a_unit_is_what_the_manager_runs_without_times_numbers_and_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("/bin/x", ["/bin/x", "--token", "hunter2"])
    told = settings(
        User="root",
        Slice="session-3.scope",
        Environment=["B=1", "PASSWORD=hunter2"],
        RestrictFileSystems=["b", "a"],
        MemoryMax=2**64 - 1,
        MemoryHigh=0,
        PrivateTmp=False,
        GuessMainPID=True,
        MainPID=7,
        ExecMainStartTimestamp=7,
        MemoryCurrent=7,
        ControlGroup="/system.slice/x",
        ExecStart=["skipped"],
        ExecMount=["skipped"],
        ExecStartEx=lambda data: commands(data, run, ("/bin/y", [])),
        ExecSearchPath=["/opt/bin"],
        Group="",
    )
    assert recorded(tmp_path, monkeypatch, {"GetAll": told})["unit", "x.service"] == {
        "User": "root",
        "Slice": "session-N.scope",
        "Environment": ["B=1", "PASSWORD=(masked)"],
        "RestrictFileSystems": ["a", "b"],
        "MemoryHigh": 0,
        "GuessMainPID": True,
        "ExecStartEx": ["/bin/x /bin/x --token (masked)", "/bin/y"],
        "ExecSearchPath": ["/opt/bin"],
        "states": "loaded active",
    }


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SetCredential", [["a", [104, 117]]], ["a"]),
        ("StandardInputData", [104, 117], "(masked)"),
        ("IPAddressAllow", [[2, [192, 0, 2, 1], 32]], ["2 192 0 2 1 32"]),
        ("SystemCallFilter", [True, ["read"]], ["True", "read"]),
        ("Nice", -5, -5),
        ("CapabilityBoundingSet", 2**64 - 2, "0xfffffffffffffffe"),
        ("GuessMainPID", True, True),
    ],
)
def test_a_property_is_words_without_the_secret_of_a_credential(
    name: str, value: object, words: object
) -> None:
    assert units.words(name, value) == words


@pytest.mark.parametrize(
    ("told", "active", "states"),
    [
        ({"Type": "oneshot"}, "active", "loaded"),
        ({"Type": "oneshot"}, "failed", "loaded failed"),
        ({"Type": "oneshot", "RemainAfterExit": True}, "active", "loaded active"),
        ({"Type": "simple"}, "active", "loaded active"),
    ],
)
def test_a_service_that_comes_and_goes_has_no_active_state(
    told: dict[str, object],
    active: str,
    states: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "x.service").touch()
    answers = {
        "ListUnits": listing((*LISTED[:3], active, *LISTED[4:])),
        "SourcePath": variant("/proc/self/mountinfo"),
        "FragmentPath": variant(str(tmp_path / "x.service")),
        "GetAll": settings(**told),
    }
    value = recorded(tmp_path, monkeypatch, answers)["unit", "x.service"]
    files = [str(tmp_path / "x.service"), "/proc/self/mountinfo"]
    assert value == {**told, "states": states, "files": files}


def test_a_file_that_changed_after_the_manager_read_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.service").write_text("[Service]\n")
    path = str(tmp_path / "x.service")
    changed = Path(path).stat().st_ctime
    assert "changed since the manager read them" not in units.written([path], changed + 1)
    assert units.written([path], changed - 1)["changed since the manager read them"] == [path]
    (tmp_path / "masked.service").symlink_to("/dev/null")
    assert units.written([f"{tmp_path}/masked.service"], 0) == {"files": [f"{tmp_path}/masked.service"]}


def test_a_manager_that_is_silent_is_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager.Manager.__init__, "__defaults__", (str(tmp_path / "absent"), 1.0))
    monkeypatch.setattr(units, "_FOLDERS", ())
    records = Records()
    units.collect(records)
    assert {(domain, key) for domain, key, _ in records.lines} == {
        ("unread", "unit "),
        ("unread", "manager's environment "),
    }


def test_files_drop_ins_and_links_of_units_are_found(tmp_path: Path) -> None:
    for name in ("wide/x.service", "etc/x.service.d/a.conf"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "etc/multi-user.target.wants").mkdir()
    (tmp_path / "etc/multi-user.target.wants/x.service").symlink_to("/wide/x.service")
    (tmp_path / "etc/y.service").symlink_to("/dev/null")
    (tmp_path / "etc/z.service.d").symlink_to(tmp_path / "etc/x.service.d")
    etc, wide = f"{tmp_path}/etc", f"{tmp_path}/wide"
    found = units.files([etc, wide])
    assert {name: sorted(places) for name, places in found.items()} == {
        "x.service": [
            f"{etc}/multi-user.target.wants/x.service -> /wide/x.service",
            f"{etc}/x.service.d/a.conf",
            f"{wide}/x.service",
        ],
        "y.service": [f"{etc}/y.service -> /dev/null"],
        "z.service.d": [f"{etc}/z.service.d -> {etc}/x.service.d"],
    }
