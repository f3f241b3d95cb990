"""The second socket, on which we ask the front-end: for now, to look at the configuration space again."""

import contextlib
import os
import socket

from vhostd.devices.eventfds import is_pipe_to_write
from vhostd.errors import RemoteProtocolError
from vhostd.fds import Fd
from vhostd.protocol import wire
from vhostd.spec import vhost_user as spec


class BackChannel:
    """Our end of the back-end channel. Nothing waits for it: what it cannot take at once is not sent.

    Each call says so itself: the open file is the front-end's, too, and so is its O_NONBLOCK.

    It may not become what keeps the connection alive whose end would close it. So the front-end's own end of that
    connection, which has `main_name` as the name of its peer, is refused, and nothing can be sent to us: a descriptor
    of it could lie unread in our queue. We ask for no replies, so the write end of a pipe does as well: User-Mode Linux
    sends one.
    Raises RemoteProtocolError when the descriptor is neither that nor a connected unix stream socket, or that one.
    Spec: vhost-user, "Back-end communication".
    """

    def __init__(self, fd: Fd, main_name: str | bytes) -> None:
        self._pipe: Fd | None = None
        self._socket: socket.socket | None = None
        if is_pipe_to_write(fd):
            self._pipe = Fd(fd.take())
            return
        try:
            taken = socket.socket(fileno=fd.number)
        except OSError:  # asked so, and not by fstat, which waits for whoever serves a file
            misfit = "is not a socket"
        else:
            misfit = _misfit(taken, main_name)
            if misfit:
                taken.detach()
        if misfit:
            raise RemoteProtocolError(f'SET_BACKEND_REQ_FD: the fd {misfit} (vhost-user, "Back-end communication")')
        fd.take()
        with contextlib.suppress(OSError):
            while taken.recv(4096, socket.MSG_DONTWAIT):  # what was sent before that
                pass
        self._socket = taken

    def config_changed(self) -> bool:
        """Send CONFIG_CHANGE_MSG. Whether it went out."""
        frame = wire.frame_bytes(int(spec.BackendRequest.CONFIG_CHANGE_MSG), spec.VERSION, b"")
        try:
            if self._pipe is not None:  # a write this short goes in whole or not at all
                return os.pwritev(self._pipe.number, [frame], -1, os.RWF_NOWAIT) == len(frame)
            if self._socket is not None:
                return self._socket.send(frame, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT) == len(frame)
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close it."""
        if self._pipe is not None:
            self._pipe.close()
        if self._socket is not None:
            self._socket.close()


def _misfit(taken: socket.socket, main_name: str | bytes) -> str:
    """Say why a socket cannot be the back-end channel; nothing for one that can, to which nothing can be sent now."""
    if taken.family != socket.AF_UNIX or taken.type != socket.SOCK_STREAM:
        return "is not a unix stream socket"
    try:
        name = taken.getpeername()
        if name and name == main_name:
            return "is the connection itself"
        taken.shutdown(socket.SHUT_RD)
    except OSError as error:
        return f"is not connected: {error.strerror}"
    return ""
