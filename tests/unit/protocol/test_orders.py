"""The orders in which front-ends really speak, replayed."""

from vhostd.protocol import actions as act
from vhostd.protocol import messages as m
from vhostd.spec import virtio
from vhostd.spec.vhost_user import FrontendRequest as R

from .peer import ALL_PROTOCOL, FEATURES, REGION, REGION2, UVA, F, Peer, addr


def connect_qemu(peer):
    """QEMU, when the device is realized."""
    assert peer.ok(R.GET_FEATURES).value == FEATURES | F.PROTOCOL_FEATURES
    assert peer.ok(R.GET_PROTOCOL_FEATURES).value == ALL_PROTOCOL
    peer.ok(R.SET_PROTOCOL_FEATURES, m.U64(ALL_PROTOCOL))
    assert peer.ok(R.GET_QUEUE_NUM).value == 4
    assert peer.ok(R.GET_MAX_MEM_SLOTS).value == 4
    assert peer.ok(R.SET_BACKEND_REQ_FD, fds=1, need_reply=True).value == 0
    peer.ok(R.SET_OWNER)
    peer.ok(R.GET_FEATURES)
    for index in range(4):
        peer.ok(R.SET_VRING_CALL, m.VringFd(index), 1, need_reply=True)
        peer.ok(R.SET_VRING_ERR, m.VringFd(index), 1, need_reply=True)
    config = peer.ok(R.GET_CONFIG, m.Config(0, 57, 0, bytes(57)))
    assert len(config.payload) == 12 + 57
    assert peer.ok(R.RESET_DEVICE).reply is None
    peer.ok(R.RESET_DEVICE)
    return peer


def start_qemu_blk(peer, bases=(0, 0), *, memory=True):
    """QEMU, when the driver sets DRIVER_OK: two of four rings are configured, all are enabled."""
    features = FEATURES | F.PROTOCOL_FEATURES
    peer.ok(R.SET_FEATURES, m.U64(features))
    peer.ok(R.GET_STATUS)
    peer.ok(R.SET_STATUS, m.U64(8))
    for index in range(4):
        peer.ok(R.SET_VRING_CALL, m.VringFd(index), 1, need_reply=True)
    peer.ok(R.SET_FEATURES, m.U64(features))
    assert peer.ok(R.GET_STATUS).value == virtio.Status.FEATURES_OK
    if memory:
        for region in (REGION, REGION2):
            assert peer.ok(R.ADD_MEM_REG, m.SingleRegion(region), 1, need_reply=True).value == 0
    for index, base in enumerate(bases):
        at = UVA + 0x20000 * index
        peer.ok(R.SET_VRING_NUM, m.VringState(index, 128))
        peer.ok(R.SET_VRING_BASE, m.VringState(index, base))
        peer.ok(R.SET_VRING_ADDR, addr(index, desc=at, avail=at + 0x8000, used=at + 0x10000))
        kick = peer.ok(R.SET_VRING_KICK, m.VringFd(index), 1, need_reply=True)
        assert isinstance(kick.action, act.SetKick)
        assert kick.value == 0
    for index in range(4):
        assert peer.ok(R.SET_VRING_ENABLE, m.VringState(index, 1), need_reply=True).value == 0
    peer.ok(R.GET_STATUS)
    peer.ok(R.SET_STATUS, m.U64(0xF))
    assert [v.started for v in peer.session.vrings] == [True, True, False, False]
    assert all(v.enabled for v in peer.session.vrings)
    assert peer.session.status == 0xF


def test_qemu_blk_starts_stops_and_starts_again():
    """QEMU 11.1 with a disk: SET_FEATURES twice, ENABLE for rings never set up, memory not told again."""
    peer = connect_qemu(Peer())
    start_qemu_blk(peer)
    for index in range(4):
        peer.ok(R.SET_VRING_ENABLE, m.VringState(index, 0), need_reply=True)
    bases = []
    for index in range(2):
        stop = peer.ok(R.GET_VRING_BASE, m.VringState(index, 0))
        assert stop.action == act.StopRing(index)
        assert stop.payload == bytes([index, 0, 0, 0, 77, 0, 0, 0])
        bases.append(77)
    assert isinstance(peer.ok(R.SET_STATUS, m.U64(0)).action, act.ResetDevice)
    assert peer.session.regions == (REGION, REGION2)
    start_qemu_blk(peer, bases, memory=False)
    assert peer.session.vrings[1].base == 77


def test_qemu_7_resets_before_it_asks_where_the_rings_stand():
    """QEMU 7.2 with a disk, stop and cont: SET_STATUS 0, ENABLE 0, then GET_VRING_BASE, whose answer it starts from."""
    peer = connect_qemu(Peer())
    start_qemu_blk(peer)
    peer.ok(R.SET_STATUS, m.U64(0), value={0: 389, 1: 12})
    peer.ok(R.SET_STATUS, m.U64(0), value={})
    for index, stood in ((0, 389), (1, 12), (2, 0)):
        peer.ok(R.SET_VRING_ENABLE, m.VringState(index, 0), need_reply=True)
        asked = peer.ok(R.GET_VRING_BASE, m.VringState(index, 0))
        assert asked.payload == bytes([index, 0, 0, 0]) + stood.to_bytes(4, "little")
    # A driver that was reset starts its rings at 0, told or not.
    assert peer.session.vrings[0].base == 0
    start_qemu_blk(peer, [389, 12], memory=False)
    assert [vring.base for vring in peer.session.vrings[:2]] == [389, 12]


