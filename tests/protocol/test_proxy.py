"""vhostd proxy between a front-end and a back-end: nothing is lost, added or held, and all of it is said."""

import contextlib
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

from tests.protocol.conftest import PATTERN_LEN, open_fds, pattern
from tests.support.proxy import COMMAND, Proxy
from vhostd.driver.frontend import Frontend
from vhostd.errors import DeviceGone, DeviceTimeout
from vhostd.fds import receive
from vhostd.protocol.wire import frame_bytes
from vhostd.spec.vhost_user import BackendRequest, FrontendRequest, ProtocolFeature

R = FrontendRequest
REPLY, NEED_REPLY = 5, 9


class Far:
    """A back-end that is a socket of the test's: what arrives there is what the proxy passed on."""

    def __init__(self, path):
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(16)
        self.listener.settimeout(10)

    def accept(self):
        taken, _ = self.listener.accept()
        taken.settimeout(10)
        return taken


@pytest.fixture
def far(tmp_path):
    far = Far(tmp_path / "far.sock")
    yield far
    far.listener.close()


@pytest.fixture
def proxied(far, tmp_path):
    """Start the proxy before `far` with words of the command line; return it, a front-end's socket, a back-end's."""
    with contextlib.ExitStack() as stack:

        def start(*words):
            proxy = stack.enter_context(Proxy(tmp_path / "proxy.sock", far.path, *words))
            near = stack.enter_context(connect(proxy))
            return proxy, near, stack.enter_context(far.accept())

        yield start


def connect(proxy):
    near = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    near.settimeout(10)
    near.connect(str(proxy.socket))
    return near


def exactly(sock, length):
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        assert more, f"the stream ends after {len(data)} of {length} bytes"
        data += more
    return data


def silent(sock, seconds=0.3):
    sock.settimeout(seconds)
    try:
        with pytest.raises(TimeoutError):
            sock.recv(1)
    finally:
        sock.settimeout(10)


def closed(proxy, connection=1):
    """Wait for the end of a connection; return what is said of it."""

    def found(records):
        return [r["text"] for r in records if r["event"] == "close" and r["connection"] == connection]

    return proxy.until(found, "the connection did not end")[0]


# Real sessions.


def test_a_disk_behind_it_is_the_disk(start, tmp_path):
    """Negotiation, I/O and stop through the proxy: byte-equal data, and every message of them is printed."""
    disk = start()
    with Proxy(tmp_path / "proxy.sock", disk.socket) as proxy:
        disk.socket = proxy.socket
        for run in range(2):
            with disk.session() as session:
                block = session.block()
                assert block.read(8, 65536) == pattern(4096, 65536)
                block.write(2048 + run, bytes([run + 1]) * 512)
                block.flush()
                session.stop()
            assert disk.on_disk(PATTERN_LEN + 512 * run, 512) == bytes([run + 1]) * 512
        proxy.until(lambda records: sum(r["event"] == "close" for r in records) == 2, "not over")
        assert proxy.stop() == 0
    for connection in (1, 2):
        said = proxy.messages(connection=connection)
        names = [r["request"] for r in said if r["kind"] == "request"]
        assert names[:3] == ["GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES"]
        assert {"SET_VRING_NUM", "SET_VRING_ADDR", "SET_VRING_KICK", "SET_VRING_ENABLE", "GET_VRING_BASE"} <= {*names}
        assert {r["device"] for r in said[1:]} == {"block"}
        assert not [r for r in said if r["problem"] or r["notes"]]
        assert all(r["took_us"] > 0 for r in said if r["kind"] == "reply")
        kick = next(r for r in said if r["request"] == "SET_VRING_KICK")
        assert kick["fds"] == ["eventfd"]
    summary = proxy.records()[-1]
    assert (summary["event"], summary["connections"]) == ("summary", 2)
    assert summary["requests"]["GET_FEATURES"]["replies"] == summary["requests"]["GET_FEATURES"]["count"] == 4


