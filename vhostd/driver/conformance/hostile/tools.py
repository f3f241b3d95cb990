"""What hostile cases share: payloads of any values, an attempt and what came of it, how a broken ring is told of.

An attempt ends in one word:

    done      answered with 0, or with its own reply
    refused   answered with anything but 0 (REPLY_ACK), or with an empty payload (GET_CONFIG)
    closed    the connection ended instead
    silent    neither, in time
"""

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence

from vhostd.driver.conformance.check import Check, Guest
from vhostd.driver.conformance.hostile.attacks import Prepared
from vhostd.driver.conformance.verdict import Fault
from vhostd.driver.frontend import Frontend
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceGone, DeviceTimeout
from vhostd.protocol.rules import RULES, ReplyKind
from vhostd.spec.blk import Request, StatusByte
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, FLAG_REPLY, VERSION, FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Status

R = FrontendRequest
MIB = 1 << 20
OF_ERR, OF_RESET, OF_END = "VRING_ERR", "DEVICE_NEEDS_RESET", "the end of the connection"
OWN_REPLY = {request for request, rule in RULES.items() if rule.reply is ReplyKind.VALUE}


def u64(value: int) -> bytes:
    """Payload "A single 64-bit integer", of any value."""
    return struct.pack("<Q", value & (1 << 64) - 1)


def state(index: int, num: int = 0) -> bytes:
    """Payload "A vring state description"."""
    return struct.pack("<II", index & 0xFFFFFFFF, num & 0xFFFFFFFF)


def addr(index: int, desc: int, used: int, avail: int, *, log: int = 0, flags: int = 0) -> bytes:
    """Payload "A vring address description"."""
    return struct.pack("<IIQQQQ", index & 0xFFFFFFFF, flags, *(a & (1 << 64) - 1 for a in (desc, used, avail, log)))


def table(*regions: tuple[int, int, int, int], count: int | None = None, padding: int = 0) -> bytes:
    """Payload "Multiple memory regions description", of (gpa, length, uva, offset) each."""
    head = struct.pack("<II", len(regions) if count is None else count, padding)
    return head + b"".join(struct.pack("<QQQQ", *region) for region in regions)


def single(gpa: int, length: int, uva: int, offset: int = 0) -> bytes:
    """Payload "Single memory region description"."""
    return struct.pack("<QQQQQ", 0, gpa, length, uva, offset)


def config(offset: int, size: int, flags: int = 0, payload: bytes | None = None) -> bytes:
    """Payload "Virtio device config space"."""
    return struct.pack("<III", offset, size, flags) + (bytes(min(size, 4096)) if payload is None else payload)


def attempt(
    frontend: Frontend, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = VERSION
) -> str:
    """Send one message that wants an answer and return the word for what came of it."""
    try:
        frontend.send(request, payload, fds, flags=flags | FLAG_NEED_REPLY)
        frame = frontend.receive()
    except DeviceGone:
        return "closed"
    except DeviceTimeout:
        return "silent"
    frame.close_fds()
    if frame.request != request or not frame.flags & FLAG_REPLY:
        return f"answered with {frame.request}, flags {frame.flags:#x}"
    if request in OWN_REPLY:
        return "done" if frame.payload else "refused"
    return "refused" if frame.payload != bytes(8) else "done"


