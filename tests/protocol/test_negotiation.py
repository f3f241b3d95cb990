"""The connection phase: features, configuration space, and what a back-end may and may not offer."""

import contextlib
import struct
import time

import pytest

from tests.protocol.conftest import IMAGE_LEN, open_fds, vhostd_only
from vhostd.driver.frontend import Frontend
from vhostd.errors import DeviceGone
from vhostd.protocol.messages import U64, VringFd
from vhostd.protocol.wire import encode
from vhostd.spec import blk, virtio
from vhostd.spec.vhost_user import FLAG_NEED_REPLY, VERSION, FrontendRequest, ProtocolFeature


@pytest.fixture
def frontend(disk):
    with Frontend.connect(disk.socket) as frontend:
        frontend.negotiate()
        yield frontend


def test_what_every_block_back_end_offers(frontend):
    """Virtio 6, 5.2.3: a modern device with configuration space, flush and both ways to save descriptors and kicks."""
    for feature in (virtio.Feature.VERSION_1, virtio.Feature.PROTOCOL_FEATURES, virtio.Feature.INDIRECT_DESC):
        assert frontend.offered & feature, feature
    for feature in (virtio.Feature.EVENT_IDX, blk.Feature.FLUSH, blk.Feature.SEG_MAX, blk.Feature.BLK_SIZE):
        assert frontend.offered & feature, feature
    for bit in (ProtocolFeature.CONFIG, ProtocolFeature.MQ, ProtocolFeature.REPLY_ACK):
        assert frontend.protocol_offered & bit, bit


@vhostd_only("qsd 7.2 offers INBAND_NOTIFICATIONS")
def test_what_a_back_end_must_not_offer_to_qemu(disk):
    """FEATURES 1.4, quirks 1 and 18: QEMU acknowledges these and does not do them."""
    with Frontend.connect(disk.socket) as frontend:
        frontend.negotiate()
        assert not frontend.protocol_offered & (ProtocolFeature.INBAND_NOTIFICATIONS | ProtocolFeature.XEN_MMAP)
        assert not frontend.offered & virtio.Feature.RING_RESET


def test_features_are_the_same_each_time(frontend):
    """GET_FEATURES is QEMU's barrier: cheap, and at any time."""
    for _ in range(3):
        assert frontend.ask_u64(FrontendRequest.GET_FEATURES) == frontend.offered


