"""S110 to S124: configuration space, and the back-end channel."""

import os
import socket
import struct
import threading
import time

import pytest

from tests.hostile.attack import MIB, alive, attempt, config, guest
from vhostd.driver.frontend import PROTOCOL_FEATURES
from vhostd.driver.hotloop import block_load
from vhostd.protocol.wire import frame_bytes
from vhostd.spec import blk
from vhostd.spec.vhost_user import FLAG_REPLY, VERSION, FrontendRequest, ProtocolFeature

R = FrontendRequest
WCE = blk.ConfigOffset.WRITEBACK

# offset, size, flags, bytes of payload (None: as many as `size`)
BAD_GETS = {
    "S110-wraps": (0xFFFFFFFF, 2, 0, None),
    "S110-wraps-to-zero": (0xFFFFFFF8, 8, 0, None),
    "S110-past-the-space": (256, 1, 0, b"x" * 1),
    "S110-over-the-end": (250, 8, 0, None),
    "S111-empty": (0, 0, 0, None),
    "S111-empty-with-payload": (0, 0, 0, b"x"),
    "S112-257": (0, 257, 0, bytes(256)),
    "S112-65536": (0, 65536, 0, bytes(256)),
    "S112-4-GiB": (0, 0xFFFFFFFF, 0, bytes(60)),
    "S113-less-than-told": (0, 60, 0, bytes(8)),
    "S113-more-than-told": (0, 8, 0, bytes(60)),
    "S113-nothing": (0, 60, 0, b""),
    "S114-flags-2": (0, 8, 2, None),
    "S114-flags": (0, 8, 0xFFFFFFFF, None),
}


