"""S20 to S39: descriptors, too many, too few, of the wrong kind, replaced under load."""

import contextlib
import os
import resource
import socket
import stat
import struct
import threading
import time

import pytest

from tests.hostile.attack import (
    MIB,
    NO_SLOTS,
    OWN_REPLY,
    alive,
    attempt,
    closed,
    frame,
    guest,
    single,
    state,
    table,
    u64,
)  # fmt: skip
from tests.hostile.fds import KINDS, kind
from tests.hostile.fuse import fuse_file, hang, resume
from tests.hostile.test_socket_frames import LENGTHS
from vhostd.driver.hotloop import block_load
from vhostd.errors import DeviceGone
from vhostd.spec.blk import Request
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, VERSION, FrontendRequest, ProtocolFeature

R = FrontendRequest
TAKES_FDS = {R.SET_MEM_TABLE, R.SET_LOG_BASE, R.SET_LOG_FD, R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR,
             R.SET_BACKEND_REQ_FD, R.ADD_MEM_REG, R.REM_MEM_REG, R.SET_INFLIGHT_FD, R.GPU_SET_SOCKET,
             R.SET_DEVICE_STATE_FD}  # fmt: skip
EVENTFDS = ("eventfd", "eventfd-semaphore", "eventfd-full", "eventfd-full-blocking")
NO_EVENTFD = [name for name in KINDS if name not in EVENTFDS]


@contextlib.contextmanager
def many(count):
    """So many descriptors to send."""
    with kind("file") as number:
        yield [number] * count


def refused(bad, request, payload, fds):
    """Refused when asked and then closed when not; the rings go on in between."""
    assert bad.attempt(request, payload, fds) == "refused"
    assert bad.reads()
    assert bad.attempt(request, payload, fds, ack=False) == "closed"


@pytest.mark.parametrize("count", [1, 2, 8, 9, 16, 33, 64], ids="S20-{}".format)
@pytest.mark.parametrize("request_", [R.SET_OWNER, R.SET_VRING_NUM, R.SET_CONFIG], ids=lambda r: r.name)
def test_descriptors_on_a_message_that_takes_none(target, request_, count):
    """S20 to S23, S33: refused, and none is left open."""
    with guest(target) as bad, many(count) as fds:
        refused(bad, request_, bytes(LENGTHS[request_]), fds)


@pytest.mark.parametrize("request_", sorted(set(R) - TAKES_FDS), ids=lambda r: f"S33-{r.name}")
def test_four_descriptors_twenty_times(target, request_):
    """S33, S34: on each message that takes none."""
    with many(4) as fds, guest(target) as bad:
        for _ in range(20):
            try:
                outcome = attempt(bad.frontend, request_, bytes(LENGTHS[request_]), fds)
            except DeviceGone:
                break
            if outcome == "closed":
                break
            assert outcome == "refused"
            assert request_ is R.GET_CONFIG or request_ not in OWN_REPLY
        else:
            assert bad.reads()


@pytest.mark.parametrize("count", [65, 128, 253], ids="S30-{}".format)
def test_more_descriptors_than_there_is_room_for(target, count):
    """S23, S30: MSG_CTRUNC closes the connection, whatever the message."""
    with guest(target) as bad, many(count) as fds:
        assert bad.attempt(R.SET_OWNER, b"", fds) == "closed"


@pytest.mark.parametrize(
    ("regions", "count"), [(1, 0), (1, 2), (1, 8), (2, 1), (2, 3), (8, 7), (8, 9), (3, 0)], ids=str
)
def test_a_table_with_another_number_of_descriptors(target, regions, count):
    """S24 to S29: n - 1, n + 1, none."""
    with guest(target, protocol=NO_SLOTS) as bad, many(count) as fds:
        places = [(n << 32, MIB, n << 32, 0) for n in range(regions)]
        refused(bad, R.SET_MEM_TABLE, table(*places), fds)


@pytest.mark.parametrize("request_", [R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR], ids=lambda r: r.name)
@pytest.mark.parametrize("count", [0, 2, 9], ids="S25-{}".format)
def test_a_ring_descriptor_that_is_none_or_several(target, request_, count):
    """S25, S36: no descriptor, and bit 8 does not say so; or more than one."""
    with guest(target) as bad, many(count) as fds:
        refused(bad, request_, u64(0), fds)


@pytest.mark.parametrize("request_", [R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR], ids=lambda r: r.name)
def test_bit_8_and_a_descriptor(target, request_):
    """S36: they contradict each other."""
    with guest(target) as bad, kind("eventfd") as number:
        refused(bad, request_, u64(0x100), [number])


