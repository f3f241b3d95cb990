"""One direction of one socket: bytes and descriptors from a source to a sink, message by message.

A header decides: a rule may be about the message, or its descriptor may be a channel to be looked into. So twelve bytes
are kept until they are whole, but for HOLD_S only: then they go on as they are, and no rule looks at that message. A
payload goes on as it comes, unless a rule is about its message.
"""

import asyncio
import enum
import errno
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from vhostd.fds import Fd, close_all, receive, rights
from vhostd.protocol.wire import parse_header
from vhostd.proxy.conversation import Begun, Conversation
from vhostd.proxy.fdnames import describe
from vhostd.proxy.record import Channel, Fault, Side
from vhostd.spec.vhost_user import HEADER_LEN

HOLD_S = 0.1
FRAME_MAX = 64 * 1024  # bytes of payload; what announces more is no vhost-user stream
PIECE_LEN = 64 * 1024
FDS_ROOM = 253  # SCM_MAX_FD: the kernel passes no more at once
TURN = 16  # messages in a row before others have a turn

Interpose = Callable[[Begun, tuple[Fd, ...]], tuple[Fd, ...]]


class End(enum.Enum):
    """How a relay ended."""

    HALF = "the source will not send again"
    GONE = "the source is gone"
    SINK = "nobody takes it"


class Disconnect(Exception):  # noqa: N818 - a rule's doing, no error
    """A rule ends the connection."""


class FdsLostError(Exception):
    """The descriptors of a message could not be received or sent on: the connection cannot be passed on."""


class _SinkGoneError(Exception):
    """Whoever should take it has closed."""


@dataclass
class _Message:
    """The message at hand. sent: how many bytes of `data` have gone on; fds: those that have not."""

    data: bytes = b""
    sent: int = 0
    fds: tuple[Fd, ...] = ()
    names: list[str] = field(default_factory=list)


class Relay:
    """Passes on what `source` sends; `run` until it ends.

    interpose: given a message whose header has come and its descriptors, returns those to pass on in their place.
    """

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        conversation: Conversation,
        channel: Channel,
        *,
        sender: Side,
        interpose: Interpose | None = None,
    ) -> None:
        self.sender = sender
        self._source = source
        self._sink = sink
        self._talk = conversation
        self._channel = channel
        self._interpose = interpose
        self._loop = asyncio.get_running_loop()

    async def run(self) -> End:
        """Pass on until the source ends or the sink has gone.

        Raises Disconnect when a rule says so, FdsLostError when descriptors could not be received or sent.
        """
        turns = 0
        try:
            while await self._next():
                turns += 1
                if turns % TURN == 0:
                    await asyncio.sleep(0)
        except _SinkGoneError:
            return End.SINK
        if hung_up(self._source):
            return End.GONE
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            return End.SINK
        return End.HALF

    async def _next(self) -> bool:
        """Pass on one message. False at the end of the stream."""
        message = _Message()
        try:
            return await self._pass(message)
        finally:
            close_all(message.fds)

    async def _pass(self, message: _Message) -> bool:
        while len(message.data) < HEADER_LEN:
            begun_only = bool(message.data) and not message.sent
            try:
                async with asyncio.timeout(HOLD_S if begun_only else None):
                    more = await self._take(message, HEADER_LEN - len(message.data))
            except TimeoutError:
                self._talk.note(f"{len(message.data)} bytes of a header by the {self.sender.words}, and no more yet")
                await self._send(message)
                continue
            if not more:
                return await self._cut(message)
            if message.sent:
                await self._send(message)
        code, flags, size = parse_header(message.data)
        if size > FRAME_MAX:
            return await self._raw(message, f"{size} bytes of payload announced")
        begun = self._talk.begin(self._channel, self.sender, code, flags, rules=not message.sent)
        fault = begun.verdict.fault
        if self._interpose is not None and not message.sent and fault not in {Fault.DROP, Fault.DISCONNECT}:
            message.fds = self._interpose(begun, message.fds)
        while (left := HEADER_LEN + size - len(message.data)) > 0:
            try:
                more = self._take_now(message, left)
            except BlockingIOError:
                if fault is Fault.NONE:
                    await self._send(message)
                more = await self._take(message, left)
            if not more:
                return await self._cut(message)
        self._talk.end(begun, message.data[HEADER_LEN:], tuple(message.names))
        if fault is Fault.DROP:
            return True
        await asyncio.sleep(begun.verdict.delay_s)
        if fault is Fault.DISCONNECT:
            raise Disconnect(begun.verdict.words)
        await self._send(message)
        return True

    async def _cut(self, message: _Message) -> bool:
        if message.data:
            why = "the stream ends in the middle of a message"
            self._talk.raw(self._channel, self.sender, message.data, tuple(message.names), why)
            await self._send(message)
        return False

    async def _raw(self, message: _Message, why: str) -> bool:
        """Pass on bytes until the stream ends: nobody knows any more where its messages begin."""
        self._talk.note(f"what the {self.sender.words} sends is no vhost-user stream from here on: {why}")
        turns = 0
        while True:
            self._talk.raw(self._channel, self.sender, message.data[message.sent :], tuple(message.names), "bytes")
            await self._send(message)
            message.data, message.sent, message.names = b"", 0, []
            if not await self._take(message, PIECE_LEN):
                return False
            turns += 1
            if turns % TURN == 0:
                await asyncio.sleep(0)

    async def _take(self, message: _Message, length: int) -> bool:
        """Read up to `length` bytes more of the message. False at the end of the stream."""
        while True:
            try:
                return self._take_now(message, length)
            except BlockingIOError:
                await self._ready(self._source, self._loop.add_reader, self._loop.remove_reader)

    def _take_now(self, message: _Message, length: int) -> bool:
        """Read as `_take` does. Raises BlockingIOError when there is nothing to be read yet."""
        try:
            data, fds, lost = receive(self._source, length, FDS_ROOM, flags=socket.MSG_DONTWAIT, foreign=True)
        except BlockingIOError:
            raise
        except OSError:  # reset: it has closed with something of ours unread
            return False
        message.data += data
        message.fds += fds
        message.names += [describe(fd.number) for fd in fds]
        if lost:
            raise FdsLostError(
                f"the {self.sender.words} sent descriptors that this process may not have open: raise ulimit -n"
            )
        return bool(data)

    async def _send(self, message: _Message) -> None:
        """Send on what has not gone yet; the descriptors go with its first byte, and are closed here.

        More than go at once came in several pieces, so there is a byte for each such lot.
        """
        while message.sent < len(message.data):
            lot = message.fds[:FDS_ROOM]
            numbers = [fd.number for fd in lot]
            data = message.data[message.sent :] if len(lot) == len(message.fds) else message.data[message.sent :][:1]
            try:
                count = self._sink.sendmsg([data], rights(numbers), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await self._ready(self._sink, self._loop.add_writer, self._loop.remove_writer)
                continue
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    raise FdsLostError(f"{len(numbers)} descriptors cannot be passed on: {error.strerror}") from None
                raise _SinkGoneError from None
            message.sent += count
            close_all(lot)
            message.fds = message.fds[len(lot) :]

    async def _ready(
        self, peer: socket.socket, add: Callable[..., None], remove: Callable[[socket.socket], bool]
    ) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        add(peer, _set, ready)
        try:
            await ready
        finally:
            remove(peer)


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def hung_up(peer: socket.socket) -> bool:
    """Whether the other end has closed, in both directions."""
    poller = select.poll()
    poller.register(peer, 0)
    return bool(poller.poll(0))