def test_capacity_is_the_images(frontend):
    """5.2.4: capacity in sectors of 512 bytes."""
    config = frontend.config()
    assert struct.unpack_from("<Q", config, blk.ConfigOffset.CAPACITY) == (IMAGE_LEN // 512,)
    assert struct.unpack_from("<I", config, blk.ConfigOffset.BLK_SIZE)[0] in {512, 1024, 2048, 4096}
    assert struct.unpack_from("<I", config, blk.ConfigOffset.SEG_MAX)[0] >= 126


def test_limits_are_told_for_what_is_offered(frontend):
    """5.2.4: discard and write zeroes come with limits greater than 0."""
    config = frontend.config()
    if frontend.offered & blk.Feature.DISCARD:
        assert all(struct.unpack_from("<II", config, blk.ConfigOffset.MAX_DISCARD_SECTORS))
    if frontend.offered & blk.Feature.WRITE_ZEROES:
        assert all(struct.unpack_from("<II", config, blk.ConfigOffset.MAX_WRITE_ZEROES_SECTORS))


@pytest.mark.parametrize("length", [8, 36, 57, 60])
def test_config_is_answered_in_the_length_asked_for(frontend, length):
    """FEATURES 1.4, quirk 4: QEMU asks for 57 bytes, or 36, and takes nothing else."""
    assert len(frontend.config(0, length)) == length
    assert frontend.config(0, length) == frontend.config(0, 60)[:length]


@vhostd_only("qsd ignores the offset")
@pytest.mark.parametrize(("offset", "length"), [(8, 4), (20, 4), (34, 2), (59, 1)])
def test_config_is_read_from_an_offset(frontend, offset, length):
    """vhost-user, "Virtio device config space"."""
    assert frontend.config(offset, length) == frontend.config(0, 60)[offset : offset + length]


@pytest.mark.parametrize("queues", [1, 4])
def test_queues_are_told_twice(start, queues):
    """GET_QUEUE_NUM, and num_queues of 5.2.4."""
    disk = start(queues=queues)
    with Frontend.connect(disk.socket) as frontend:
        frontend.negotiate()
        assert frontend.queue_num == queues
        assert struct.unpack_from("<H", frontend.config(), blk.ConfigOffset.NUM_QUEUES) == (queues,)


def test_read_only_is_offered_when_it_is(start):
    """5.2.3, VIRTIO_BLK_F_RO."""
    with Frontend.connect(start(read_only=True).socket) as frontend:
        frontend.negotiate()
        assert frontend.offered & blk.Feature.RO


def test_read_only_is_not_offered_otherwise(frontend):
    assert not frontend.offered & blk.Feature.RO


def test_a_request_is_acknowledged_only_when_asked(frontend):
    """vhost-user, "REPLY_ACK": need_reply asks; without it nothing is sent."""
    frontend.send(FrontendRequest.SET_VRING_CALL, encode(VringFd(0, no_fd=True)))
    frontend.send(FrontendRequest.SET_VRING_CALL, encode(VringFd(0, no_fd=True)), flags=VERSION | FLAG_NEED_REPLY)
    assert frontend.reply(FrontendRequest.SET_VRING_CALL).payload == bytes(8)
    assert frontend.ask_u64(FrontendRequest.GET_FEATURES) == frontend.offered


@vhostd_only("qsd acknowledges what was not negotiated")
def test_without_reply_ack_nothing_is_acknowledged(disk):
    """vhost-user, "REPLY_ACK": before it is negotiated need_reply is not looked at."""
    with Frontend.connect(disk.socket) as frontend:
        frontend.negotiate(protocol_features=ProtocolFeature.CONFIG | ProtocolFeature.MQ)
        frontend.send(FrontendRequest.SET_VRING_CALL, encode(VringFd(0, no_fd=True)), flags=VERSION | FLAG_NEED_REPLY)
        assert frontend.ask_u64(FrontendRequest.GET_FEATURES) == frontend.offered


def test_a_front_end_comes_back(disk):
    """A connection that ends makes room for the next; each starts from nothing."""
    for _ in range(4):
        with Frontend.connect(disk.socket) as frontend:
            frontend.negotiate()
            assert struct.unpack_from("<Q", frontend.config(), 0) == (IMAGE_LEN // 512,)


def test_frames_in_pieces_and_frames_in_one_piece(frontend):
    """vhost-user, "Message Specification": the stream has no borders of its own."""
    features = struct.pack("<III", FrontendRequest.GET_FEATURES, VERSION, 0)
    for n in range(12):
        frontend.send_bytes(features[n : n + 1])
        time.sleep(0.001)
    assert struct.unpack("<Q", frontend.reply(FrontendRequest.GET_FEATURES).payload) == (frontend.offered,)
    frontend.send_bytes(features * 3)
    for _ in range(3):
        assert struct.unpack("<Q", frontend.reply(FrontendRequest.GET_FEATURES).payload) == (frontend.offered,)


def test_set_features_twice_is_the_same_as_once(frontend):
    """FEATURES 1.4, quirk 5."""
    for _ in range(3):
        frontend.set_features()
    assert frontend.ask_u64(FrontendRequest.GET_FEATURES) == frontend.offered


def test_enable_comes_before_everything_else(frontend):
    """FEATURES 1.4, quirk 6: enabling asks for no features and no ring."""
    frontend.enable(0)
    frontend.enable(0, enabled=False)


@vhostd_only("qsd acknowledges any features")
def test_features_that_were_not_offered_are_refused(disk):
    """vhost-user, "Feature negotiation": what is acknowledged was offered."""
    with Frontend.connect(disk.socket) as frontend:
        frontend.negotiate()
        payload = encode(U64(frontend.offered | 1 << 63))
        frontend.send(FrontendRequest.SET_FEATURES, payload, flags=VERSION | FLAG_NEED_REPLY)
        with contextlib.suppress(DeviceGone):  # closing is an answer too
            assert frontend.reply(FrontendRequest.SET_FEATURES).payload != bytes(8)


def test_descriptors_that_come_with_a_session_go_with_it(disk):
    """Twenty sessions with call, error and kick descriptors leave as many open as one."""

    def visit():
        with disk.session() as session:
            session.block().read(0, 512)

    def settled():
        with Frontend.connect(disk.socket) as frontend:
            frontend.negotiate()
            return sum(open_fds(pid) for pid in disk.backend.pids())

    visit()
    before = settled()
    for _ in range(20):
        visit()
    assert settled() == before