def test_the_back_end_may_come_back(image, tmp_path):
    """A back-end that was replaced between two front-ends, at the same path: the proxy stays."""
    from tests.support.backends import start_vhostd

    where = tmp_path / "disk.sock"
    with Proxy(tmp_path / "proxy.sock", where, "--wait", "0.2") as proxy:
        with Frontend.connect(proxy.socket) as nobody:
            assert nobody.closed_by_peer(5)
        assert closed(proxy).startswith(f"no back-end at {where}")
        for _ in range(2):
            backend = start_vhostd(image, where)
            try:
                while not where.exists():
                    time.sleep(0.02)
                with Frontend.connect(proxy.socket) as frontend:
                    assert frontend.negotiate()
                    backend.stop()
                    assert frontend.closed_by_peer(10)
            finally:
                backend.stop()
        assert proxy.process.poll() is None


def test_a_resize_is_heard_through_it(far, tmp_path):
    """ "Back-end communication": a request of the back-end and its answer cross the interposed channel, with fds."""
    with Proxy(tmp_path / "proxy.sock", far.path) as proxy, connect(proxy) as near, far.accept() as back:
        near.sendall(frame_bytes(R.SET_PROTOCOL_FEATURES, 1, struct.pack("<Q", ProtocolFeature.REPLY_ACK)))
        exactly(back, 20)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(near, [frame_bytes(R.SET_BACKEND_REQ_FD, 1, b"")], [theirs.fileno()])
            _, fds, _ = receive(back, 12, 4)
            assert len(fds) == 1
            with socket.socket(fileno=fds[0].take()) as channel:
                channel.settimeout(10)
                ours.settimeout(10)
                channel.sendall(frame_bytes(BackendRequest.CONFIG_CHANGE_MSG, NEED_REPLY, b""))
                assert exactly(ours, 12) == frame_bytes(BackendRequest.CONFIG_CHANGE_MSG, NEED_REPLY, b"")
                ours.sendall(frame_bytes(BackendRequest.CONFIG_CHANGE_MSG, REPLY, bytes(8)))
                assert exactly(channel, 20)[12:] == bytes(8)
                event = os.eventfd(3)
                area = struct.pack("<QQQ", 1, 4096, 0)
                message = frame_bytes(BackendRequest.VRING_HOST_NOTIFIER_MSG, NEED_REPLY, area)
                socket.send_fds(channel, [message], [event])
                data, fds, _ = receive(ours, 100, 4)
                assert data == message
                assert os.eventfd_read(fds[0].number) == 3
                os.close(event)
            assert ours.recv(1) == b"", "the back-end has closed the channel"
        said = proxy.said(3, channel="backend")
        assert [(r["from"], r["kind"], r["request"], r["number"]) for r in said] == [
            ("back-end", "request", "BACKEND_CONFIG_CHANGE_MSG", 1),
            ("front-end", "reply", "BACKEND_CONFIG_CHANGE_MSG", 1),
            ("back-end", "request", "BACKEND_VRING_HOST_NOTIFIER_MSG", 2),
        ]
        assert said[1]["fields"] == {"result": "ok"}
        assert said[2]["fds"] == ["eventfd"]
        silent(back)


def test_a_real_device_takes_the_interposed_channel(start, tmp_path):
    """The driver hands over a channel, and the back-end, which looks at it, says 0."""
    disk = start()
    with Proxy(tmp_path / "proxy.sock", disk.socket) as proxy, Frontend.connect(proxy.socket) as frontend:
        frontend.negotiate()
        assert frontend.channel is not None
        answer = proxy.said(1, request="SET_BACKEND_REQ_FD", kind="reply")
        assert answer[0]["fields"] == {"result": "ok"}
        assert frontend.ask_u64(R.GET_FEATURES) == frontend.offered


