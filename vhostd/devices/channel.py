"""The socket: bytes and fds, nothing decoded."""

import asyncio
import select
import socket
import struct

from vhostd.errors import RemoteProtocolError
from vhostd.fds import Fd, close_all, receive, rights
from vhostd.protocol.framing import Frame, Framer

MESSAGE_S = 5.0  # from a message's first byte to its last
REPLY_S = 5.0  # for a reply to be taken
FDS_ROOM = 64  # more than any message may carry, so that what is too much is received, and closed
TURN = 16  # messages read without a wait before everybody else on the event loop has a turn


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class Channel:
    """One connected front-end socket, read message by message."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._framer = Framer()
        self._loop = asyncio.get_running_loop()
        self._in_turn = 0

    def peer(self) -> tuple[int, int, int]:
        """Return (pid, uid, gid) of the front-end as it connected."""
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, gid = struct.unpack("3i", raw)
        return pid, uid, gid

    async def receive(self) -> Frame | None:
        """Return the next frame, or None when the front-end closed between two messages.

        Raises RemoteProtocolError (fatal) for a stream that cannot be read on: cut, too slow, too long, too many fds.
        """
        deadline: float | None = None
        self._in_turn += 1
        if self._in_turn >= TURN:
            # What a front-end sends without a pause is always there to be read: signals, other connections and the
            # operator must not wait for its end.
            self._in_turn = 0
            await asyncio.sleep(0)
        while True:
            try:
                data, fds = self._read(self._framer.wanted)
            except BlockingIOError:
                self._in_turn = 0
                await self._readable(deadline)
                continue
            except ConnectionError:
                data, fds = b"", ()
            if not data:
                close_all(fds)
                if self._framer.mid_message:
                    self._framer.close()
                    raise RemoteProtocolError("the connection ended in the middle of a message", fatal=True)
                return None
            if deadline is None:
                deadline = self._loop.time() + MESSAGE_S
            frame = self._framer.feed(data, fds)
            if frame is not None:
                return frame

    def _read(self, wanted: int) -> tuple[bytes, tuple[Fd, ...]]:
        data, fds, lost = receive(self._socket, wanted, FDS_ROOM, foreign=True)
        if lost:
            close_all(fds)
            raise RemoteProtocolError('more fds than any message has (vhost-user, "Communication")', fatal=True)
        return data, fds

    async def _readable(self, deadline: float | None) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._socket.fileno(), _set, ready)
        try:
            async with asyncio.timeout_at(deadline):
                await ready
        except TimeoutError:
            self._framer.close()
            raise RemoteProtocolError(f"half a message, and nothing more for {MESSAGE_S:.0f} s", fatal=True) from None
        finally:
            self._loop.remove_reader(self._socket.fileno())

    async def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send a reply. Raises RemoteProtocolError (fatal) when the front-end has gone or does not take it."""
        deadline = self._loop.time() + REPLY_S
        control = rights(fds)
        while data:
            try:
                sent = self._socket.sendmsg([data], control, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await self._writable(deadline)
                continue
            except OSError as error:
                raise RemoteProtocolError(f"the front-end has gone: {error.strerror}", fatal=True) from None
            data, control = data[sent:], []

    async def _writable(self, deadline: float) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(self._socket.fileno(), _set, ready)
        try:
            async with asyncio.timeout_at(deadline):
                await ready
        except TimeoutError:
            raise RemoteProtocolError(f"the front-end has not read a reply for {REPLY_S:.0f} s", fatal=True) from None
        finally:
            self._loop.remove_writer(self._socket.fileno())

    def hung_up(self) -> bool:
        """Whether the front-end has closed its end, or will not send again and all it sent has been read."""
        poller = select.poll()
        poller.register(self._socket, 0)
        if poller.poll(0):  # both directions: nobody is there, though something may be left to read
            return True
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close the socket, and the descriptors of a message that is not whole."""
        self._framer.close()
        self._socket.close()
