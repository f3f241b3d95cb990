"""The second socket, on which we ask the front-end: for now, to look at the configuration space again."""

import contextlib
import os
import socket
import stat

from vhostd.errors import RemoteProtocolError
from vhostd.fds import Fd
from vhostd.protocol import wire
from vhostd.spec import vhost_user as spec


class BackChannel:
    """Our end of the back-end channel. Nothing waits for it: what it cannot take at once is not sent.

    Raises RemoteProtocolError when the descriptor is no stream socket.
    Spec: vhost-user, "Back-end communication".
    """

    def __init__(self, fd: Fd) -> None:
        if not stat.S_ISSOCK(os.fstat(fd.number).st_mode):
            raise RemoteProtocolError(
                'SET_BACKEND_REQ_FD: the fd is not a socket (vhost-user, "Back-end communication")'
            )
        self._socket = socket.socket(fileno=fd.take())
        self._socket.setblocking(False)

    def config_changed(self) -> bool:
        """Send CONFIG_CHANGE_MSG. Whether it went out."""
        frame = wire.frame_bytes(int(spec.BackendRequest.CONFIG_CHANGE_MSG), spec.VERSION, b"")
        with contextlib.suppress(OSError):
            # What the front-end may have said to an earlier one is of no interest, but must not pile up.
            self._socket.recv(4096, socket.MSG_DONTWAIT)
        try:
            return self._socket.send(frame, socket.MSG_NOSIGNAL) == len(frame)
        except OSError:
            return False

    def close(self) -> None:
        """Close it."""
        self._socket.close()
