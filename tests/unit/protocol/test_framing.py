"""A stream of bytes and descriptors to whole frames."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostd.errors import LocalProtocolError, RemoteProtocolError
from vhostd.fds import Fd
from vhostd.protocol.framing import Frame, Framer
from vhostd.protocol.wire import frame_bytes

FRAMES = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=300))


def pipe_fd():
    """A descriptor that can be seen to be closed."""
    read, write = os.pipe()
    os.close(write)
    return Fd(read)


def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@given(frames=st.lists(FRAMES, min_size=1, max_size=5), data=st.data())
@settings(max_examples=150)
def test_frames_come_out_whole_under_any_split(frames, data):
    """S7, S9, S10: byte by byte, in two writes, many in one write: the same frames in the same order."""
    stream = b"".join(frame_bytes(*f) for f in frames)
    framer = Framer()
    got = []
    while stream:
        n = data.draw(st.integers(1, min(framer.wanted, len(stream))))
        frame = framer.feed(stream[:n])
        stream = stream[n:]
        if frame:
            got.append((frame.request, frame.flags, frame.payload))
            assert not framer.mid_message
    assert got == frames


def test_wanted_never_reaches_into_the_next_message():
    """S11: a descriptor belongs to the message whose bytes it came with, so no read crosses a border."""
    framer = Framer()
    assert framer.wanted == 12
    header = frame_bytes(5, 1, b"x" * 40)[:12]
    assert framer.feed(header[:5]) is None
    assert framer.wanted == 7
    assert framer.feed(header[5:]) is None
    assert framer.wanted == 40
    assert framer.mid_message
    frame = framer.feed(b"x" * 40)
    assert frame == Frame(5, 1, b"x" * 40, ())
    assert framer.wanted == 12
    assert not framer.mid_message


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_cut_message_is_seen(cut):
    """S6, S8: the end of the stream at each byte of a message is told from an end between two."""
    framer = Framer()
    message = frame_bytes(8, 1, b"\0" * 8)
    for i in range(cut):
        assert framer.feed(message[i : i + 1]) is None
    assert framer.mid_message


@pytest.mark.parametrize("size", [2057, 4096, 65536, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_beyond_all_messages_is_fatal(size):
    """S3: the body is not read and nothing is allocated from the length."""
    framer = Framer()
    fd = pipe_fd()
    number = fd.number
    with pytest.raises(RemoteProtocolError, match=str(size)) as caught:
        framer.feed((1).to_bytes(4, "little") + (1).to_bytes(4, "little") + size.to_bytes(4, "little"), (fd,))
    assert caught.value.fatal
    assert not is_open(number)


def test_descriptors_go_with_their_message():
    """S11: those of the first bytes, and those that a slow sender attaches to later ones."""
    framer = Framer()
    a, b, c = pipe_fd(), pipe_fd(), pipe_fd()
    message = frame_bytes(5, 1, b"x" * 8)
    assert framer.feed(message[:1], (a,)) is None
    assert framer.feed(message[1:12], (b,)) is None
    frame = framer.feed(message[12:])
    assert frame.fds == (a, b)
    assert framer.feed(message[:12], (c,)) is None
    assert framer.feed(message[12:]).fds == (c,)
    frame.close_fds()
    assert a.closed
    assert b.closed
    assert not c.closed


def test_a_dropped_message_closes_its_descriptors():
    """S34: a message that is never whole leaks nothing."""
    framer = Framer()
    fd = pipe_fd()
    number = fd.number
    framer.feed(b"\1", (fd,))
    framer.close()
    assert not is_open(number)
    assert not framer.mid_message


def test_more_bytes_than_wanted_is_our_own_mistake():
    """`feed` takes at most `wanted` bytes; what came with them is closed."""
    framer = Framer()
    fd = pipe_fd()
    number = fd.number
    with pytest.raises(LocalProtocolError):
        framer.feed(b"\0" * 13, (fd,))
    assert not is_open(number)


def test_the_flags_of_a_frame():
    """vhost-user, "Header": bit 2 reply, bit 3 need_reply."""
    assert Frame(1, 0b0101).is_reply
    assert not Frame(1, 0b0101).need_reply
    assert Frame(1, 0b1001).need_reply
