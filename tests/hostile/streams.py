"""The orders in which front-ends really start a disk, as bytes and descriptors, and what an attacker makes of them."""

import contextlib
import os
import random
import socket
import struct

from tests.hostile.attack import MIB, frame, header, raw
from tests.hostile.fds import kind
from vhostd.driver.arena import Arena, Region
from vhostd.driver.profiles import PROFILES, Ring, Scene
from vhostd.driver.virtqueue import Virtqueue
from vhostd.protocol.messages import MemRegion
from vhostd.spec import blk
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, VERSION, FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature

R = FrontendRequest
RINGS = 4
REGIONS = (Region(0x1000_0000, MIB, uva=0x7F00_0000_0000), Region(0x2000_0000, MIB, uva=0x7F10_0000_0000))
FEATURES = int(
    Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.INDIRECT_DESC | Feature.EVENT_IDX | blk.Feature.FLUSH
)
PROTOCOL = 0x1A229  # MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS
NUMBERS = [0, 1, 2, 3, 4, 7, 8, 63, 64, 127, 128, 255, 256, 257, 512, 4095, 4096, 32768, 65535, 65536, 2**31 - 1, 2**31,
           2**32 - 1, 2**32, 2**55 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 16, 2**64 - 1]  # fmt: skip


class Material:
    """What streams speak of: memory with four rings in it, each with requests waiting, and descriptors by name."""

    def __init__(self, stack):
        self.arena = stack.enter_context(Arena(REGIONS, seal=False))
        self.queues = []
        for index in range(RINGS):
            queue = Virtqueue(self.arena, 64, event_idx=True, indirect=bool(index & 1))
            stack.callback(queue.close)
            self.queues.append(queue)
            for n in range(8):
                at = self.arena.alloc(16 + 4096 + 1)
                kind_ = (blk.Request.IN, blk.Request.GET_ID, blk.Request.FLUSH, 0x1234)[n % 4]
                self.arena.write(at, header(kind_, n))
                queue.add([(at, 16)], [(at + 16, 4096), (at + 4112, 1)])
            queue.publish()
        self.fds = {
            "region0": self.arena.fd(REGIONS[0]),
            "region1": self.arena.fd(REGIONS[1]),
            **{f"{name}{n}": getattr(q, f"{name}_fd").number for n, q in enumerate(self.queues)
               for name in ("kick", "call", "err")},
        }  # fmt: skip
        for name in ("pipe-read-end", "file", "dev-null", "memfd", "epoll-ready", "eventfd-full", "socket"):
            self.fds[name] = stack.enter_context(kind(name))
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        stack.enter_context(theirs)
        self.fds["channel"] = theirs.fileno()


def orders(queues):
    """Front-ends by name: lists of (request, payload, descriptors by name, need_reply) of a disk's whole life."""
    regions = [MemRegion(region.gpa, region.length, region.front_uva, 0) for region in REGIONS]
    found = {}
    for name, profile in PROFILES.items():
        if "block" not in profile.orders:
            continue
        rings = [Ring(q.size, *(q.uvas[n] for n in (0, 2, 1)), q.used_gpa, lambda: 0, lambda: 0) for q in queues]
        scene = Scene(profile, "block", rings, regions, RINGS)
        # Nobody waits for an answer, so what is offered is said beforehand.
        scene.features, scene.protocol_offered = FEATURES & int(profile.features["block"]), ProtocolFeature(PROTOCOL)
        life = profile.orders["block"]
        steps = life.connect + life.start + (life.pause or ()) + (life.resume or ()) + (life.reset or life.stop)
        found[name] = [(s.request, s.payload, s.fds, s.need_reply) for s in scene.plan(steps)]
    return found


def mutate(messages, dice, fd_names):
    """A copy of a stream with one to six things wrong."""
    stream = [list(message) for message in messages]
    if dice.randrange(4):  # what is refused is answered then, and the stream goes on
        for message in stream:
            message[3] = True
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(stream))
        victim = stream[at]
        choice = dice.randrange(11)
        if choice == 0:
            del stream[at]
            stream = stream or [[R.GET_FEATURES, b"", (), False]]
        elif choice == 1:
            stream.insert(at, list(dice.choice(stream)))
        elif choice == 2:
            other = dice.randrange(len(stream))
            stream[at], stream[other] = stream[other], stream[at]
        elif choice == 3:
            victim[0] = dice.choice([*R, 0, 45, 2**32 - 1])
        elif choice == 4 and victim[1]:
            where = dice.randrange(len(victim[1]))
            victim[1] = victim[1][:where] + bytes([dice.randrange(256)]) + victim[1][where + 1 :]
        elif choice == 5 and len(victim[1]) >= 8:
            where = 8 * dice.randrange(len(victim[1]) // 8)
            victim[1] = victim[1][:where] + struct.pack("<Q", dice.choice(NUMBERS)) + victim[1][where + 8 :]
        elif choice == 6 and len(victim[1]) >= 4:
            where = 4 * dice.randrange(len(victim[1]) // 4)
            number = dice.choice(NUMBERS) & 0xFFFFFFFF
            victim[1] = victim[1][:where] + struct.pack("<I", number) + victim[1][where + 4 :]
        elif choice == 7:
            victim[1] = victim[1][: dice.randrange(len(victim[1]) + 1)] + bytes(dice.choice([0, 1, 4, 8, 32]))
        elif choice == 8:
            victim[2] = tuple(dice.choice(fd_names) for _ in range(dice.choice([0, 1, 1, 2, 8, 9])))
        elif choice == 9:
            victim[3] = not victim[3]
        else:
            stream.insert(at, [dice.choice(list(R)), dice.randbytes(dice.choice([0, 8, 16, 40])), (), True])
    return stream


def play(target, material, stream, dice=None):
    """Send a stream without waiting for anything, kick now and then, close, and see the device close, too."""
    dice = dice or random.Random(0)
    with raw(target) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for request, payload, names, ack in stream:
                flags = VERSION | (FLAG_NEED_REPLY if ack else 0)
                fds = [material.fds[name] for name in names]
                data = frame(int(request), payload, flags)
                if fds:
                    socket.send_fds(connection, [data], fds)
                else:
                    connection.sendall(data)
                if dice.randrange(4) == 0:
                    kick = material.queues[dice.randrange(RINGS)].kick_fd.number
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_write(kick, 1)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):
                pass
