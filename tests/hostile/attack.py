"""What an attacker does: guests in any state, messages of any bytes, and what came of them.

An attempt ends in one word:

    done      answered with 0, or with its own reply
    refused   answered with anything but 0 (REPLY_ACK), or with an empty payload (GET_CONFIG)
    closed    the connection ended instead
    ignored   no answer was asked for, none came, and the next message is answered
"""

import contextlib
import os
import select
import socket
import struct
import time
from pathlib import Path

from vhostd.driver.arena import Arena
from vhostd.driver.blk import BlockDriver
from vhostd.driver.conformance.hostile.tools import addr, config, single, state, table, u64
from vhostd.driver.frontend import DEVICE_BITS, PROTOCOL_FEATURES, RING_FEATURES, Frontend
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceGone
from vhostd.protocol.messages import Empty
from vhostd.protocol.wire import encode, frame_bytes
from vhostd.spec.blk import Request
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, FLAG_REPLY, VERSION, FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature

__all__ = ["addr", "config", "single", "state", "table", "u64"]

MIB = 1 << 20
WRITE_NR = {"x86_64": 1, "aarch64": 64}[os.uname().machine]  # of write(2)
ALL_FEATURES = DEVICE_BITS | RING_FEATURES
NO_SLOTS = PROTOCOL_FEATURES & ~ProtocolFeature.CONFIGURE_MEM_SLOTS
NO_ACK = PROTOCOL_FEATURES & ~ProtocolFeature.REPLY_ACK
OWN_REPLY = {  # of what we serve
    FrontendRequest.GET_FEATURES,
    FrontendRequest.GET_PROTOCOL_FEATURES,
    FrontendRequest.GET_QUEUE_NUM,
    FrontendRequest.GET_VRING_BASE,
    FrontendRequest.GET_CONFIG,
    FrontendRequest.GET_MAX_MEM_SLOTS,
    FrontendRequest.GET_STATUS,
}


def attempt(frontend, request, payload=b"", fds=(), *, ack=True, flags=VERSION):
    """Send one message and return the word for what came of it."""
    if not isinstance(payload, bytes):
        payload = encode(payload or Empty())
    try:
        frontend.send(request, payload, fds, flags=flags | (FLAG_NEED_REPLY if ack else 0))
        if not ack and request not in OWN_REPLY:
            return "ignored" if alive(frontend) else "closed"
        frame = frontend.receive()
    except DeviceGone:
        return "closed"
    frame.close_fds()
    assert frame.request == request, f"a reply to {frame.request}"
    assert frame.flags & FLAG_REPLY
    if request in OWN_REPLY:
        return "done" if frame.payload else "refused"
    return "refused" if frame.payload != bytes(8) else "done"


def alive(frontend):
    """Whether the connection goes on: GET_FEATURES is answered."""
    try:
        return bool(frontend.ask_u64(FrontendRequest.GET_FEATURES))
    except DeviceGone:
        return False


def closed(frontend, timeout=2.0):
    """Whether the device has closed the connection, waiting for it."""
    return frontend.closed_by_peer(timeout)


class Guest:
    """A front-end with memory and rings, as far as `state` says: connected, negotiated, memory or running."""

    def __init__(self, frontend, arena, queues, target):
        self.frontend = frontend
        self.arena = arena
        self.queues = queues
        self.target = target

    @property
    def queue(self):
        """The first ring."""
        return self.queues[0]

    def block(self, index=0, timeout=5.0):
        """A driver of one ring."""
        return BlockDriver(self.queues[index], timeout=timeout)

    def attempt(self, request, payload=b"", fds=(), **options):
        """Send a message, see `attempt`."""
        return attempt(self.frontend, request, payload, fds, **options)

    def reads(self, index=0, sector=0, length=4096):
        """Whether a read through a ring brings what the image holds."""
        return self.block(index).read(sector, length) == self.target.content[sector * 512 :][:length]

    def start(self):
        """Start all rings, as QEMU does."""
        self.frontend.start(self.arena, self.queues)

    def start_ring(self, index=0, **options):
        """Start one ring, with all its descriptors."""
        queue = self.queues[index]
        self.frontend.set_call(index, queue.call_fd)
        self.frontend.set_err(index, queue.err_fd)
        self.frontend.start_ring(index, queue, **options)
        self.frontend.enable(index)

    def broke(self, index=0, timeout=2.0):
        """Whether the ring's error eventfd is written within `timeout` seconds."""
        queue = self.queues[index]
        select.select([queue.err_fd.number], [], [], timeout)
        return queue.take_err() > 0