def test_a_kick_without_a_descriptor(target):
    """S36: polling is not done, and so not promised."""
    with guest(target, "memory") as bad:
        bad.frontend.set_num(0, 64)
        bad.frontend.set_addr(0, bad.queue)
        assert bad.attempt(R.SET_VRING_KICK, u64(0x100)) == "refused"
        bad.start_ring()
        assert bad.reads()


@pytest.mark.parametrize("bits", [0x200, 0x8000000000000000, 0xFFFFFFFFFFFFFE00], ids="S36-{:#x}".format)
@pytest.mark.parametrize("request_", [R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR], ids=lambda r: r.name)
def test_unknown_bits_beside_the_index(target, request_, bits):
    """S36: bits 9 to 63 are reserved."""
    with guest(target) as bad, kind("eventfd") as number:
        refused(bad, request_, u64(bits), [number])


@pytest.mark.parametrize("count", [0, 2], ids="S26-{}".format)
def test_a_region_with_another_number_of_descriptors(target, count):
    """S26: ADD_MEM_REG has exactly one."""
    with guest(target) as bad, many(count) as fds:
        refused(bad, R.ADD_MEM_REG, single(1 << 40, MIB, 1 << 40), fds)


@pytest.mark.parametrize("count", [0, 2, 8], ids="S27-{}".format)
def test_a_back_channel_with_another_number_of_descriptors(target, count):
    """S27: SET_BACKEND_REQ_FD has exactly one."""
    with guest(target) as bad, many(count) as fds:
        refused(bad, R.SET_BACKEND_REQ_FD, b"", fds)


def leave(target, bad, left):
    """Let the daemon open so many descriptors more."""
    assert alive(bad.frontend)  # so that those of the last message are closed
    used = {int(fd) for fd in os.listdir(f"/proc/{target.pid}/fd")}
    limit = next(n for n in range(4096) if n - len([fd for fd in used if fd < n]) == left and n > 3)
    hard = resource.prlimit(target.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (limit, hard))


@pytest.mark.parametrize("left", [0, 1, 3], ids="S31-{}-left".format)
def test_the_limit_of_descriptors_is_reached_while_receiving(target, left):
    """S31: what is not received whole is not done; when there are descriptors again all is well."""
    before = resource.prlimit(target.pid, resource.RLIMIT_NOFILE)
    with guest(target, "negotiated", protocol=NO_SLOTS) as bad, many(8) as fds:
        leave(target, bad, left)
        try:
            assert bad.attempt(R.SET_MEM_TABLE, table(*((n << 32, MIB, n << 32, 0) for n in range(8))), fds) == "closed"
        finally:
            resource.prlimit(target.pid, resource.RLIMIT_NOFILE, before)


def test_no_descriptors_left_for_a_ring(target):
    """S31: the eventfd cannot even be looked at: refused, and asked again later it is taken."""
    before = resource.prlimit(target.pid, resource.RLIMIT_NOFILE)
    with guest(target, "memory") as bad:
        leave(target, bad, 1)
        try:
            assert bad.attempt(R.SET_VRING_CALL, u64(0), [bad.queue.call_fd.number]) == "refused"
        finally:
            resource.prlimit(target.pid, resource.RLIMIT_NOFILE, before)
        bad.start()
        assert bad.reads()


def test_one_descriptor_eight_times(target):
    """S32: a table of eight regions of one file is legal, and every copy is closed."""
    with guest(target, protocol=NO_SLOTS) as odd:
        region = odd.arena.regions[0]
        places = [(region.gpa + n * MIB, MIB, region.front_uva + n * MIB, n * MIB) for n in range(8)]
        assert odd.attempt(R.SET_MEM_TABLE, table(*places), [odd.arena.fd(region)] * 8) == "done"
        assert odd.reads()


def test_the_connection_itself_as_a_descriptor(target):
    """S32: our own peer's end, as memory, as eventfd, and as back channel: no loop keeps it alive."""
    with guest(target) as odd:
        own = odd.frontend.fileno()
        for request, payload in ((R.SET_VRING_CALL, u64(0)), (R.ADD_MEM_REG, single(1 << 40, MIB, 1 << 40))):
            assert odd.attempt(request, payload, [own]) == "refused"
        assert odd.attempt(R.SET_BACKEND_REQ_FD, b"", [own]) == "refused"
        assert odd.reads()