def test_qemu_net_enables_before_features_and_calls_after_kick():
    """QEMU 11.1 with a network card: ENABLE before SET_FEATURES, CALL after KICK, SET_FEATURES while pair 0 runs."""
    peer = connect_qemu(Peer())
    for index in range(4):
        enable = peer.ok(R.SET_VRING_ENABLE, m.VringState(index, int(index < 2)), need_reply=True)
        assert enable.action == act.EnableRing(index, index < 2)
    peer.ok(R.NET_SET_MTU, m.U64(1500), need_reply=True)
    features = FEATURES | F.PROTOCOL_FEATURES
    for pair in range(2):
        same = peer.ok(R.SET_FEATURES, m.U64(features))
        assert same.action == act.SetFeatures(features, enable_all=False)
        if pair == 0:
            peer.ok(R.SET_MEM_TABLE, m.MemTable((REGION, REGION2)), 2, need_reply=True)
        for index in (2 * pair, 2 * pair + 1):
            peer.configure(index).start(index)
            peer.ok(R.SET_VRING_CALL, m.VringFd(index), 1, need_reply=True)
    assert [v.enabled for v in peer.session.vrings] == [True, True, False, False]
    assert all(v.started for v in peer.session.vrings)
    for index in range(4):
        peer.ok(R.GET_VRING_BASE, m.VringState(index, 0))
    assert [v.enabled for v in peer.session.vrings] == [True, True, False, False]


def test_cloud_hypervisor_tells_all_sizes_first():
    """Cloud Hypervisor: all SET_VRING_NUM, then ADDR, BASE, CALL, KICK a ring, ENABLE, and the channel last."""
    peer = Peer()
    peer.ok(R.SET_OWNER)
    peer.ok(R.GET_FEATURES)
    peer.ok(R.GET_PROTOCOL_FEATURES)
    peer.ok(R.SET_PROTOCOL_FEATURES, m.U64(ALL_PROTOCOL))
    peer.ok(R.GET_QUEUE_NUM, need_reply=True)
    config = peer.ok(R.GET_CONFIG, m.Config(0x100, 60, 1, bytes(60)), need_reply=True)
    assert config.action == act.GetConfig(0, 60)
    assert config.payload == (0x100).to_bytes(4, "little") + (60).to_bytes(4, "little") + b"\1\0\0\0" + bytes(60)
    peer.ok(R.SET_FEATURES, m.U64(FEATURES | F.PROTOCOL_FEATURES), need_reply=True)
    peer.ok(R.SET_MEM_TABLE, m.MemTable((REGION,)), 1, need_reply=True)
    for index in range(2):
        peer.ok(R.SET_VRING_NUM, m.VringState(index, 128), need_reply=True)
    for index in range(2):
        at = UVA + 0x20000 * index
        peer.ok(R.SET_VRING_ADDR, addr(index, desc=at, avail=at + 0x8000, used=at + 0x10000), need_reply=True)
        peer.ok(R.SET_VRING_BASE, m.VringState(index, 0), need_reply=True)
        peer.ok(R.SET_VRING_CALL, m.VringFd(index), 1, need_reply=True)
        peer.ok(R.SET_VRING_KICK, m.VringFd(index), 1, need_reply=True)
    for index in range(2):
        peer.ok(R.SET_VRING_ENABLE, m.VringState(index, 1), need_reply=True)
    peer.ok(R.SET_BACKEND_REQ_FD, fds=1, need_reply=True)


def test_crosvm_starts_ring_by_ring():
    """Crosvm: the channel early; NUM, ADDR, BASE, CALL, KICK, ENABLE for each ring."""
    peer = Peer().negotiate()
    peer.ok(R.SET_BACKEND_REQ_FD, fds=1)
    peer.memory()
    for index in range(4):
        at = UVA + 0x20000 * index
        peer.ok(R.SET_VRING_NUM, m.VringState(index, 256))
        peer.ok(R.SET_VRING_ADDR, addr(index, desc=at, avail=at + 0x8000, used=at + 0x10000))
        peer.ok(R.SET_VRING_BASE, m.VringState(index, 0))
        peer.ok(R.SET_VRING_CALL, m.VringFd(index), 1)
        peer.ok(R.SET_VRING_KICK, m.VringFd(index), 1)
        peer.ok(R.SET_VRING_ENABLE, m.VringState(index, 1))


def test_a_front_end_without_protocol_features_has_its_rings_enabled():
    """ "Ring states": SET_FEATURES without PROTOCOL_FEATURES enables all rings; legacy features are accepted."""
    peer = Peer()
    peer.ok(R.SET_OWNER)
    legacy = int(F.INDIRECT_DESC | F.ANY_LAYOUT)
    assert peer.ok(R.SET_FEATURES, m.U64(legacy)).action == act.SetFeatures(legacy, enable_all=True)
    assert all(v.enabled for v in peer.session.vrings)
    peer.memory().configure().start()
    assert peer.session.vrings[0].started


def test_a_size_that_comes_last_is_checked_at_the_start():
    """ADDR before NUM is no error; rings that overlap at the size that came are."""
    peer = Peer().negotiate().memory()
    peer.ok(R.SET_VRING_ADDR, addr(0, desc=UVA, avail=UVA + 0x1000, used=UVA + 0x2000))
    peer.ok(R.SET_VRING_NUM, m.VringState(0, 512))
    refused = peer.send(R.SET_VRING_KICK, m.VringFd(0), 1, need_reply=True)
    assert refused.outcome == "refused"
    assert "overlaps the descriptor table" in str(refused.error)
    peer.ok(R.SET_VRING_NUM, m.VringState(0, 256))
    peer.start()