def refuses(check: Check, frontend: Frontend, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
    """Hold the back-end to saying no, or closing the connection."""
    held_to_refusal(check, attempt(frontend, request, payload, fds))


def held_to_refusal(check: Check, word: str) -> None:
    """Hold the back-end to having said no, or closed the connection, in an attempt that ended in `word`."""
    fault = Fault.WEDGE if word == "silent" else Fault.WRONG_ANSWER
    check.expect(word in {"refused", "closed"}, "an answer that says no, or the end of the connection", word, fault)


def closes(check: Check, frontend: Frontend) -> None:
    """Hold the back-end to closing the connection."""
    check.expect(frontend.closed_by_peer(check.timeout), "the end of the connection", "it goes on", Fault.WRONG_ANSWER)


def header_of(check: Check) -> bytes:
    """Return what a good request of the target's kind begins with."""
    return struct.pack("<IIQ", Request.IN, 0, check.scratch.first) if check.is_block else bytes(12)


def how_told(guest: Guest, queue: Virtqueue, used: Callable[[], bool]) -> str:
    """Return how the back-end says that a ring is broken; nothing when it does not in time, or uses something."""
    frontend = guest.frontend
    deadline = time.monotonic() + guest.check.timeout
    try:
        while time.monotonic() < deadline:
            ready, _, _ = select.select([queue.err_fd.number, frontend.fileno()], [], [], 0.02)
            if queue.err_fd.number in ready and queue.take_err():
                return OF_ERR
            if frontend.fileno() in ready and frontend.closed_by_peer(0.2):
                return OF_END
            if used():
                return ""
        if frontend.protocol_features & ProtocolFeature.STATUS:
            status = frontend.ask_u64(FrontendRequest.GET_STATUS)
            return OF_RESET if status & Status.DEVICE_NEEDS_RESET else ""
    except DeviceGone:
        return OF_END
    return ""


def held_to_telling(check: Check, said: str, otherwise: str = "") -> None:
    """Hold the back-end to having said that a ring is broken, as `how_told` has it."""
    check.expect(
        said in {OF_ERR, OF_RESET},
        f"{otherwise}{otherwise and ', or '}VRING_ERR or DEVICE_NEEDS_RESET (virtio 2.1.2)",
        "only that the connection ended" if said else f"nothing in {check.timeout:g} s, and no used element",
        Fault.SILENT_RING_ERROR,
    )


def held_to_undone(check: Check, chain: Prepared, before: bytes) -> None:
    """Hold the back-end to having done nothing of a chain that it has given back; `before` is what its data held."""
    check.expect(chain.arena.read(chain.status, 1)[0] != StatusByte.OK, "no status OK", "status OK")
    check.equal(chain.arena.read(chain.data, len(before)), before, "the data as it was,")


@contextlib.contextmanager
def descriptor(kind: str) -> Iterator[int]:
    """Have a descriptor of some kind, see KINDS."""
    with contextlib.ExitStack() as stack:
        yield KINDS[kind](stack)


def _closing(stack: contextlib.ExitStack, *numbers: int) -> int:
    for number in numbers:
        stack.callback(os.close, number)
    return numbers[0]


def _pipe(end: int) -> Callable[[contextlib.ExitStack], int]:
    def make(stack: contextlib.ExitStack) -> int:
        ends = os.pipe2(os.O_CLOEXEC)
        return _closing(stack, ends[end], ends[1 - end])

    return make


def _sockets(kind: int, *, gone: bool = False) -> Callable[[contextlib.ExitStack], int]:
    def make(stack: contextlib.ExitStack) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        stack.callback(theirs.close)
        if gone:
            ours.close()
        else:
            stack.callback(ours.close)
        return theirs.fileno()

    return make


def _opened(path: str, flags: int) -> Callable[[contextlib.ExitStack], int]:
    return lambda stack: _closing(stack, os.open(path, flags | os.O_CLOEXEC))


def _memory(length: int) -> Callable[[contextlib.ExitStack], int]:
    def make(stack: contextlib.ExitStack) -> int:
        number = os.memfd_create("hostile", os.MFD_CLOEXEC)
        os.ftruncate(number, length)
        return _closing(stack, number)

    return make


def _read_only(stack: contextlib.ExitStack) -> int:
    number = _memory(16 * MIB)(stack)
    return _closing(stack, os.open(f"/proc/self/fd/{number}", os.O_RDONLY | os.O_CLOEXEC))


def _full(stack: contextlib.ExitStack) -> int:
    number = os.eventfd(0, os.EFD_CLOEXEC)
    os.eventfd_write(number, 2**64 - 2)  # its last value: the next write waits
    return _closing(stack, number)


def _epoll(stack: contextlib.ExitStack) -> int:
    made = select.epoll()
    stack.callback(made.close)
    return made.fileno()


KINDS: dict[str, Callable[[contextlib.ExitStack], int]] = {
    "pipe-to-read": _pipe(0),
    "pipe-to-write": _pipe(1),
    "socket": _sockets(socket.SOCK_STREAM),
    "socket-alone": _sockets(socket.SOCK_STREAM, gone=True),
    "datagrams": _sockets(socket.SOCK_DGRAM),
    "null": _opened("/dev/null", os.O_RDWR),
    "zero": _opened("/dev/zero", os.O_RDWR),
    "directory": _opened("/", os.O_RDONLY | os.O_DIRECTORY),
    "path-only": _opened("/", os.O_PATH),
    "epoll": _epoll,
    "memory": _memory(16 * MIB),
    "memory-of-no-length": _memory(0),
    "memory-to-read": _read_only,
    "eventfd": lambda stack: _closing(stack, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)),
    "eventfd-that-blocks": lambda stack: _closing(stack, os.eventfd(0, os.EFD_CLOEXEC)),
    "eventfd-full": _full,
    "eventfd-semaphore": lambda stack: _closing(stack, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)),
}