@pytest.mark.parametrize("when", ["before", "after"], ids="S120-{}".format)
def test_the_connection_itself_in_the_queue_of_the_back_channel(target, when):
    """S32, S120: a descriptor in a queue that nobody reads keeps what it is of open: nothing can be put there."""
    with guest(target) as odd:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if when == "before":
                socket.send_fds(ours, [b"x"], [odd.frontend.fileno()])
            assert odd.attempt(R.SET_BACKEND_REQ_FD, b"", [theirs.fileno()]) == "done"
            if when == "after":
                with contextlib.suppress(BrokenPipeError):
                    socket.send_fds(ours, [b"x"], [odd.frontend.fileno()])
        assert odd.reads()


def test_descriptors_in_every_piece_of_a_message(target):
    """S34: one with each byte of a header; the message then has more than it takes."""
    with guest(target) as bad, kind("file") as number:
        for byte in frame(R.SET_OWNER):
            bad.frontend.send_bytes(bytes([byte]), [number])
            time.sleep(0.001)
        assert closed(bad.frontend)


def test_descriptors_of_half_a_message(target):
    """S34: the front-end goes before the message is whole."""
    with guest(target) as bad, many(8) as fds:
        bad.frontend.send_bytes(frame(R.SET_MEM_TABLE, bytes(100), size=264), fds)
        bad.frontend.send_bytes(bytes(20), fds)


@pytest.mark.parametrize("name", NO_EVENTFD, ids="S37-{}".format)
def test_a_kick_that_is_no_eventfd(target, name):
    """S37: refused on a stopped ring and on a running one; nothing waits on it, nothing spins."""
    with guest(target, queues=2) as bad, kind(name) as number:
        assert bad.frontend.get_base(1) == 0
        assert bad.attempt(R.SET_VRING_KICK, u64(1), [number]) == "refused"
        assert bad.attempt(R.SET_VRING_KICK, u64(0), [number]) == "refused"
        assert bad.reads()
        assert target.idle_cpu_ns() < 10_000_000
        assert bad.attempt(R.SET_VRING_KICK, u64(0), [number], ack=False) == "closed"


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        pytest.param(request, name, id=f"{request.name}-S38-{name}")
        for request in (R.SET_VRING_CALL, R.SET_VRING_ERR)
        for name in NO_EVENTFD
        if (request, name) != (R.SET_VRING_CALL, "pipe-write-end")
    ],
)
def test_a_call_that_is_no_eventfd(target, request_, name):
    """S38: eight bytes of ours go into eventfds, and to a pipe that is there to be called by."""
    with guest(target) as bad, kind(name) as number:
        refused(bad, request_, u64(0), [number])


