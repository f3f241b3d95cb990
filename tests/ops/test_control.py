"""The control socket, driven by qemu.qmp, by our own clients, and by clients that misbehave."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError, QMPClient

from vhostd.control import commands, server
from vhostd.control import link as link_module
from vhostd.control.client import ControlClient
from vhostd.control.link import ControlLink
from vhostd.control.server import ControlServer
from vhostd.errors import ControlError


class Host:
    """Two devices that never change."""

    def __init__(self) -> None:
        self.stopped = False

    async def devices(self) -> list[dict]:
        return [{"name": "disk0", "state": "running"}, {"name": "net0", "state": "listening"}]

    async def stats(self) -> list[dict]:
        return [{"name": "disk0", "reads": 7}, {"name": "net0", "frames": 1}]

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control"


@pytest.fixture
async def control(host: Host, path: Path) -> AsyncIterator[ControlServer]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    made = ControlServer(host)
    await made.listen(listener)
    yield made
    await made.close()


async def greet(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    assert "QMP" in json.loads(await reader.readline())
    return reader, writer


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes) -> dict:
    writer.write(raw)
    return json.loads(await reader.readline())


async def test_qemus_own_client_works_on_it(control: ControlServer, host: Host, path: Path) -> None:
    client = QMPClient("test")
    await client.connect(str(path))
    assert client.greeting is not None
    assert client.greeting.QMP.version["qemu"]["major"] == 0
    assert [d["name"] for d in await client.execute("query-devices")] == ["disk0", "net0"]
    assert await client.execute("query-stats", {"device": "disk0"}) == [{"name": "disk0", "reads": 7}]
    assert {c["name"] for c in await client.execute("query-commands")} == set(commands.COMMANDS)
    with pytest.raises(ExecuteError) as caught:
        await client.execute("query-stats", {"device": "none"})
    assert caught.value.error.error.class_ == "DeviceNotFound"
    with pytest.raises(ExecuteError) as caught:
        await client.execute("block-export-add")
    assert caught.value.error.error.class_ == "CommandNotFound"
    with client.listener(["RING_BROKEN"]) as listener:
        control.emit("RING_STARTED", {"device": "disk0", "ring": 0})
        control.emit("RING_BROKEN", {"device": "disk0", "ring": 1})
        event = await listener.get()
    assert event["data"] == {"device": "disk0", "ring": 1}
    assert event["timestamp"]["microseconds"] < 1_000_000
    await client.execute("quit")
    assert host.stopped
    await client.disconnect()


async def test_nothing_is_answered_before_negotiation_and_no_event_sent(control: ControlServer, path: Path) -> None:
    reader, writer = await greet(path)
    control.emit("RING_STARTED", {})
    answer = await ask(reader, writer, b'{"execute":"query-devices"}')
    assert answer["error"]["class"] == "CommandNotFound"
    assert (await ask(reader, writer, b'{"execute":"qmp_capabilities"}'))["return"] == {}
    assert "error" in await ask(reader, writer, b'{"execute":"qmp_capabilities"}')
    writer.close()


@pytest.mark.parametrize(
    "raw",
    [
        b'{"execute":1}',
        b'{"arguments":{}}',
        b'{"execute":"query-stats","x":1}',
        b'{"execute":"query-stats","arguments":[]}',
        b'{"execute":"query-stats","arguments":{"device":1}}',
        b'{"execute":"query-stats","arguments":{"devices":"a"}}',
        b'{"execute":"quit","arguments":{"now":true}}',
        b'{"execute":"query-stats",}',
        b'{"\xff":1}',
        b"hello",
    ],
)
async def test_a_bad_command_is_refused_and_the_client_stays(
    control: ControlServer, host: Host, path: Path, raw: bytes
) -> None:
    reader, writer = await greet(path)
    await ask(reader, writer, b'{"execute":"qmp_capabilities"}')
    assert (await ask(reader, writer, raw))["error"]["class"] == "GenericError"
    answer = await ask(reader, writer, b'{"execute":"query-version","id":[1]}')
    assert answer["id"] == [1]
    assert not host.stopped
    writer.close()


async def test_a_bug_in_a_command_is_an_error_reply(
    control: ControlServer, host: Host, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> list[dict]:
        raise ZeroDivisionError

    monkeypatch.setattr(host, "devices", fail)
    reader, writer = await greet(path)
    await ask(reader, writer, b'{"execute":"qmp_capabilities"}')
    assert "internal error" in (await ask(reader, writer, b'{"execute":"query-devices","id":1}'))["error"]["desc"]
    assert "return" in await ask(reader, writer, b'{"execute":"query-stats"}')
    writer.close()


async def test_a_command_without_end_is_bounded(control: ControlServer, path: Path) -> None:
    reader, writer = await greet(path)
    writer.write(b'{"execute":"' + b"x" * server.COMMAND_LIMIT)
    assert "at most" in json.loads(await reader.readline())["error"]["desc"]
    writer.close()


async def test_clients_are_bounded(control: ControlServer, path: Path) -> None:
    """The one too many is let go at once, and the others are still served."""
    held = [await greet(path) for _ in range(server.CLIENTS_LIMIT)]
    reader, writer = await asyncio.open_unix_connection(str(path))
    assert await reader.read() == b""
    writer.close()
    assert "return" in await ask(*held[0], b'{"execute":"qmp_capabilities"}')
    for _, held_writer in held:
        held_writer.close()


async def test_a_client_that_does_not_read_is_dropped(
    control: ControlServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "UNREAD_LIMIT", 100_000)
    deaf = socket.socket(socket.AF_UNIX)
    deaf.connect(str(path))
    deaf.sendall(b'{"execute":"qmp_capabilities"}')
    reader, writer = await greet(path)
    await ask(reader, writer, b'{"execute":"qmp_capabilities"}')
    for number in range(20):
        control.emit("RING_STARTED", {"padding": "x" * 50_000})
        assert json.loads(await reader.readline())["event"] == "RING_STARTED", number
    deaf.settimeout(5)
    while deaf.recv(1 << 20):
        pass  # what the kernel holds, then the end
    deaf.close()
    assert "return" in await ask(reader, writer, b'{"execute":"query-version"}')
    writer.close()


async def test_a_stranger_is_not_served(control: ControlServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither root nor our own user: hung up upon, whatever the socket's mode is (HOSTILE S164)."""
    monkeypatch.setattr(server.struct, "unpack", lambda *_: (os.getpid(), 12345, 12345))
    reader, writer = await asyncio.open_unix_connection(str(path))
    assert await reader.read() == b""
    writer.close()