@contextlib.contextmanager
def guest(
    target,
    state="running",
    *,
    queues=1,
    size=64,
    features=ALL_FEATURES,
    protocol=PROTOCOL_FEATURES,
    arena=None,
    memory_len=8 * MIB,
    indirect=False,
    base=0,
    wait=2.0,
):
    """Connect and go as far as `state`."""
    with contextlib.ExitStack() as stack:
        memory = arena if arena is not None else stack.enter_context(Arena.of(memory_len))
        frontend = stack.enter_context(connect(target, wait))
        rings = []
        if state != "connected":
            agreed = frontend.negotiate(features, protocol)
            for _ in range(queues):
                ring = Virtqueue(memory, size, event_idx=bool(agreed & Feature.EVENT_IDX), indirect=indirect, base=base)
                rings.append(ring)
                stack.callback(ring.close)
            stack.callback(frontend.close)
        made = Guest(frontend, memory, rings, target)
        if state == "memory":
            frontend.set_features()
            frontend.share(memory)
        elif state == "running":
            made.start()
        yield made


def hang(made):
    """Have a ring's worker hang in the write of a call, as far as a front-end can.

    The mode of a call descriptor is looked at once a millisecond: it is taken away right after such a look.
    """
    queue, driver = made.queue, made.block()
    number = queue.call_fd.number
    driver.poll = True
    for sector in range(200):
        os.set_blocking(number, False)
        queue.take_call()
        time.sleep(0.0015)  # so that the next call is looked at
        pending = driver.submit(Request.IN, sector, read_len=512, kick=False)
        queue.arm()
        queue.kick()
        select.select([number], [], [], 1)
        os.set_blocking(number, True)
        queue.take_call()
        os.eventfd_write(number, 0xFFFFFFFFFFFFFFFE)
        driver.complete(pending)
        pending = driver.submit(Request.IN, sector, read_len=512, kick=False)
        queue.arm()
        queue.kick()
        time.sleep(0.01)
        if writing(made.target.pid):
            return
        driver.complete(pending)
    raise AssertionError("no call of 200 was made within a millisecond after one before")


def writing(pid):
    """Whether a thread of a process is in write(2)."""
    calls = [(task / "syscall").read_text().split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]
    return str(WRITE_NR) in calls


def connect(target, wait=2.0):
    """Connect, and again while the device is still letting go of the front-end before."""
    deadline = time.monotonic() + wait
    while True:
        frontend = Frontend.connect(target.socket, timeout=8.0, wait=wait)
        with contextlib.suppress(DeviceGone):
            frontend.ask_u64(FrontendRequest.GET_FEATURES)
            return frontend
        frontend.close()
        assert time.monotonic() < deadline, "the device takes no front-end"
        time.sleep(0.005)


def raw(target):
    """A bare connected socket."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(os.fspath(target.socket))  # blocking: a full queue is waited for
    connection.settimeout(8.0)
    return connection


def frame(request, payload=b"", flags=VERSION, size=None):
    """A frame whose header may lie about its size."""
    return frame_bytes(request, flags, payload) if size is None else struct.pack("<III", request, flags, size) + payload


def ended(connection, timeout=2.0):
    """Whether the other end of a bare socket closes within `timeout` seconds; what it sends before is dropped."""
    deadline = time.monotonic() + timeout
    try:
        while True:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            if not connection.recv(65536):
                return True
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def header(kind, sector=0):
    """A block request's header (5.2.6)."""
    return struct.pack("<IIQ", kind, 0, sector)