@pytest.mark.parametrize("which", ["empty", "full", "without-reader"], ids="S38-{}".format)
def test_a_pipe_to_be_called_by(target, which):
    """S38, R77: as User-Mode Linux has it. Whatever the pipe is like, no request waits for it."""
    with guest(target) as odd, contextlib.ExitStack() as stack:
        read, write = os.pipe2(os.O_NONBLOCK)
        reader = stack.enter_context(os.fdopen(read, "rb", buffering=0))
        stack.callback(os.close, write)
        if which == "full":
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(write, bytes(4096))
        elif which == "without-reader":
            reader.close()
        assert odd.attempt(R.SET_VRING_CALL, u64(0), [write]) == "done"
        driver = odd.block()
        driver.poll = True
        for _ in range(10):
            odd.queue.used_event = odd.queue.used_idx  # poll mode would ask for no call
            assert driver.complete(driver.submit(Request.IN, 0, read_len=512)).ok
        if which == "empty":
            called = reader.read(65536)
            assert called == (1).to_bytes(8, "little") * (len(called) // 8) != b""
        assert target.idle_cpu_ns() < 10_000_000


def test_a_pipe_that_blocks(target):
    """S38, R77: a worker that waits in a full pipe is fetched out of it, as out of a full eventfd."""
    with guest(target, queues=4) as odd:
        read, write = os.pipe2(os.O_NONBLOCK)
        try:
            assert odd.attempt(R.SET_VRING_CALL, u64(0), [write]) == "done"
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(write, bytes(4096))
            os.set_blocking(write, True)
            odd.queue.used_event = odd.queue.used_idx
            odd.block().submit(Request.IN, 0, read_len=512)
            time.sleep(0.05)
            assert odd.attempt(R.SET_VRING_ENABLE, state(0, 1)) == "done"
        finally:
            os.close(read)
            os.close(write)


@pytest.mark.parametrize("name", EVENTFDS, ids="S38-{}".format)
@pytest.mark.parametrize("request_", [R.SET_VRING_CALL, R.SET_VRING_ERR, R.SET_VRING_KICK], ids=lambda r: r.name)
def test_eventfds_of_every_mode(target, request_, name):
    """S37, S38, R72, R77: full, blocking, counting one by one: taken, and no request waits for them."""
    with guest(target) as odd, kind(name) as number:
        assert odd.attempt(request_, u64(0), [number]) == "done"
        driver = odd.block()
        driver.poll = True
        for _ in range(10):
            pending = driver.submit(0, 0, read_len=512)
            with contextlib.suppress(BlockingIOError):
                if request_ is R.SET_VRING_KICK:
                    os.eventfd_write(number, 1)
            assert driver.complete(pending).ok
        assert target.idle_cpu_ns() < 10_000_000


@pytest.mark.parametrize("request_", [R.SET_VRING_CALL, R.SET_VRING_ERR], ids=lambda r: r.name)
def test_an_eventfd_that_is_made_to_wait_afterwards(target, request_):
    """R77: O_NONBLOCK is the open file's, and the front-end takes it away once the descriptor has been accepted."""
    with guest(target) as odd, kind("eventfd-full") as number:
        assert odd.attempt(request_, u64(0), [number]) == "done"
        os.set_blocking(number, True)
        time.sleep(0.005)  # within a millisecond after a call it may wait, until it is fetched out
        driver = odd.block()
        driver.poll = True
        for _ in range(10):
            odd.queue.used_event = odd.queue.used_idx
            assert driver.complete(driver.submit(Request.IN, 0, read_len=512)).ok
        if request_ is R.SET_VRING_ERR:
            odd.queue.raw_push(odd.queue.size)  # no such descriptor: the ring breaks and says so
            odd.queue.kick(force=True)
        assert odd.attempt(R.SET_VRING_ENABLE, state(0, 0)) == "done"


def test_an_eventfd_whose_mode_never_rests(target):
    """R77: a worker that is made to wait between its look at the mode and its write is fetched out of it."""
    over = threading.Event()

    def flip(number):
        while not over.is_set():
            os.set_blocking(number, True)

    with guest(target, size=64) as odd, kind("eventfd-full") as number:
        assert odd.attempt(R.SET_VRING_CALL, u64(0), [number]) == "done"
        flipper = threading.Thread(target=flip, args=(number,))
        flipper.start()
        try:
            driver = odd.block()
            for _ in range(20):
                odd.queue.used_event = odd.queue.used_idx
                driver.submit(Request.IN, 0, read_len=512)
                time.sleep(0.001)
            assert odd.attempt(R.SET_VRING_ENABLE, state(0, 0)) == "done"
        finally:
            over.set()
            flipper.join()


@pytest.mark.parametrize("name", [n for n in KINDS if n not in {"file", "memfd"}], ids="S39-{}".format)
@pytest.mark.parametrize("slots", [True, False], ids=["slot", "table"])
def test_memory_that_is_no_memory_file(target, slots, name):
    """S39: what cannot be mapped for reading and writing, or has no length, is refused; the map stays as it was."""
    with guest(target) as bad, kind(name) as number:
        if slots:
            refused(bad, R.ADD_MEM_REG, single(1 << 40, MIB, 1 << 40), [number])
        else:
            refused(bad, R.SET_MEM_TABLE, table((1 << 40, MIB, 1 << 40, 0)), [number])


def test_memory_on_a_block_device(target, tmp_path):
    """S39: a loop device is no memory file."""
    with guest(target) as bad:
        node = tmp_path / "loop"
        os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(7, 7))
        number = os.open(node, os.O_RDWR)
        try:
            refused(bad, R.ADD_MEM_REG, single(1 << 40, MIB, 1 << 40), [number])
        finally:
            os.close(number)


@pytest.mark.parametrize("which", ["call", "err", "kick"], ids="S35-{}".format)
def test_a_ring_descriptor_replaced_under_load(target, which):
    """S35: the old one is closed when the worker has let go of it, and is never written again after the answer."""
    request = {"call": R.SET_VRING_CALL, "err": R.SET_VRING_ERR, "kick": R.SET_VRING_KICK}[which]
    with guest(target, queues=2, memory_len=16 * MIB) as odd:
        # The load is on the other ring where it would wait for kicks that go nowhere; both are of one worker at times.
        queue = odd.queues[which == "kick"]
        result = []
        load = threading.Thread(
            target=lambda: result.append(
                block_load(queue, depth=8, block_len=4096, disk_len=4 * MIB, poll=True, duration_ns=700_000_000)
            )
        )
        load.start()
        driver, old, counts, before = odd.block(), [], [], None
        driver.poll = True
        for _ in range(300):
            old.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            assert odd.attempt(request, u64(0), [old[-1]]) == "done"
            if before is not None:
                counts.append(value(before))
            before = old[-1]
            if which == "kick":
                pending = driver.submit(Request.IN, 0, read_len=512, kick=False)
                if odd.queue.publish():
                    os.eventfd_write(old[-1], 1)
                assert driver.complete(pending).ok
        load.join()
        assert [value(number) for number in old[:-1]] == counts
        for number in old:
            os.close(number)
        assert result[0].errors == 0
        assert result[0].ios > 1000


