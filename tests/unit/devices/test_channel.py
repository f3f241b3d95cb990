"""The socket: bytes and fds, in bounded time (HOSTILE S6-S11, S14, S30, S150)."""

import array
import asyncio
import os
import socket
import struct
import time

import pytest

from vhostd.devices import channel as channels
from vhostd.devices.channel import Channel
from vhostd.errors import RemoteProtocolError


def message(request, payload=b"", flags=1):
    return struct.pack("<III", request, flags, len(payload)) + payload


@pytest.fixture
async def pair():
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


async def test_a_message_comes_whole(pair):
    channel, theirs = pair
    theirs.sendall(message(2, b"12345678"))
    frame = await channel.receive()
    assert (frame.request, frame.payload) == (2, b"12345678")


async def test_s7_byte_by_byte(pair):
    """HOSTILE S7, S9: a stream has no borders."""
    channel, theirs = pair
    receiving = asyncio.ensure_future(channel.receive())
    for byte in message(2, b"12345678"):
        theirs.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await receiving).payload == b"12345678"


async def test_s10_many_in_one_write(pair):
    """HOSTILE S10: in order."""
    channel, theirs = pair
    theirs.sendall(b"".join(message(i) for i in range(1, 101)))
    assert [(await channel.receive()).request for _ in range(100)] == list(range(1, 101))


async def test_s11_fds_stay_with_their_message(pair):
    """HOSTILE S11: what came with a message's bytes is that message's; close-on-exec, from the start."""
    channel, theirs = pair
    read, write = os.pipe()
    theirs.sendall(message(3))
    socket.send_fds(theirs, [message(12, b"12345678")], [read])
    theirs.sendall(message(1))
    first, second, third = [await channel.receive() for _ in range(3)]
    assert (len(first.fds), len(second.fds), len(third.fds)) == (0, 1, 0)
    assert not os.get_inheritable(second.fds[0].number)
    second.close_fds()
    os.close(read)
    os.close(write)


async def test_the_end_between_two_messages_is_an_end(pair):
    channel, theirs = pair
    theirs.close()
    assert await channel.receive() is None


@pytest.mark.parametrize("cut", [*range(1, 12), 12, 15, 19])
async def test_s6_the_end_in_a_message_is_an_error(pair, cut):
    """HOSTILE S6, S8."""
    channel, theirs = pair
    theirs.send(message(2, b"12345678")[:cut])
    theirs.close()
    with pytest.raises(RemoteProtocolError) as caught:
        await channel.receive()
    assert caught.value.fatal


async def test_s150_half_a_message_times_out(pair, monkeypatch):
    """HOSTILE S150: bounded from the first byte, however the rest trickles; S151: silence before it is not."""
    monkeypatch.setattr(channels, "MESSAGE_S", 0.05)
    channel, theirs = pair
    receiving = asyncio.ensure_future(channel.receive())
    await asyncio.sleep(0.15)
    assert not receiving.done()
    theirs.send(message(2, b"12345678")[:5])
    with pytest.raises(RemoteProtocolError, match="half a message"):
        await receiving


async def test_s14_a_reply_that_nobody_reads_times_out(pair, monkeypatch):
    """HOSTILE S14: bounded output, bounded wait."""
    monkeypatch.setattr(channels, "REPLY_S", 0.05)
    channel, _ = pair
    with pytest.raises(RemoteProtocolError, match="has not read"):
        for _ in range(10_000):
            await channel.send(message(1, b"x" * 4096))


async def test_s15_a_peer_that_has_gone_is_an_error_not_a_signal(pair):
    """HOSTILE S15: no SIGPIPE."""
    channel, theirs = pair
    theirs.close()
    with pytest.raises(RemoteProtocolError, match="has gone"):
        await channel.send(message(1))


@pytest.mark.parametrize("count", [65, 200, 253])
async def test_s30_more_fds_than_there_is_room_for(pair, count):
    """HOSTILE S30: closed, all of them, with the connection."""
    channel, theirs = pair
    before = len(os.listdir("/proc/self/fd"))
    fd = os.open("/dev/null", os.O_RDONLY)
    theirs.sendmsg([message(3)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * count))])
    with pytest.raises(RemoteProtocolError, match="more fds"):
        await channel.receive()
    os.close(fd)
    until = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) != before:  # by a thread of their own: what they are is not known
        assert time.monotonic() < until
        os.sched_yield()


async def test_s3_a_length_that_cannot_be_is_refused_before_it_is_read(pair):
    """HOSTILE S3: no allocation from the size field."""
    channel, theirs = pair
    theirs.send(struct.pack("<III", 2, 1, 0xFFFFFFFF))
    with pytest.raises(RemoteProtocolError) as caught:
        await channel.receive()
    assert caught.value.fatal


async def test_the_peer_is_known(pair):
    channel, _ = pair
    assert channel.peer() == (os.getpid(), os.getuid(), os.getgid())


async def test_a_hung_up_peer_is_noticed_without_reading(pair):
    """HOSTILE S160: a half-dead first front-end does not keep the next one out."""
    channel, theirs = pair
    assert not channel.hung_up()
    theirs.send(b"x")
    assert not channel.hung_up()
    theirs.close()
    await channel._readable(None)
    assert channel.hung_up()  # though a byte is left: its session reads that, and ends
