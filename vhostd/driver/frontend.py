"""The front-end's end of the socket, for any vhost-user back-end: blocking, each wait with a deadline.

Order and content follow what QEMU sends, so that what works here works there. Hostile input goes through `send` and
`send_bytes`, which check nothing.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

from vhostd.driver.arena import Arena, Region
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceError, DeviceGone, DeviceTimeout, LocalProtocolError, Refused, RemoteProtocolError
from vhostd.fds import Fd, receive, rights
from vhostd.protocol.framing import Frame, Framer
from vhostd.protocol.messages import (
    U64,
    Config,
    Empty,
    Inflight,
    Log,
    MemRegion,
    MemTable,
    Message,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from vhostd.protocol.wire import decode_ack, decode_reply, encode, frame_bytes
from vhostd.spec.vhost_user import (
    FDS_MAX,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    VERSION,
    VERSION_MASK,
    BackendRequest,
    FrontendRequest,
    ProtocolFeature,
)
from vhostd.spec.virtio import Feature, Status

_M = TypeVar("_M", bound=Message)

# What this front-end does itself. It never acknowledges what it could not keep.
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.RARP
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
RING_FEATURES = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.INDIRECT_DESC | Feature.EVENT_IDX
DEVICE_BITS = (1 << 24) - 1 | ~((1 << 50) - 1) & (1 << 64) - 1  # virtio 6: 0 to 23 and 50 to 127 are the device's


class Stream:
    """A unix stream socket that carries frames; `timeout` is in seconds, for each frame."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self._socket = connection
        self._framer = Framer()
        self.timeout = timeout

    def fileno(self) -> int:
        """Return the socket's descriptor, for select and friends."""
        return self._socket.fileno()

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send any bytes, with descriptors beside the first of them.

        Raises DeviceGone when the other end has closed, DeviceTimeout when it does not read.
        """
        self._socket.settimeout(self.timeout)
        try:
            sent = self._socket.sendmsg([data], rights(fds))
            if sent < len(data):
                self._socket.sendall(data[sent:])
        except TimeoutError:
            raise DeviceTimeout("the back-end does not read its socket") from None
        except OSError as error:
            raise DeviceGone(f"the back-end closed the connection: {error}") from error

    def receive(self, timeout: float | None = None) -> Frame:
        """Return the next frame, which owns its descriptors.

        Raises DeviceTimeout, DeviceGone at the end of the stream, and DeviceError for bytes that are no frame.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        frame = None
        while frame is None:
            left = deadline - time.monotonic()
            self._socket.settimeout(max(left, 0.0001))
            try:
                data, fds, _ = receive(self._socket, self._framer.wanted, 2 * FDS_MAX)
            except TimeoutError:
                raise DeviceTimeout("the back-end sent nothing in time") from None
            except OSError as error:
                raise DeviceGone(f"the back-end closed the connection: {error}") from error
            if not data:
                cut = " in the middle of a message" if self._framer.mid_message else ""
                raise DeviceGone(f"the back-end closed the connection{cut}")
            try:
                frame = self._framer.feed(data, fds)
            except RemoteProtocolError as error:
                raise DeviceError(f"the back-end sent no frame: {error}") from error
        return frame

    def closed_by_peer(self, timeout: float) -> bool:
        """Whether the other end closes within `timeout` seconds; frames that come first are dropped."""
        deadline = time.monotonic() + timeout
        try:
            while True:
                self.receive(deadline - time.monotonic()).close_fds()
        except DeviceGone:
            return True
        except DeviceTimeout:
            return False

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        self._framer.close()
        self._socket.close()