def value(number):
    """What stands in an eventfd, left there."""
    with open(f"/proc/self/fdinfo/{number}") as info:
        return int(next(line for line in info if line.startswith("eventfd-count")).split()[1], 16)


def test_a_flood_of_refused_messages_with_descriptors(target):
    """S34: 500 sessions that end in a protocol error with descriptors attached leave none."""
    with many(8) as fds:
        for _ in range(100):
            with guest(target, "connected") as bad:
                bad.frontend.send(R.SET_VRING_NUM, state(0, 8), fds)
                assert closed(bad.frontend)


def test_everything_a_back_channel_may_be(target):
    """S120 to S124: closed peers, pipes and files are refused or dropped; nothing waits for them."""
    with guest(target, protocol=~ProtocolFeature.BACKEND_REQ & 0x1FFFF) as odd:
        for name in KINDS:
            with kind(name) as number:
                taken = {"socket", "socket-closed-peer", "socket-in-itself", "pipe-write-end"}
                expected = "done" if name in taken else "refused"
                assert odd.attempt(R.SET_BACKEND_REQ_FD, b"", [number]) == expected, name
        assert odd.reads()


@contextlib.contextmanager
def lingering():
    """A TCP socket with bytes that its peer does not take: whoever closes it last waits a minute."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = socket.create_connection(listener.getsockname())
        theirs = stack.enter_context(listener.accept()[0])
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        # Its end is a reset: nobody waits any more.
        stack.callback(theirs.setsockopt, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        yield ours


@pytest.mark.parametrize(
    "request_",
    [R.SET_OWNER, R.SET_VRING_CALL, R.ADD_MEM_REG, R.REM_MEM_REG, R.SET_BACKEND_REQ_FD],
    ids=lambda r: r.name,
)
def test_a_descriptor_whose_close_takes_a_minute(target, request_):
    """S34: the front-end gives us the last copy, and we have to close it: nothing waits for that."""
    payload = {
        R.SET_VRING_CALL: u64(0),
        R.ADD_MEM_REG: single(1 << 40, MIB, 1 << 40),
        R.REM_MEM_REG: single(1 << 40, MIB, 1 << 40),
    }.get(request_, b"")
    with guest(target) as bad, lingering() as ours:
        whole = frame(request_, payload, VERSION | FLAG_NEED_REPLY)
        bad.frontend.send_bytes(whole[:5], [ours.fileno()])
        ours.close()
        bad.frontend.send_bytes(whole[5:])
        assert bad.frontend.receive().payload != bytes(8)
        began = time.monotonic()
        for _ in range(10):
            assert bad.reads()
            assert bad.attempt(R.SET_OWNER) == "done"
        assert time.monotonic() - began < 5


def close_late(number):
    """Close our own descriptor of storage that hangs: it takes as long as that, or fails when the storage is ended."""
    with contextlib.suppress(OSError):
        os.close(number)


@pytest.mark.parametrize("hung", [False, True], ids=["S39-fuse", "S39-fuse-hung"])
def test_memory_on_fuse(target, tmp_path, content, hung):
    """S39, S34: refused, since its pages may never come; and where it is only to be closed, nobody waits for it."""
    with fuse_file(tmp_path, content) as (path, storage), guest(target) as bad:
        number = os.open(path, os.O_RDWR)
        if hung:
            os.pwrite(number, b"x", 0)
            hang(storage)
            for request in (R.SET_VRING_CALL, R.SET_VRING_KICK):
                assert bad.attempt(request, u64(0), [number]) == "refused"
            assert bad.attempt(R.SET_BACKEND_REQ_FD, b"", [number]) == "refused"
            bad.frontend.send(R.SET_OWNER, b"", [number])
            threading.Thread(target=close_late, args=(number,)).start()
            assert closed(bad.frontend)
            with guest(target) as session:
                assert session.reads()
            resume(storage)
        else:
            refused(bad, R.ADD_MEM_REG, single(1 << 40, MIB, 1 << 40), [number])
            os.close(number)
