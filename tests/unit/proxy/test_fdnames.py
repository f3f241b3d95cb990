"""proxy/fdnames: what a descriptor is, without waiting for it."""

import os
import select
import socket

from vhostd.proxy.fdnames import describe


def test_each_kind_has_its_name(tmp_path):
    memory = os.memfd_create("guest ram")
    os.ftruncate(memory, 16 << 20)
    left, right = socket.socketpair()
    read_end, write_end = os.pipe()
    event, poller = os.eventfd(0), select.epoll()
    path = tmp_path / "image"
    path.write_bytes(b"x" * 4096)
    file = os.open(path, os.O_RDONLY)
    try:
        assert describe(memory) == "memfd:guest ram 16MiB"
        assert describe(event) == "eventfd"
        assert describe(left.fileno()) == "socket"
        assert describe(read_end) == "pipe"
        assert describe(poller.fileno()) == "eventpoll"
        assert describe(file).startswith(str(path))
    finally:
        for number in (memory, event, read_end, write_end, file):
            os.close(number)
        poller.close()
        left.close()
        right.close()
    assert describe(event) == "closed"


def test_a_descriptor_that_never_answers_does_not_hold_it_up(tmp_path):
    """A FIFO nobody opens for writing, as an end that hangs whoever reads it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    number = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert describe(number) == str(fifo)
    finally:
        os.close(number)