async def test_the_blocking_client(control: ControlServer, path: Path) -> None:
    def converse() -> list[dict]:
        with ControlClient(path) as client:
            with pytest.raises(ControlError, match="no device 'x'") as caught:
                client.execute("query-stats", device="x")
            assert caught.value.qmp_class == "DeviceNotFound"
            return client.execute("query-devices", device="net0")

    assert await asyncio.to_thread(converse) == [{"name": "net0", "state": "listening"}]


def test_the_blocking_client_without_a_daemon(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ControlClient(path)


async def test_a_link_over_a_socket_pair(host: Host) -> None:
    """How the supervisor asks its device processes: answers find their caller, events come, a loss is told."""
    ours, theirs = socket.socketpair()
    control = ControlServer(host)
    await control.attach(theirs)
    events: list[tuple[str, dict]] = []
    heard = asyncio.Event()

    def hear(name: str, data: dict) -> None:
        events.append((name, data))
        heard.set()

    link = ControlLink(hear)
    await link.open(ours)
    devices, stats = await asyncio.gather(link.execute("query-devices"), link.execute("query-stats"))
    assert (devices[0]["name"], stats[0]["reads"]) == ("disk0", 7)
    control.emit("RING_BROKEN", {"ring": 3})
    await heard.wait()
    assert events == [("RING_BROKEN", {"ring": 3})]
    with pytest.raises(ControlError, match="not been found"):
        await link.execute("nonsense")
    await control.close()
    with pytest.raises(ControlError, match=r"went|does not answer"):
        await link.execute("query-devices")
    await link.close()


async def test_a_link_whose_other_end_goes_before_it_greets() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(EOFError):
        await ControlLink(lambda *_: None).open(ours)


@pytest.mark.parametrize(
    "said", [b"junk\r\n", b"[]\r\n", b'{"error":1}\r\n', b'{"event":1}\r\n', b"{" + b"x" * 100_000]
)
async def test_a_device_process_that_talks_nonsense_is_hung_up_on(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest may own it: nothing it says may do more than end its own conversation."""
    monkeypatch.setattr(link_module, "LINE_LIMIT", 50_000)
    ours, theirs = socket.socketpair()
    theirs.sendall(b'{"QMP":{}}\r\n')
    link = ControlLink(lambda *_: None)
    opening = asyncio.ensure_future(link.open(ours))
    loop = asyncio.get_running_loop()
    theirs.setblocking(False)
    asked = json.loads(await loop.sock_recv(theirs, 1000))
    await loop.sock_sendall(theirs, json.dumps({"return": {}, "id": asked["id"]}).encode() + b"\r\n")
    await opening
    asking = asyncio.ensure_future(link.execute("query-devices"))
    await loop.sock_sendall(theirs, said)
    with pytest.raises(ControlError, match="went"):
        await asking
    await link.close()
    theirs.close()