def test_the_order_in_which_qemu_connects(start, tmp_path):
    """A machine that is realized and never run: QEMU's connection phase, decoded, message by message."""
    disk = start(queues=2)
    with Proxy(tmp_path / "proxy.sock", disk.socket) as proxy:
        machine = subprocess.Popen(
            [
                "qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-monitor", "stdio", "-m", "64M",
                "-object", "memory-backend-memfd,id=mem,size=64M,share=on", "-machine", "q35,memory-backend=mem",
                "-accel", "tcg", "-chardev", f"socket,id=disk,path={proxy.socket}",
                "-device", "vhost-user-blk-pci,chardev=disk,num-queues=2",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            proxy.said(1, request="GET_CONFIG", kind="reply")
            machine.communicate(b"quit\n", timeout=20)
        finally:
            machine.kill()
            machine.wait()
        assert closed(proxy).startswith("the front-end closed")
    asked = [r for r in proxy.messages(kind="request") if r["request"] != "GET_MAX_MEM_SLOTS"]
    per_ring = [("SET_VRING_CALL", n) for n in (0, 1)] + [("SET_VRING_ERR", n) for n in (0, 1)]
    before = ["GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "SET_BACKEND_REQ_FD",
              "SET_OWNER", "GET_FEATURES"]  # fmt: skip
    names = [r["request"] for r in asked]
    assert names[: len(before)] == before
    rings = asked[len(before) : names.index("GET_CONFIG")]
    assert sorted((r["request"], r["fields"]["vring"]) for r in rings) == per_ring
    assert {tuple(r["fds"]) for r in rings} == {("eventfd",)}
    config = proxy.messages(request="GET_CONFIG")
    assert [r["fields"]["size"] for r in config] == [57, 57]
    assert config[1]["fields"]["config"]["capacity"] == "16MiB"
    assert config[1]["fields"]["config"]["num_queues"] == 2
    assert not [r for r in proxy.messages() if r["problem"] or r["notes"]]


# What it must not change.


def test_descriptors_cross_as_many_as_the_kernel_passes(proxied):
    """S20: 253 descriptors with one message, more than any may have; the far end gets the very same files."""
    proxy, near, back = proxied()
    memory = os.memfd_create("many")
    os.write(memory, b"here")
    socket.send_fds(near, [frame_bytes(R.SET_OWNER, 1, b"")], [memory] * 253)
    os.close(memory)
    data, fds, lost = receive(back, 100, 253)
    assert (data, len(fds), lost) == (frame_bytes(R.SET_OWNER, 1, b""), 253, False)
    assert {os.pread(fd.number, 4, 0) for fd in fds} == {b"here"}
    assert all(not os.get_inheritable(fd.number) for fd in fds)
    assert proxy.said(1)[0]["fds"] == ["memfd:many 4B"] * 253


def test_descriptors_that_it_may_not_have_end_the_connection(proxied):
    """S31: RLIMIT_NOFILE swallows what a message brought. It cannot be passed on, so it is refused, with the reason."""
    proxy, near, back = proxied()
    limit = proxy.open_fds() + 8
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (limit, limit))
    event = os.eventfd(0)
    socket.send_fds(near, [frame_bytes(R.SET_OWNER, 1, b"")], [event] * 64)
    os.close(event)
    assert near.recv(1) == b""
    assert back.recv(1) == b""
    assert "raise ulimit -n" in closed(proxy)
    with connect(proxy) as again:
        again.sendall(frame_bytes(R.SET_OWNER, 1, b""))
        assert proxy.said(1, connection=2)


def test_half_a_message_is_passed_on(proxied):
    """S6, S8: a front-end that stops in the middle looks the same from behind the proxy: in a header, in a payload."""
    proxy, near, back = proxied()
    whole = frame_bytes(R.SET_FEATURES, 1, bytes(range(8)))
    near.sendall(whole[:5])
    assert exactly(back, 5) == whole[:5]
    near.sendall(whole[5:12])
    assert exactly(back, 7) == whole[5:12]
    near.sendall(whole[12:15])
    assert exactly(back, 3) == whole[12:15]
    near.sendall(whole[15:])
    assert exactly(back, 5) == whole[15:]
    near.sendall(whole[:14])
    near.shutdown(socket.SHUT_WR)
    assert exactly(back, 14) == whole[:14]
    assert back.recv(1) == b""
    back.sendall(frame_bytes(R.GET_FEATURES, REPLY, bytes(8)))
    assert len(exactly(near, 20)) == 20
    proxy.until(lambda records: [r for r in records if r["event"] == "bytes"], "half a message is not said")
    assert [(r["event"], r["size"], r["data"]) for r in proxy.records() if r["event"] in {"message", "bytes"}][:2] == [
        ("message", 8, whole.hex()),
        ("bytes", 14, whole[:14].hex()),
    ]


def test_what_is_no_vhost_user_stream_passes_byte_by_byte(proxied):
    """S3: a length nobody can mean. Then it is bytes, with the descriptors among them; replies are messages."""
    proxy, near, back = proxied()
    junk = struct.pack("<III", 0xDEADBEEF, 0xFFFFFFFF, 0xFFFFFFFF) + os.urandom(100_000)
    got = []
    reader = threading.Thread(target=lambda: got.append(exactly(back, len(junk) + 5)))
    reader.start()
    near.sendall(junk)
    event = os.eventfd(0)
    socket.send_fds(near, [b"12345"], [event])
    os.close(event)
    reader.join(10)
    assert got == [junk + b"12345"]
    back.sendall(frame_bytes(R.GET_FEATURES, REPLY, bytes(8)))
    assert exactly(near, 20)[:4] == struct.pack("<I", R.GET_FEATURES)
    near.close()
    closed(proxy)
    said = [r for r in proxy.records() if r["event"] == "bytes"]
    assert bytes.fromhex("".join(r["data"] for r in said)) == junk + b"12345"
    assert [name for r in said for name in r["fds"]] == ["eventfd"]
    assert any("no vhost-user stream" in r["text"] for r in proxy.records() if r["event"] == "note")


def test_a_side_that_does_not_read_stops_the_other(proxied):
    """Nothing is kept but the message at hand: the sender is held up, as without the proxy, and memory stays."""
    proxy, near, back = proxied("--quiet")
    near.setblocking(False)
    frame = frame_bytes(R.SET_CONFIG, 1, bytes(2048))
    sent = 0
    before = rss(proxy.pid)
    deadline = time.monotonic() + 20
    quiet = 0
    while quiet < 20 and time.monotonic() < deadline:
        try:
            sent += near.send(frame[sent % len(frame) :])
            quiet = 0
        except BlockingIOError:
            quiet += 1
            time.sleep(0.02)
    assert quiet == 20, f"{sent} bytes were taken and nobody reads"
    assert sent < 4 << 20
    assert rss(proxy.pid) - before < 8 << 20
    got = exactly(back, sent)
    assert got == (frame * (sent // len(frame) + 1))[:sent]
    back.sendall(b"x" * 12)
    near.settimeout(10)
    assert exactly(near, 12) == b"x" * 12


def rss(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_descriptors_do_not_pile_up(far, tmp_path):
    """200 connections, each with memory, eventfds and a channel; then the proxy has as many as before the first."""
    with Proxy(tmp_path / "proxy.sock", far.path) as proxy:
        counts = []
        for turn in range(200):
            with connect(proxy) as near, far.accept() as back:
                ours, theirs = socket.socketpair()
                event, memory = os.eventfd(0), os.memfd_create("ram")
                socket.send_fds(near, [frame_bytes(R.SET_BACKEND_REQ_FD, 1, b"")], [theirs.fileno()])
                socket.send_fds(near, [frame_bytes(R.SET_MEM_TABLE, 1, bytes(72))], [memory, event])
                socket.send_fds(near, [frame_bytes(R.SET_VRING_KICK, 1, b"half"[:3])[:14]], [event])
                for number in (event, memory):
                    os.close(number)
                theirs.close()
                ours.close()
                received = 0
                while received < 12 + 84 + 14:
                    data, fds, _ = receive(back, 4096, 16)
                    received += len(data)
                    for fd in fds:
                        fd.close()
            if turn in {0, 199}:
                closed(proxy, turn + 1)
                counts.append(settled(proxy))
        assert counts[0] == counts[1], os.listdir(f"/proc/{proxy.pid}/fd")


def settled(proxy):
    """How many descriptors it has once what it closes in the background is closed."""
    seen = [-1, open_fds(proxy.pid)]
    while seen[-1] != seen[-2]:
        time.sleep(0.3)
        seen.append(open_fds(proxy.pid))
    return seen[-1]


def test_a_channel_that_is_none_is_passed_as_it_is(proxied):
    """S32, S120: SET_BACKEND_REQ_FD with what is no socket, and with the connection's own end.

    The first is handed on; for the second the back-end gets what it would get without us, the other end of its own
    connection, and the front-end's end is held by nobody.
    """
    proxy, near, back = proxied()
    event = os.eventfd(5)
    frame = frame_bytes(R.SET_BACKEND_REQ_FD, 1, b"")
    socket.send_fds(near, [frame], [event])
    _, fds, _ = receive(back, 12, 4)
    assert os.eventfd_read(fds[0].number) == 5
    os.close(event)
    socket.send_fds(near, [frame], [near.fileno()])
    _, fds, _ = receive(back, 12, 4)
    with socket.socket(fileno=fds[0].take()) as own:
        assert own.getpeername() == back.getsockname()
    notes = [r["notes"] for r in proxy.said(2)]
    assert notes == [["not looked into: the descriptor is no socket"],
                     ["the descriptor is the connection itself: passed on as ours to the back-end"]]  # fmt: skip
    near.close()
    assert closed(proxy) == "the front-end closed"


# Faults.


def test_a_dropped_request_does_not_arrive(proxied):
    proxy, near, back = proxied("--fault", "drop SET_OWNER", "--fault", "drop 3")
    near.sendall(frame_bytes(R.SET_OWNER, 1, b"") + frame_bytes(R.GET_FEATURES, 1, b""))
    near.sendall(frame_bytes(R.SET_FEATURES, 1, bytes(8)) + frame_bytes(R.GET_STATUS, 1, b""))
    assert exactly(back, 24) == frame_bytes(R.GET_FEATURES, 1, b"") + frame_bytes(R.GET_STATUS, 1, b"")
    silent(back)
    faults = [(r["number"], r["fault"]) for r in proxy.messages()]
    assert faults == [(1, "dropped by 'drop SET_OWNER'"), (2, None), (3, "dropped by 'drop 3'"), (4, None)]


def test_a_dropped_reply_leaves_the_front_end_waiting(start, tmp_path):
    """A real device behind it: it has answered, and nobody hears."""
    disk = start()
    with Proxy(tmp_path / "proxy.sock", disk.socket, "--fault", "drop reply 1 once") as proxy:
        with Frontend.connect(proxy.socket, timeout=0.5) as frontend, pytest.raises(DeviceTimeout):
            frontend.negotiate()
        with Frontend.connect(proxy.socket) as frontend:
            assert frontend.negotiate()


def test_a_delay_holds_up_what_comes_behind_it(proxied):
    """Order stays; the other direction does not wait."""
    _, near, back = proxied("--fault", "delay GET_FEATURES 400ms")
    began = time.monotonic()
    near.sendall(frame_bytes(R.GET_FEATURES, 1, b"") + frame_bytes(R.SET_FEATURES, 1, bytes(8)))
    back.sendall(frame_bytes(R.GET_STATUS, REPLY, bytes(8)))
    exactly(near, 20)
    silent(back, 0.1)
    assert exactly(back, 32)[:4] == struct.pack("<I", R.GET_FEATURES)
    assert time.monotonic() - began >= 0.4


def test_a_disconnect_ends_both_ends_before_the_message(proxied, far):
    """`disconnect at 2 once`: the second request does not arrive; the next connection is left alone."""
    proxy, near, back = proxied("--fault", "disconnect at 2 once")
    near.sendall(frame_bytes(R.GET_FEATURES, 1, b"") + frame_bytes(R.SET_OWNER, 1, b""))
    assert exactly(back, 12) == frame_bytes(R.GET_FEATURES, 1, b"")
    assert back.recv(1) == b""
    with contextlib.suppress(ConnectionResetError):
        assert near.recv(1) == b""
    assert closed(proxy).startswith("disconnected by 'disconnect at 2 once'")
    with connect(proxy) as again, far.accept() as next_back:
        again.sendall(frame_bytes(R.GET_FEATURES, 1, b"") + frame_bytes(R.SET_OWNER, 1, b""))
        assert len(exactly(next_back, 24)) == 24


@pytest.mark.parametrize(
    ("rule", "arrives"), [("drop backend CONFIG_CHANGE_MSG 1", True), ("disconnect at backend 1", False)]
)
def test_faults_on_the_back_end_channel(proxied, rule, arrives):
    """`backend` is about the channel: what is dropped there leaves the rest alone, a disconnect ends everything."""
    proxy, near, back = proxied("--fault", rule)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            socket.send_fds(near, [frame_bytes(R.SET_BACKEND_REQ_FD, 1, b"")], [theirs.fileno()])
        _, fds, _ = receive(back, 12, 4)
        with socket.socket(fileno=fds[0].take()) as channel:
            ours.settimeout(10)
            first = frame_bytes(BackendRequest.CONFIG_CHANGE_MSG, 1, b"")
            second = frame_bytes(BackendRequest.SHARED_OBJECT_ADD, 1, bytes(16))
            channel.sendall(first + second)
            if arrives:
                assert exactly(ours, len(second)) == second
                near.sendall(frame_bytes(R.SET_OWNER, 1, b""))
                assert len(exactly(back, 12)) == 12
                assert proxy.said(1, channel="backend")[0]["fault"] == f"dropped by '{rule}'"
            else:
                assert ours.recv(1) == b""
                assert near.recv(1) == b""
                assert closed(proxy).startswith("disconnected by")


def test_a_real_session_with_faults_in_it(start, tmp_path):
    """A front-end that is cut off at its kick connects anew, and finds its disk."""
    disk = start()
    words = ["--fault", "delay reply SET_VRING_NUM 50ms", "--fault", "disconnect at SET_VRING_KICK once"]
    with Proxy(tmp_path / "proxy.sock", disk.socket, *words):
        disk.socket = tmp_path / "proxy.sock"
        with pytest.raises(DeviceGone), disk.session():
            pass
        with disk.session() as session:
            assert session.block().read(0, 4096) == pattern(0, 4096)
            session.stop()


# The command.


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["--fault", "drop NOTHING"], 6, "has no request 'NOTHING'"),
        (["--pcap", "/nowhere/file"], 6, "--pcap /nowhere/file: No such file"),
        (["--device", "crypto"], 2, "invalid choice"),
        (["--wait", "nan"], 2, "nan is not a time from 0 to 3600 seconds"),
        (["--socket-group", "no-such-group"], 6, "no group 'no-such-group'"),
        ([], 6, "/nowhere/p.sock: cannot be a socket"),
    ],
)
def test_words_that_cannot_be_are_refused_in_a_line(words, code, complaint):
    run = subprocess.run([*COMMAND, "/nowhere/p.sock", "/nowhere/b.sock", *words], capture_output=True, text=True)
    assert run.returncode == code, run.stderr
    assert complaint in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_lines_for_people_and_the_summary(far, tmp_path):
    """What stands on a terminal; SIGINT ends it with the summary, and the socket is gone."""
    where = tmp_path / "p.sock"
    process = subprocess.Popen(
        [*COMMAND, str(where), str(far.path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        while not where.exists():
            time.sleep(0.02)
        with socket.socket(socket.AF_UNIX) as near:
            near.connect(str(where))
            with far.accept() as back:
                near.sendall(frame_bytes(R.GET_PROTOCOL_FEATURES, 1, b""))
                exactly(back, 12)
                back.sendall(frame_bytes(R.GET_PROTOCOL_FEATURES, REPLY, struct.pack("<Q", 0x801)))
                exactly(near, 20)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    lines = out.splitlines()
    assert "#1 -> GET_PROTOCOL_FEATURES" in lines[1]
    assert lines[2].endswith("us protocol_features=MQ|HOST_NOTIFIER") or " ms protocol_features" in lines[2]
    assert "\x1b" not in out
    assert "1 connections, 2 messages, 32 bytes, 0 descriptors" in out
    assert not where.exists()


def test_a_reader_that_leaves_ends_it(far, tmp_path):
    """`vhostd proxy ... | head`: no traceback."""
    where = tmp_path / "p.sock"
    process = subprocess.Popen([*COMMAND, str(where), str(far.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while not where.exists():
            time.sleep(0.02)
        process.stdout.close()
        with socket.socket(socket.AF_UNIX) as near:
            near.connect(str(where))
            assert process.wait(10) == 1
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