class Frontend(Stream):
    """One connection to a back-end, and what both sides know of it. One thread's: replies have no number."""

    def __init__(self, connection: socket.socket, *, timeout: float = 5.0) -> None:
        super().__init__(connection, timeout)
        self.offered = 0  # GET_FEATURES
        self.features = 0  # what we acknowledge, bit 30 included
        self.protocol_features = ProtocolFeature(0)  # acknowledged
        self.protocol_offered = ProtocolFeature(0)
        self.queue_num = 1  # GET_QUEUE_NUM, 1 without MQ
        self.mem_slots = 0  # GET_MAX_MEM_SLOTS
        self.channel: Stream | None = None  # what the back-end asks of us
        self.queues: tuple[Virtqueue, ...] = ()
        self.regions: list[Region] = []  # what the back-end has mapped
        self.bases: dict[int, int] = {}  # of stopped rings, as GET_VRING_BASE returned them

    @classmethod
    def connect(cls, path: str | os.PathLike[str], *, timeout: float = 5.0, wait: float = 10.0) -> Self:
        """Connect to a listening back-end, trying again for `wait` seconds while nobody listens or takes us.

        Raises DeviceTimeout when nobody does.
        """
        deadline = time.monotonic() + wait
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(timeout)  # a listener whose backlog is full answers EAGAIN, rather than never
            try:
                connection.connect(os.fspath(path))
            except OSError as error:
                connection.close()
                if time.monotonic() > deadline:
                    raise DeviceTimeout(f"{os.fspath(path)}: {error}") from error
                time.sleep(0.02)
            else:
                return cls(connection, timeout=timeout)

    @classmethod
    def accept(cls, listener: socket.socket, *, timeout: float = 5.0) -> Self:
        """Take the connection of a back-end that is the client. Raises DeviceTimeout when none comes."""
        listener.settimeout(timeout)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            raise DeviceTimeout("no back-end connected") from None
        return cls(connection, timeout=timeout)

    # Messages.

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = VERSION) -> None:
        """Send one frame as given: any number, any flags, any payload."""
        self.send_bytes(frame_bytes(request, flags, payload), fds)

    def tell(
        self, request: FrontendRequest, message: Message | None = None, fds: Sequence[int] = (), *, ack: bool = True
    ) -> None:
        """Send a request that has no reply of its own; with REPLY_ACK and `ack`, wait for its 0.

        Raises Refused for any other value.
        """
        payload = encode(message or Empty())
        if not ack or not self.protocol_features & ProtocolFeature.REPLY_ACK:
            self.send(request, payload, fds)
            return
        self.send(request, payload, fds, flags=VERSION | FLAG_NEED_REPLY)
        self.acked(request)

    def acked(self, request: FrontendRequest) -> None:
        """Wait for the 0 that answers a request with NEED_REPLY. Raises Refused for any other value."""
        frame = self.reply(request)
        frame.close_fds()
        try:
            value = decode_ack(request.name, frame.payload)
        except RemoteProtocolError as error:
            raise DeviceError(str(error)) from error
        if value:
            raise Refused(f"{request.name}: the back-end answered {value:#x}")

    def ask(
        self,
        request: FrontendRequest,
        kind: type[_M],
        message: Message | None = None,
        fds: Sequence[int] = (),
        *,
        length: int | None = None,
    ) -> tuple[_M, tuple[Fd, ...]]:
        """Send a request and return its own reply, a `kind`, with the descriptors that came.

        `length` pads the request's payload. Raises Refused for an empty reply where `kind` is not Empty.
        """
        self.send(request, encode(message or Empty(), length), fds)
        frame = self.reply(request)
        try:
            answer = decode_reply(request, frame.payload)
        except RemoteProtocolError as error:
            frame.close_fds()
            raise DeviceError(str(error)) from error
        if not isinstance(answer, kind):
            frame.close_fds()
            raise Refused(f"{request.name}: the back-end answered without a payload")
        return answer, frame.fds

    def reply(self, request: int) -> Frame:
        """Return the reply to `request`. Raises DeviceError for a frame that is none ("Header")."""
        frame = self.receive()
        if frame.request != request or frame.flags & (FLAG_REPLY | VERSION_MASK) != FLAG_REPLY | VERSION:
            frame.close_fds()
            raise DeviceError(f"reply to request {request}: got request {frame.request}, flags {frame.flags:#x}")
        return frame

    def ask_u64(self, request: FrontendRequest) -> int:
        """Send a request without payload and return the u64 that answers it."""
        answer, fds = self.ask(request, U64)
        for fd in fds:
            fd.close()
        return answer.value

    # Connection phase.

    def negotiate(
        self,
        features: int = DEVICE_BITS | RING_FEATURES,
        protocol_features: ProtocolFeature = PROTOCOL_FEATURES,
    ) -> int:
        """Do QEMU's connection phase; return what we will acknowledge: offered by the back-end and in `features`.

        SET_FEATURES itself goes with `start`.
        """
        self.offered = self.ask_u64(FrontendRequest.GET_FEATURES)
        self.features = self.offered & features
        if self.features & Feature.PROTOCOL_FEATURES:
            self.protocol_offered = ProtocolFeature(self.ask_u64(FrontendRequest.GET_PROTOCOL_FEATURES))
            agreed = self.protocol_offered & protocol_features & PROTOCOL_FEATURES
            self.tell(FrontendRequest.SET_PROTOCOL_FEATURES, U64(agreed), ack=False)
            self.protocol_features = agreed
            if agreed & ProtocolFeature.MQ:
                self.queue_num = self.ask_u64(FrontendRequest.GET_QUEUE_NUM)
            if agreed & ProtocolFeature.CONFIGURE_MEM_SLOTS:
                self.mem_slots = self.ask_u64(FrontendRequest.GET_MAX_MEM_SLOTS)
            if agreed & ProtocolFeature.BACKEND_REQ:
                self.open_channel()
        self.tell(FrontendRequest.SET_OWNER, ack=False)
        self.ask_u64(FrontendRequest.GET_FEATURES)
        return self.features

    def open_channel(self, *, ack: bool = True) -> None:
        """Give the back-end a socket of its own to ask us by (SET_BACKEND_REQ_FD)."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.tell(FrontendRequest.SET_BACKEND_REQ_FD, fds=[theirs.fileno()], ack=ack)
        if self.channel is not None:
            self.channel.close()
        self.channel = Stream(ours, self.timeout)

    def backend_request(self, timeout: float | None = None) -> tuple[BackendRequest, bytes]:
        """Return the next request of the back-end on its channel, answered with 0 where it wants an answer.

        Raises LocalProtocolError without a channel, DeviceTimeout when none comes.
        """
        if self.channel is None:
            raise LocalProtocolError("there is no back-end channel: BACKEND_REQ was not negotiated")
        frame = self.channel.receive(timeout)
        frame.close_fds()
        if frame.need_reply:
            self.channel.send_bytes(frame_bytes(frame.request, VERSION | FLAG_REPLY, encode(U64(0))))
        return BackendRequest(frame.request), frame.payload

    def config(self, offset: int = 0, length: int = 60) -> bytes:
        """Return `length` bytes of configuration space. Raises Refused where the back-end says so."""
        answer, _ = self.ask(FrontendRequest.GET_CONFIG, Config, Config(offset, length, 0, bytes(length)))
        if (answer.offset, answer.size) != (offset, length):
            raise DeviceError(f"GET_CONFIG: asked ({offset}, {length}), got ({answer.offset}, {answer.size})")
        return answer.payload

    def set_config(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        """Write configuration space. Raises Refused where the back-end does not allow it (and REPLY_ACK is on)."""
        self.tell(FrontendRequest.SET_CONFIG, Config(offset, len(data), flags, data))

    # Memory.

    def set_mem_table(self, arena: Arena, regions: Sequence[Region] | None = None) -> None:
        """Replace the back-end's whole map by an arena's regions, or by these of them."""
        chosen = arena.regions if regions is None else tuple(regions)
        table = MemTable(tuple(_message(region) for region in chosen))
        self.tell(FrontendRequest.SET_MEM_TABLE, table, [arena.fd(region) for region in chosen])
        self.regions = list(chosen)

    def add_region(self, arena: Arena, region: Region) -> None:
        """ADD_MEM_REG one region."""
        self.tell(FrontendRequest.ADD_MEM_REG, SingleRegion(_message(region)), [arena.fd(region)])
        self.regions.append(region)

    def remove_region(self, region: Region) -> None:
        """REM_MEM_REG one region; no descriptor goes with it."""
        self.tell(FrontendRequest.REM_MEM_REG, SingleRegion(_message(region)))
        self.regions.remove(region)

    def share(self, arena: Arena) -> None:
        """Make the back-end's map that of `arena`: by slots where they were negotiated, else by a whole table."""
        if not self.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            self.set_mem_table(arena)
            return
        for region in [region for region in self.regions if region not in arena.regions]:
            self.remove_region(region)
        for region in arena.regions:
            if region not in self.regions:
                self.add_region(arena, region)

    # Rings.

    def set_num(self, index: int, num: int) -> None:
        """SET_VRING_NUM."""
        self.tell(FrontendRequest.SET_VRING_NUM, VringState(index, num))

    def set_base(self, index: int, base: int) -> None:
        """SET_VRING_BASE."""
        self.tell(FrontendRequest.SET_VRING_BASE, VringState(index, base))

    def set_addr(self, index: int, queue: Virtqueue, *, flags: int = 0) -> None:
        """SET_VRING_ADDR, with the used ring's guest address as the log address, as QEMU has it."""
        desc, avail, used = queue.uvas
        self.tell(FrontendRequest.SET_VRING_ADDR, VringAddr(index, flags, desc, used, avail, queue.used_gpa))

    def set_kick(self, index: int, fd: Fd | None) -> None:
        """SET_VRING_KICK, which starts the ring; None is the flag "no descriptor"."""
        self._set_fd(FrontendRequest.SET_VRING_KICK, index, fd)

    def set_call(self, index: int, fd: Fd | None) -> None:
        """SET_VRING_CALL; None is the flag "no descriptor", for a driver that polls."""
        self._set_fd(FrontendRequest.SET_VRING_CALL, index, fd)

    def set_err(self, index: int, fd: Fd | None) -> None:
        """SET_VRING_ERR; None is the flag "no descriptor"."""
        self._set_fd(FrontendRequest.SET_VRING_ERR, index, fd)

    def enable(self, index: int, enabled: bool = True) -> None:
        """SET_VRING_ENABLE."""
        self.tell(FrontendRequest.SET_VRING_ENABLE, VringState(index, int(enabled)))

    def get_base(self, index: int) -> int:
        """GET_VRING_BASE, which stops the ring; return its base. Raises DeviceError for the answer of another ring."""
        answer, _ = self.ask(FrontendRequest.GET_VRING_BASE, VringState, VringState(index, 0))
        if answer.index != index:
            raise DeviceError(f"GET_VRING_BASE {index}: the answer is for ring {answer.index}")
        self.bases[index] = answer.num
        return answer.num

    def set_features(self, features: int | None = None) -> None:
        """SET_FEATURES with what was negotiated, or with any other value."""
        self.tell(FrontendRequest.SET_FEATURES, U64(self.features if features is None else features), ack=False)

    def start_ring(self, index: int, queue: Virtqueue, *, base: int | None = None) -> None:
        """Configure and start one ring: NUM, BASE, ADDR, KICK.

        `base` None is what GET_VRING_BASE returned last, or else what the ring says: what the device does next.
        """
        queue.watch_fd = self.fileno()
        self.set_num(index, queue.size)
        self.set_base(index, self.bases.pop(index, queue.base) if base is None else base)
        self.set_addr(index, queue)
        self.set_kick(index, queue.kick_fd)

    def start(self, arena: Arena, queues: Iterable[Virtqueue], *, enable: int | None = None) -> None:
        """Start a device as QEMU does: features, status, call and error fds, memory, each ring, then enable.

        `enable` is how many rings are enabled, which may be more than are configured; None is `queues`.
        """
        self.queues = tuple(queues)
        self.set_features()
        self._add_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        for index, queue in enumerate(self.queues):
            self.set_call(index, queue.call_fd)
            self.set_err(index, queue.err_fd)
        self.share(arena)
        for index, queue in enumerate(self.queues):
            self.start_ring(index, queue)
        if self.features & Feature.PROTOCOL_FEATURES:
            for index in range(len(self.queues) if enable is None else enable):
                self.enable(index)
        self._add_status(Status.DRIVER_OK)

    def stop(self) -> list[int]:
        """Stop each ring as QEMU's block device does: disable all, GET_VRING_BASE for each; return the bases.

        `start` with the same queues goes on from there.
        """
        if self.features & Feature.PROTOCOL_FEATURES:
            for index in range(len(self.queues)):
                self.enable(index, enabled=False)
        return [self.get_base(index) for index in range(len(self.queues))]

    def reset_device(self) -> None:
        """RESET_DEVICE; the memory map stays."""
        self.tell(FrontendRequest.RESET_DEVICE)
        self.bases.clear()

    # What migration and crashes need.

    def get_inflight(self, num_queues: int, queue_size: int) -> tuple[Inflight, Fd]:
        """GET_INFLIGHT_FD in QEMU's 24 bytes. Raises DeviceError when no descriptor comes."""
        answer, fds = self.ask(
            FrontendRequest.GET_INFLIGHT_FD, Inflight, Inflight(0, 0, num_queues, queue_size), length=24
        )
        if len(fds) != 1:
            raise DeviceError(f"GET_INFLIGHT_FD: {len(fds)} descriptors instead of one")
        return answer, fds[0]

    def set_inflight(self, inflight: Inflight, fd: Fd) -> None:
        """SET_INFLIGHT_FD in QEMU's 24 bytes."""
        self.send(FrontendRequest.SET_INFLIGHT_FD, encode(inflight, 24), [fd.number])

    def set_log(self, size: int, fd: Fd, offset: int = 0) -> None:
        """SET_LOG_BASE, whose reply is awaited; `size` and `offset` in bytes."""
        _, fds = self.ask(FrontendRequest.SET_LOG_BASE, U64, Log(size, offset), [fd.number])
        for extra in fds:
            extra.close()

    def status(self) -> int:
        """GET_STATUS."""
        return self.ask_u64(FrontendRequest.GET_STATUS)

    def set_status(self, status: int) -> None:
        """SET_STATUS; 0 resets the device."""
        self.tell(FrontendRequest.SET_STATUS, U64(status), ack=False)

    def close(self) -> None:
        """Close both sockets; a second time does nothing. The queues are their owner's."""
        for queue in self.queues:
            queue.watch_fd = -1
        if self.channel is not None:
            self.channel.close()
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _add_status(self, bits: Status) -> None:
        if self.protocol_features & ProtocolFeature.STATUS:
            self.set_status(self.status() | bits)

    def _set_fd(self, request: FrontendRequest, index: int, fd: Fd | None) -> None:
        self.tell(request, VringFd(index, fd is None), [] if fd is None else [fd.number])


def _message(region: Region) -> MemRegion:
    return MemRegion(region.gpa, region.length, region.front_uva, region.mmap_offset)


@contextlib.contextmanager
def listening(path: str | os.PathLike[str]) -> Iterator[socket.socket]:
    """Listen at `path` for a back-end that is the client; the socket file goes when the block ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(path))
        try:
            listener.listen(1)
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108 - also for a str
