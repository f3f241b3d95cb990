"""A front-end that does nothing but the messages of one life: connect, negotiate, start, stop, disconnect."""

import os
import select
import socket
import struct

from tests.hostile.attack import MIB, addr, frame, header, state, table, u64
from tests.hostile.streams import FEATURES, PROTOCOL
from vhostd.driver.arena import Arena, Region
from vhostd.driver.virtqueue import Virtqueue
from vhostd.spec.blk import Request
from vhostd.spec.vhost_user import FrontendRequest

R = FrontendRequest
REGION = Region(0x1000_0000, MIB, uva=0x7F00_0000_0000)
REPLY_LEN = 12 + 8


class Lean:
    """Everything is made once; a cycle is a few system calls."""

    def __init__(self, stack, path):
        self.path = os.fspath(path)
        self.arena = stack.enter_context(Arena([REGION]))
        self.queue = Virtqueue(self.arena, 64, event_idx=True)
        stack.callback(self.queue.close)
        desc, avail, used = self.queue.uvas
        self.at = self.arena.alloc(1024)
        self.arena.write(self.at, header(Request.IN, 0))
        self.hello = b"".join(
            [
                frame(R.GET_FEATURES),
                frame(R.GET_PROTOCOL_FEATURES),
                frame(R.SET_PROTOCOL_FEATURES, u64(PROTOCOL)),
                frame(R.SET_OWNER),
                frame(R.SET_FEATURES, u64(FEATURES)),
            ]
        )
        self.memory = frame(R.SET_MEM_TABLE, table((REGION.gpa, REGION.length, REGION.front_uva, 0)))
        self.geometry = frame(R.SET_VRING_NUM, state(0, 64)) + frame(R.SET_VRING_ADDR, addr(0, desc, used, avail))
        self.call = frame(R.SET_VRING_CALL, u64(0))
        self.err = frame(R.SET_VRING_ERR, u64(0))
        self.kick = frame(R.SET_VRING_KICK, u64(0)) + frame(R.SET_VRING_ENABLE, state(0, 1))
        self.stop = frame(R.GET_VRING_BASE, state(0))

    def cycle(self, *, read=True):
        """One life of a front-end, with a read of a sector or without."""
        queue = self.queue
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.path)
            base = frame(R.SET_VRING_BASE, state(0, queue.last_used))
            connection.sendall(self.hello)
            socket.send_fds(connection, [self.memory + self.geometry + base], [self.arena.fd(REGION)])
            socket.send_fds(connection, [self.call], [queue.call_fd.number])
            socket.send_fds(connection, [self.err], [queue.err_fd.number])
            if read:
                queue.add([(self.at, 16)], [(self.at + 16, 512), (self.at + 528, 1)])
                queue.arm()
                queue.publish()
            socket.send_fds(connection, [self.kick], [queue.kick_fd.number])
            if read:
                while not queue.reap():
                    assert select.select([queue.call_fd.number], [], [], 5)[0], "no call"
                    queue.take_call()
            connection.sendall(self.stop)
            got = b""
            while len(got) < 3 * REPLY_LEN:
                part = connection.recv(3 * REPLY_LEN - len(got))
                assert part, "the device closed the connection"
                got += part
            assert struct.unpack("<II", got[-8:]) == (0, queue.last_used)
