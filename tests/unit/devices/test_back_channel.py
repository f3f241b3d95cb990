"""The back-end's own channel: a socket, or the write end of a pipe, and never anything that is waited for."""

import contextlib
import os
import socket
import struct

import pytest

from vhostd.devices.back_channel import BackChannel
from vhostd.devices.eventfds import is_pipe_to_write
from vhostd.errors import RemoteProtocolError
from vhostd.fds import Fd
from vhostd.spec.vhost_user import BackendRequest

CHANGED = struct.pack("<III", BackendRequest.CONFIG_CHANGE_MSG, 1, 0)


def test_a_pipe_carries_what_we_say():
    """Vhost-user, "Back-end communication": nothing is asked that would need an answer, so a pipe will do."""
    read, write = os.pipe()
    channel = BackChannel(Fd(write), "")
    assert channel.config_changed()
    assert os.read(read, 100) == CHANGED
    channel.close()
    assert os.read(read, 100) == b""
    os.close(read)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_full_pipe_is_not_waited_for(blocking):
    """R77: whatever mode the front-end gave it."""
    read, write = os.pipe2(os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    os.set_blocking(write, blocking)
    channel = BackChannel(Fd(write), "")
    assert not channel.config_changed()
    os.close(read)
    assert not channel.config_changed()
    channel.close()


def test_only_the_end_that_can_be_written():
    """S120: not the read end, not a file, not /dev/null."""
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_WRONLY)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for number, taken in ((write, True), (read, False), (null, False), (ours.fileno(), False)):
            with Fd(os.dup(number)) as fd:
                assert is_pipe_to_write(fd) is taken
        with pytest.raises(RemoteProtocolError, match="is not a socket"):
            BackChannel(Fd(os.dup(read)), "")
        channel = BackChannel(Fd(os.dup(theirs.fileno())), "")
        assert channel.config_changed()
        assert ours.recv(100) == CHANGED
        channel.close()
    for number in (read, write, null):
        os.close(number)
