"""proxy/relay: whatever the stream and however it is cut, the far end gets those bytes and those descriptors."""

import asyncio
import os
import random
import socket

import pytest

from tests.support.proxy import Kept
from vhostd.fds import close_all, receive
from vhostd.protocol.wire import frame_bytes
from vhostd.proxy.conversation import Conversation
from vhostd.proxy.faults import Faults
from vhostd.proxy.record import Channel, Side
from vhostd.proxy.relay import End, Relay


def stream(rng):
    """A stream of messages, valid and not, perhaps cut short or with junk at its end."""
    data = b""
    for _ in range(rng.randrange(1, 12)):
        payload = rng.randbytes(rng.choice([0, 0, 8, 8, 40, 264, 3000]))
        data += frame_bytes(rng.choice([1, 2, 5, 12, 24, 77, 0xFFFFFFFF]), rng.choice([1, 5, 9, 0, 0xFFFF]), payload)
    tail = rng.choice(["none", "junk", "half"])
    if tail == "junk":
        data += b"\xff" * 12 + rng.randbytes(rng.randrange(2000))
    elif tail == "half":
        data = data[: rng.randrange(1, len(data))]
    return data


async def carry(data, pieces):
    """Pass `data`, cut in (bytes, eventfds) pieces, through a relay; what came out: bytes, counters, what was seen."""
    near, source = socket.socketpair()
    sink, far = socket.socketpair()
    kept = Kept()
    talk = Conversation(1, kept, Faults())
    with near, source, sink, far:
        for one in (near, far):
            one.setblocking(False)
        task = asyncio.create_task(Relay(source, sink, talk, Channel.MAIN, sender=Side.FRONT_END).run())
        for piece, fds in pieces:
            socket.send_fds(near, [piece], fds)
            await asyncio.sleep(0)
        near.shutdown(socket.SHUT_WR)
        out, counters = b"", []
        while True:
            try:
                more, fds, lost = receive(far, 65536, 253)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            assert not lost
            counters += [os.eventfd_read(fd.number) for fd in fds]
            close_all(fds)
            if not more:
                break
            out += more
        assert await task is End.HALF
    assert out == data
    return counters, kept


@pytest.mark.parametrize("seed", range(60))
async def test_bytes_and_descriptors_come_out_as_they_went_in(seed):
    """S9, S10: any cut of the stream, descriptors on any piece: all arrive, in order, and all of it is seen."""
    rng = random.Random(seed)
    data = stream(rng)
    pieces, at, number = [], 0, 0
    made = []
    while at < len(data):
        length = rng.choice([1, 3, 12, 20, 100, 4096])
        fds = []
        for _ in range(rng.choice([0, 0, 0, 1, 2, 9])):
            number += 1
            fds.append(os.eventfd(number))
        pieces.append((data[at : at + length], fds))
        made += fds
        at += length
    counters, kept = await carry(data, pieces)
    assert counters == list(range(1, number + 1))
    assert b"".join(record.data for record in kept.records) == data
    assert sum(len(record.fds) for record in kept.records) == number
    for fd in made:
        os.close(fd)


async def test_more_descriptors_in_two_pieces_than_go_at_once():
    """S18: SCM_MAX_FD bounds a sendmsg, and a message may come in pieces with that many each."""
    event = os.eventfd(400, os.EFD_SEMAPHORE)
    data = frame_bytes(2, 1, bytes(8))
    counters, kept = await carry(data, [(data[:6], [event] * 200), (data[6:], [event] * 200)])
    os.close(event)
    assert counters == [1] * 400
    assert kept.records[0].fds == ("eventfd",) * 400