@pytest.mark.parametrize("name", [n for n in BAD_GETS if n != "S110-past-the-space"])
def test_configuration_space_is_read_impossibly(target, name):
    """S110 to S114: an empty reply, and the connection goes on."""
    with guest(target) as bad:
        assert bad.attempt(R.GET_CONFIG, config(*BAD_GETS[name])) == "refused"
        assert struct.unpack_from("<Q", bad.frontend.config()) == (len(target.content) // 512,)
        assert bad.reads()


BAD_SETS = {
    "S110-wraps": (0xFFFFFFFF, 2, 0, None),
    "S111-empty": (0, 0, 0, None),
    "S112-whole-message": (0, 256, 0, None),
    "S113-less-than-told": (WCE, 1, 0, b""),
    "S113-more-than-told": (WCE, 1, 0, b"\1\1"),
    "S114-flags": (WCE, 1, 7, b"\1"),
    "S115-capacity": (0, 8, 0, b"\xff" * 8),
    "S115-blk-size": (20, 4, 0, struct.pack("<I", 4096)),
    "S115-around-writeback": (WCE - 1, 3, 0, b"\1\1\1"),
    "S115-num-queues": (34, 2, 0, b"\1\0"),
    "S115-all": (0, 60, 0, bytes(60)),
    "S116-writeback-2": (WCE, 1, 0, b"\2"),
    "S116-writeback-255": (WCE, 1, 0, b"\xff"),
}


@pytest.mark.parametrize("name", BAD_SETS)
def test_configuration_space_is_written_impossibly(target, name):
    """S110 to S116: only the writeback byte is the driver's to write, 0 or 1; and no byte has changed."""
    with guest(target) as bad:
        before = bad.frontend.config()
        assert bad.attempt(R.SET_CONFIG, config(*BAD_SETS[name])) == "refused"
        assert bad.frontend.config() == before
        assert bad.reads()
        assert bad.attempt(R.SET_CONFIG, config(*BAD_SETS[name]), ack=False) == "closed"


def test_writeback_without_its_feature(target):
    """S116: CONFIG_WCE was not acknowledged."""
    with guest(target, "memory", features=~int(blk.Feature.CONFIG_WCE) & (1 << 64) - 1 & ~(1 << 26 | 1 << 34)) as bad:
        assert bad.attempt(R.SET_CONFIG, config(WCE, 1, 0, b"\1")) == "refused"


def test_configuration_space_without_its_feature(target):
    """S110: CONFIG was not negotiated."""
    with guest(target, "negotiated", protocol=PROTOCOL_FEATURES & ~ProtocolFeature.CONFIG) as bad:
        assert bad.attempt(R.GET_CONFIG, config(0, 60)) == "closed"


def test_ten_thousand_reads_of_configuration_space(target):
    """S110: nothing piles up."""
    with guest(target, "negotiated") as odd:
        message = frame_bytes(R.GET_CONFIG, VERSION, config(0, 60))
        for _ in range(100):
            odd.frontend.send_bytes(message * 20)
            for _ in range(20):
                assert len(odd.frontend.receive().payload) == 72


@pytest.mark.writes
def test_writeback_is_toggled_under_load(target):
    """B52, S145: from then on each write is durable first; no request is lost."""
    with guest(target, memory_len=16 * MIB) as odd:
        result = []
        load = threading.Thread(
            target=lambda: result.append(
                block_load(
                    odd.queue, depth=8, block_len=4096, disk_len=4 * MIB, write_percent=50, duration_ns=400_000_000
                )
            )
        )
        load.start()
        turns = 0
        while load.is_alive():
            odd.frontend.set_config(WCE, bytes([turns % 2]))
            turns += 1
        load.join()
        assert (result[0].errors, result[0].short) == (0, 0)
        assert turns > 4
        odd.frontend.set_config(WCE, b"\1")


# The back-end channel: a ring that breaks makes the device speak on it (2.1.2).


def break_ring(bad, index=0):
    """Break a ring, so that the device needs a reset and says so."""
    queue = bad.queues[index]
    queue.avail_idx = (queue.avail_idx + 1000) % 65536
    os.eventfd_write(queue.kick_fd.number, 1)
    assert bad.broke(index)


def give_channel(bad, end):
    assert bad.attempt(R.SET_BACKEND_REQ_FD, b"", [end.fileno()]) == "done"


def test_a_back_channel_whose_peer_has_gone(target):
    """S120: what cannot be told is not told; the rest goes on."""
    with guest(target, queues=2) as bad:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.close()
            give_channel(bad, theirs)
        break_ring(bad)
        assert bad.reads(1)


def test_a_back_channel_that_nobody_reads(target):
    """S122: full from the beginning: the device does not wait for room."""
    with guest(target, queues=4) as bad:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    theirs.send(b"x" * 4096)
            give_channel(bad, theirs)
            for index in range(3):
                break_ring(bad, index)
            began = time.monotonic()
            assert bad.reads(3)
            assert time.monotonic() - began < 2


@pytest.mark.parametrize("what", ["bogus", "reply", "request", "fds"], ids="S123-{}".format)
def test_a_back_channel_that_talks(target, what):
    """S123, S124: nothing is asked there that wants an answer, so nothing said there is heard, or held."""
    with guest(target, queues=2) as bad:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            said = {
                "bogus": b"\xff" * 4096,
                "reply": frame_bytes(2, VERSION | FLAG_REPLY, bytes(8)) * 50,
                "request": frame_bytes(R.SET_MEM_TABLE, VERSION, bytes(40)) * 50,
                "fds": b"x",
            }[what]
            socket.send_fds(ours, [said], [ours.fileno()] * 8 if what == "fds" else [])
            give_channel(bad, theirs)
            break_ring(bad)
            assert bad.reads(1)


def test_a_back_channel_in_non_blocking_mode_and_back(target):
    """S122: the mode belongs to the open file, so that a front-end can make ours block; we do not wait."""
    with guest(target, queues=4) as bad:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    theirs.send(b"x" * 4096)
            give_channel(bad, theirs)
            theirs.setblocking(True)
            for index in range(3):
                break_ring(bad, index)
            assert alive(bad.frontend)
            assert bad.reads(3)


def test_two_hundred_back_channels(target):
    """S121: each replaces the one before, which is closed."""
    with guest(target) as odd:
        for _ in range(200):
            ours, theirs = socket.socketpair()
            with theirs:
                give_channel(odd, theirs)
            odd.frontend.channel.close()
            odd.frontend.channel._socket = ours
        assert odd.reads()


def test_a_message_of_the_main_connection_on_the_channel(target):
    """S123: and a message of the channel on the main connection."""
    with guest(target) as bad:
        assert attempt(bad.frontend, 45, bytes(8)) == "refused"
        assert bad.reads()
