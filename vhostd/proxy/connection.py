"""A front-end's connection and the one to the back-end that belongs to it, with the channels that were passed on it."""

import asyncio
import os
import socket
import time
from collections.abc import Sequence

from vhostd.fds import Fd
from vhostd.proxy.conversation import Begun, Conversation
from vhostd.proxy.record import Channel, Event, Side, Sink
from vhostd.proxy.relay import Disconnect, End, FdsLostError, Relay
from vhostd.spec.vhost_user import FrontendRequest

CHANNELS_MAX = 8  # back-end channels at once; one is what the document knows


class Connection:
    """Passes on what two sockets say, until one of them has gone; owns both."""

    def __init__(self, front: socket.socket, back: socket.socket, talk: Conversation, sink: Sink) -> None:
        self._front = front
        self._back = back
        self._talk = talk
        self._sink = sink
        self._group = asyncio.TaskGroup()
        self._channels: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Pass on until it is over; then both sockets and all channels are closed."""
        reason = ""
        try:
            with self._front, self._back:
                async with self._group:
                    main = Channel.MAIN
                    there = Relay(
                        self._front, self._back, self._talk, main, sender=Side.FRONT_END, interpose=self._interpose
                    )
                    here = Relay(self._back, self._front, self._talk, main, sender=Side.BACK_END)
                    reason = await _both((there, here))
                    for channel in self._channels:
                        channel.cancel()
        except* Disconnect as group:
            reason = str(group.exceptions[0])
        except* FdsLostError as group:
            reason = str(group.exceptions[0])
            self._talk.note(reason)
        waiting = self._talk.unanswered()
        if waiting:
            reason += f"; without a reply: {', '.join(waiting[:8])}{' ...' if len(waiting) > 8 else ''}"
        self._sink.event(Event(time_ns=time.time_ns(), connection=self._talk.connection, kind="close", text=reason))

    def _interpose(self, begun: Begun, fds: tuple[Fd, ...]) -> tuple[Fd, ...]:
        """Put ourselves between the two ends of a back-end channel, when that is what the message passes."""
        if begun.code != FrontendRequest.SET_BACKEND_REQ_FD or not fds:
            return fds
        self._channels = {task for task in self._channels if not task.done()}
        if len(self._channels) >= CHANNELS_MAX:
            begun.notes.append(f"not looked into: there are {CHANNELS_MAX} back-end channels already")
            return fds
        try:
            if _is_end_of(fds[0], self._front):
                # To hold it, or to pass it on, would keep the connection alive whose end we wait for. What the
                # back-end would have without us is the other end of its own connection.
                begun.notes.append("the descriptor is the connection itself: passed on as ours to the back-end")
                replaced = Fd(os.dup(self._back.fileno()))
                fds[0].close()
                return (replaced, *fds[1:])
            ours, theirs = socket.socketpair()
        except OSError as error:
            begun.notes.append(f"not looked into: {error.strerror}")
            return fds
        front = _take_socket(fds[0])
        if isinstance(front, str):
            ours.close()
            theirs.close()
            begun.notes.append(f"not looked into: the descriptor {front}")
            return fds
        self._talk.restart_channel()
        self._channels.add(self._group.create_task(self._channel(front, ours)))
        return (Fd(theirs.detach()), *fds[1:])

    async def _channel(self, front: socket.socket, back: socket.socket) -> None:
        with front, back:
            await _both(
                (
                    Relay(back, front, self._talk, Channel.BACKEND, sender=Side.BACK_END),
                    Relay(front, back, self._talk, Channel.BACKEND, sender=Side.FRONT_END),
                )
            )


def _take_socket(fd: Fd) -> socket.socket | str:
    """Return the front-end's end of a back-end channel; or say, in words, why it is none."""
    try:
        taken = socket.socket(fileno=fd.number)
    except OSError:  # asked so, and not by fstat, which waits for whoever serves a file
        return "is no socket"
    misfit = ""
    try:
        taken.getpeername()
        if taken.family != socket.AF_UNIX or taken.type != socket.SOCK_STREAM:
            misfit = "is no unix stream socket"
    except OSError:
        misfit = "is not connected"
    if misfit:
        taken.detach()
        return misfit
    fd.take()
    return taken


def _is_end_of(fd: Fd, accepted: socket.socket) -> bool:
    """Whether a descriptor is the other end of an accepted socket: its peer has the name that was listened on."""
    try:
        looked_at = socket.socket(fileno=fd.number)
    except OSError:
        return False
    try:
        name = looked_at.getpeername()
    except OSError:
        return False
    finally:
        looked_at.detach()
    return bool(name) and name == accepted.getsockname()


async def _both(relays: Sequence[Relay]) -> str:
    """Run both directions until a side has gone, or neither sends any more; say which."""
    tasks = {asyncio.create_task(relay.run()): relay for relay in relays}
    pending = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.result() is End.GONE:
                    return f"the {tasks[task].sender.words} closed"
        return "neither end sends any more"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
