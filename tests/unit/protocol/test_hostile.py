"""The hostile inputs of the socket that a session decides by itself; each case bears the catalogue's id."""

import os
from pathlib import Path

import pytest

from vhostd.protocol import actions as act
from vhostd.protocol import messages as m
from vhostd.protocol import wire
from vhostd.protocol.framing import Frame, Framer
from vhostd.protocol.rules import RULES
from vhostd.spec import vhost_user as spec
from vhostd.spec.vhost_user import FrontendRequest as R
from vhostd.spec.vhost_user import ProtocolFeature as P

from .peer import ALL_PROTOCOL, FEATURES, REGION, REGION2, STATES, UVA, F, Peer, addr, null_fds

FEATURES_30 = int(FEATURES | F.PROTOCOL_FEATURES)


def ready():
    """A session with memory, ring 0 configured."""
    return STATES["configured"]()


def open_fds():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def refused(peer, *args, says="", **kwargs):
    """Refused with an answer when one is asked for, closed when not; never done."""
    asked = peer.send(*args, need_reply=True, **kwargs)
    assert asked.outcome == "refused", asked.error
    assert asked.value != 0
    silent = peer.send(*args, **kwargs)
    assert silent.outcome == "closed"
    for ack in (asked, silent):
        assert says in str(ack.error)
        assert not ack.error.fatal
    return asked.error


# The header.


@pytest.mark.parametrize("version", [0, 2, 3], ids="S1-version-{}".format)
def test_a_version_that_is_not_1_closes(version):
    """S1: even with need_reply there is no answer."""
    ack = ready().send(R.GET_FEATURES, flags=version, need_reply=True)
    assert ack.outcome == "closed"
    assert ack.error.fatal


def test_the_reply_flag_closes():
    """S2: a request is no reply."""
    ack = ready().send(R.GET_FEATURES, flags=spec.VERSION | spec.FLAG_REPLY, need_reply=True)
    assert ack.outcome == "closed"
    assert ack.error.fatal


@pytest.mark.parametrize("flags", [0x11, 0xFFFFFFF1, 0x80000001], ids="S2-{:#x}".format)
def test_undefined_flags_are_let_pass(flags):
    """S2: bits that have no meaning yet have none here; the reply does not carry them."""
    ack = ready().ok(R.GET_FEATURES, flags=flags)
    assert ack.reply.data[4:8] == b"\5\0\0\0"


@pytest.mark.parametrize("request_", [0, 45, 46, 100, 0x7FFFFFFF, 0xFFFFFFFF], ids="S5-{}".format)
def test_an_unknown_request_is_refused(request_):
    """S5: answered when an answer was asked for and negotiated, else the connection closes."""
    refused(ready(), request_, says="no such request")
    refused(ready(), request_, payload=bytes(200), fds=3)
    assert STATES["fresh"]().send(request_, need_reply=True).outcome == "closed"


@pytest.mark.parametrize("split", [1, 5, 12, 13], ids="S6-S10-by-{}".format)
def test_a_thousand_messages_in_one_stream(split):
    """S6 to S10: cut anywhere, in any order of arrival, all are handled in order."""
    peer = ready()
    stream = b"".join(
        wire.frame_bytes(R.SET_VRING_BASE, 1, wire.encode(m.VringState(0, n)))
        + wire.frame_bytes(R.GET_VRING_BASE, 1, wire.encode(m.VringState(0, 0)))
        for n in range(500)
    )
    framer, got = Framer(), []
    while stream:
        n = min(split, framer.wanted)
        frame = framer.feed(stream[:n])
        stream = stream[n:]
        if frame:
            ack = peer.give(frame)
            if ack.reply:
                got.append(int.from_bytes(ack.payload[4:], "little"))
    assert got == list(range(500))


def test_one_reply_to_a_message_that_has_its_own():
    """S12: need_reply adds no acknowledgement to a reply."""
    ack = ready().ok(R.GET_FEATURES, need_reply=True)
    assert ack.value == FEATURES_30
    assert len(ack.reply.data) == 20


def test_need_reply_is_ignored_before_reply_ack():
    """S13: the bit means nothing until REPLY_ACK was negotiated; SET_PROTOCOL_FEATURES obeys what it sets."""
    peer = STATES["fresh"]()
    assert peer.ok(R.SET_OWNER, need_reply=True).reply is None
    assert peer.ok(R.SET_PROTOCOL_FEATURES, m.U64(ALL_PROTOCOL), need_reply=True).value == 0
    assert peer.ok(R.SET_OWNER, need_reply=True).value == 0
    assert peer.ok(R.SET_PROTOCOL_FEATURES, m.U64(0), need_reply=True).reply is None


# Descriptors.


@pytest.mark.parametrize("count", [1, 2, 8, 9, 16, 33, 253], ids="S20-S23-{}".format)
def test_descriptors_on_a_message_that_takes_none(count):
    """S20 to S23, S33, S34: refused, and the descriptors are closed."""
    before = open_fds()
    for request in (R.SET_OWNER, R.SET_VRING_NUM, R.SET_FEATURES):
        peer = ready()
        message = m.Empty() if request is R.SET_OWNER else m.VringState(0, 8)
        payload = b"" if request is R.SET_OWNER else wire.encode(message)
        refused(peer, request, payload=payload, fds=count, says=f"{count} fd")
    assert STATES["fresh"]().send(R.GET_FEATURES, fds=count).outcome == "closed"
    empty = ready().send(R.GET_CONFIG, m.Config(0, 4, 0, bytes(4)), count)
    assert (empty.outcome, empty.payload) == ("refused", b"")
    assert open_fds() == before


@pytest.mark.parametrize("regions", [1, 2], ids="S24-n={}".format)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 9], ids="{}-fds".format)
def test_a_table_with_another_number_of_descriptors(regions, count):
    """S24 to S29: fewer or more descriptors than regions."""
    table = m.MemTable((REGION, REGION2)[:regions])
    if count == regions:
        ready().ok(R.SET_MEM_TABLE, table, count)
    else:
        refused(ready(), R.SET_MEM_TABLE, table, count, says="SET_MEM_TABLE")


def test_memory_that_is_not_shared_has_its_own_words():
    """The commonest mistake of users: QEMU sends no descriptor for private memory, or no memory at all."""
    hint = "guest memory is not shared: start QEMU with memory-backend-memfd,share=on"
    refused(ready(), R.SET_MEM_TABLE, m.MemTable((REGION,)), says=hint)
    refused(ready(), R.ADD_MEM_REG, m.SingleRegion(REGION2), says=hint)
    refused(STATES["negotiated"](), R.SET_VRING_ADDR, addr(), says=hint)


def test_the_text_names_request_what_and_rule():
    """STYLE: who, what, and which rule."""
    error = refused(ready(), R.SET_MEM_TABLE, m.MemTable((REGION, REGION2)), 3)
    assert str(error) == 'SET_MEM_TABLE: 3 fds for 2 regions (vhost-user, "Multiple memory regions description")'


@pytest.mark.parametrize("request_", [R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR], ids="S36-{0.name}".format)
def test_bit_8_and_the_descriptor_agree(request_):
    """S36: bit 8 and a descriptor, neither, two descriptors."""
    refused(ready(), request_, m.VringFd(0, no_fd=True), 1, says="bit 8")
    refused(ready(), request_, m.VringFd(0), says="bit 8")
    refused(ready(), request_, m.VringFd(0), 2, says="2 fds")


def test_no_descriptor_means_polling():
    """S36: no call and no error descriptor is legal; no kick descriptor would have us poll."""
    peer = ready()
    assert peer.ok(R.SET_VRING_CALL, m.VringFd(0, no_fd=True)).action == act.SetCall(0, None)
    assert peer.ok(R.SET_VRING_ERR, m.VringFd(0, no_fd=True)).action == act.SetErr(0, None)
    refused(peer, R.SET_VRING_KICK, m.VringFd(0, no_fd=True), says="polling")


def test_a_call_is_replaced_at_any_time():
    """S35: 300 times, before the start and after; each action names the new descriptor."""
    peer = ready()
    for n in range(300):
        if n == 150:
            peer.start()
        fds = null_fds(1)
        ack = peer.ok(R.SET_VRING_CALL, m.VringFd(0), fds)
        assert ack.action == act.SetCall(0, fds[0])
    assert peer.session.vrings[0].call_set


def test_an_action_hands_over_what_the_host_takes():
    """S35: a descriptor that was taken is the host's; the frame closes the others only."""
    peer = ready()
    fds = null_fds(2)
    action = peer.session.receive(Frame(R.SET_MEM_TABLE, 1, wire.encode(m.MemTable((REGION, REGION2))), fds))
    assert action == act.SetMemTable((REGION, REGION2), fds)
    number = action.fds[1].take()
    Frame(0, 1, b"", fds).close_fds()
    os.fstat(number)
    os.close(number)


# Indices, addresses, sizes.

INDICES = [4, 200, 255, 256, 65535, 65536, 0x10000000, 0xFFFFFFFF]


@pytest.mark.parametrize("index", INDICES, ids="S40-S47-{:#x}".format)
def test_an_index_beyond_the_rings(index):
    """S40 to S47: in each message that has one. 256 in a u64 is bit 8 and index 0."""
    for request, message in (
        (R.SET_VRING_NUM, m.VringState(index, 8)),
        (R.SET_VRING_BASE, m.VringState(index, 0)),
        (R.SET_VRING_ADDR, addr(index)),
        (R.SET_VRING_ENABLE, m.VringState(index, 1)),
    ):
        refused(ready(), request, message, says=f"ring {index}")
    assert ready().send(R.GET_VRING_BASE, m.VringState(index, 0), need_reply=True).outcome == "closed"
    for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
        refused(ready(), request, payload=index.to_bytes(8, "little"), fds=1)
        refused(ready(), request, payload=(index << 32).to_bytes(8, "little"), fds=1)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"desc": UVA + 8}, "aligned to 16"),
        ({"desc": UVA + 1}, "aligned to 16"),
        ({"avail": UVA + 0x4001}, "aligned to 2"),
        ({"used": UVA + 0x8002}, "aligned to 4"),
        ({"used": UVA + 0x8001}, "aligned to 4"),
    ],
    ids="S49-{}".format,
)
def test_a_ring_that_is_not_aligned(where, says):
    """S49: 16, 2 and 4 bytes (virtio 2.7)."""
    refused(ready(), R.SET_VRING_ADDR, addr(0, **where), says=says)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"desc": UVA, "avail": UVA, "used": UVA}, "overlaps"),
        ({"avail": UVA + 0xFFE}, "overlaps the descriptor table"),
        ({"used": UVA}, "overlaps"),
        ({"desc": UVA + 0x8000 - 0xFF0}, "overlaps the descriptor table"),
        ({"desc": 2**64 - 0x800}, "ends beyond 64 bits"),
        ({"avail": 2**64 - 16}, "ends beyond 64 bits"),
        ({"used": 2**64 - 16}, "ends beyond 64 bits"),
    ],
    ids="S48-S50-{}".format,
)
def test_areas_that_overlap_or_wrap(where, says):
    """S48 (the end of the address space), S50: the areas of one ring, at a size that is known."""
    peer = STATES["negotiated"]().memory()
    peer.ok(R.SET_VRING_NUM, m.VringState(0, 256))
    refused(peer, R.SET_VRING_ADDR, addr(0, **where), says=says)


def test_areas_touch_and_event_fields_count():
    """S51: 256 descriptors are 4096 bytes, their available ring 516 with EVENT_IDX and 518 with its event field."""
    peer = STATES["negotiated"]().memory()
    peer.ok(R.SET_VRING_NUM, m.VringState(0, 256))
    avail = UVA + 4096
    fits = addr(0, desc=UVA, avail=avail, used=avail + 4 + 512 + 4)
    peer.ok(R.SET_VRING_ADDR, fits)
    tight = addr(0, desc=UVA, avail=avail, used=avail + 4 + 512)
    refused(peer, R.SET_VRING_ADDR, tight, says="overlaps the available ring")
    plain = Peer().negotiate(features=F.VERSION_1 | F.PROTOCOL_FEATURES).memory()
    plain.ok(R.SET_VRING_NUM, m.VringState(0, 256))
    plain.ok(R.SET_VRING_ADDR, tight)


def test_event_fields_that_came_with_later_features():
    """S51: features that grow the rings after SET_VRING_ADDR are caught at the start."""
    peer = Peer().negotiate(features=F.VERSION_1 | F.PROTOCOL_FEATURES).memory()
    peer.ok(R.SET_VRING_NUM, m.VringState(0, 256))
    peer.ok(R.SET_VRING_ADDR, addr(0, desc=UVA, avail=UVA + 4096, used=UVA + 4096 + 516))
    peer.ok(R.SET_FEATURES, m.U64(FEATURES_30))
    refused(peer, R.SET_VRING_KICK, m.VringFd(0), 1, says="overlaps the available ring")


def test_two_rings_may_share_their_place():
    """S50: no driver does it, and the guest hurts only itself."""
    peer = ready()
    peer.ok(R.SET_VRING_NUM, m.VringState(1, 256))
    peer.ok(R.SET_VRING_ADDR, addr(1, desc=UVA, avail=UVA + 0x8000, used=UVA + 0x10000))
    peer.start(0).start(1)


@pytest.mark.parametrize("flags", [1, 2, 3, 0x80000000, 0xFFFFFFFE], ids="S53-{:#x}".format)
def test_flags_of_an_address(flags):
    """S53: logging needs LOG_ALL, which is not offered; other bits are unknown."""
    refused(ready(), R.SET_VRING_ADDR, addr(0, flags=flags), says="LOG_ALL" if flags & 1 else "not known")


@pytest.mark.parametrize("base", [0x10000, 0x80008000, 0xFFFFFFFF], ids="S54-{:#x}".format)
def test_a_base_of_more_than_16_bits(base):
    """S54: a split ring's index has 16 bits."""
    refused(ready(), R.SET_VRING_BASE, m.VringState(0, base), says="16 bits")
    ready().ok(R.SET_VRING_BASE, m.VringState(0, 0xFFFF))


@pytest.mark.parametrize("value", [2, 0xFFFFFFFF], ids="S55-{:#x}".format)
def test_enable_is_0_or_1(value):
    """S55: refused, since it cannot be known what was meant."""
    refused(ready(), R.SET_VRING_ENABLE, m.VringState(0, value), says="neither 0 nor 1")


@pytest.mark.parametrize("num", [0, 3, 100, 32769, 65535, 65536, 2**31, 2**32 - 1], ids="S57-S60-{}".format)
def test_a_size_that_is_none(num):
    """S57 to S60: 0, no power of two, too large."""
    refused(ready(), R.SET_VRING_NUM, m.VringState(0, num), says="not a power of two")


@pytest.mark.parametrize("num", [1 << n for n in range(16)], ids="S57-{}".format)
def test_a_size_that_is_one(num):
    """S57: every power of two from 1 to 32768, as often as one likes (S56)."""
    peer = ready()
    for _ in range(3):
        peer.ok(R.SET_VRING_NUM, m.VringState(0, num))
    assert peer.session.vrings[0].num == num


# Memory.


@pytest.mark.parametrize(
    ("region", "says"),
    [
        (m.MemRegion(0, 0, 0, 0), "0 bytes"),
        (m.MemRegion(2**64 - 4096, 8192, 0, 0), "gpa"),
        (m.MemRegion(0, 8192, 2**64 - 4096, 0), "user address"),
        (m.MemRegion(0, 8192, 0, 2**64 - 4096), "mmap offset"),
        (m.MemRegion(4096, 2**64 - 1, 0, 0), "pass 64 bits"),
    ],
    ids=["S61-size-0", "S63-gpa", "S63-uva", "S63-offset", "S63-size"],
)
def test_a_region_that_cannot_be(region, says):
    """S61, S63: in a table, alone or behind a good one, and in ADD_MEM_REG."""
    refused(ready(), R.SET_MEM_TABLE, m.MemTable((region,)), 1, says=says)
    refused(ready(), R.SET_MEM_TABLE, m.MemTable((REGION2, region)), 2, says=says)
    refused(ready(), R.ADD_MEM_REG, m.SingleRegion(region), 1, says=says)


def moved(region, **changes):
    return m.MemRegion(**(vars(region) | changes))


@pytest.mark.parametrize(
    "other",
    [
        REGION,
        moved(REGION, uva=0x1000),
        moved(REGION, gpa=0x40000000),
        moved(REGION, gpa=0, length=0x1001, uva=0x1000),
        moved(REGION, gpa=0x1000 + 0xFFFFF, length=1, uva=0x1000),
        moved(REGION, gpa=0, length=2**40, uva=0x1000),
    ],
    ids=["S66-equal", "S65-gpa", "S65-uva", "S65-head", "S65-tail", "S65-around"],
)
def test_regions_that_overlap(other):
    """S65, S66: in guest addresses or in user addresses, in a table and beside what is there already."""
    refused(ready(), R.SET_MEM_TABLE, m.MemTable((REGION, other)), 2, says="overlaps")
    refused(ready(), R.SET_MEM_TABLE, m.MemTable((other, REGION)), 2, says="overlaps")
    if other != REGION:
        refused(ready(), R.ADD_MEM_REG, m.SingleRegion(other), 1, says="overlaps")


def test_a_region_that_is_told_again():
    """S83: QEMU 7.2 adds a card's memory once for each queue pair, and removes it as often: nothing changes between."""
    peer = ready()
    assert isinstance(peer.ok(R.ADD_MEM_REG, m.SingleRegion(REGION), 1).action, act.Nothing)
    assert peer.session.regions == (REGION,)
    refused(peer, R.ADD_MEM_REG, m.SingleRegion(moved(REGION, mmap_offset=4096)), 1, says="overlaps")
    assert isinstance(peer.ok(R.REM_MEM_REG, m.SingleRegion(REGION)).action, act.Nothing)
    assert peer.session.regions == (REGION,)
    assert peer.ok(R.REM_MEM_REG, m.SingleRegion(REGION)).action == act.RemoveRegion(REGION)
    assert peer.session.regions == ()
    refused(peer, R.REM_MEM_REG, m.SingleRegion(REGION), says="no region has")


def test_regions_that_touch_or_end_at_the_top():
    """S63, S65: the last byte of the address space may be used; neighbours may touch."""
    peer = ready()
    peer.ok(R.ADD_MEM_REG, m.SingleRegion(m.MemRegion(0x101000, 0x1000, UVA + 0x100000, 0)), 1)
    peer.ok(R.ADD_MEM_REG, m.SingleRegion(m.MemRegion(2**64 - 4096, 4096, 2**64 - 4096, 0)), 1)


@pytest.mark.parametrize(
    ("count", "regions", "fds"),
    [(0, 0, 0), (0, 0, 1), (9, 8, 8), (255, 8, 8), (0xFFFFFFFF, 8, 8), (9, 9, 8), (1, 2, 2), (2, 1, 1)],
    ids="S70-S73-{}".format,
)
def test_a_table_whose_count_lies(count, regions, fds):
    """S70 to S73: no regions, more than 8, more or fewer than the payload holds."""
    step = [moved(REGION, gpa=n << 32, uva=n << 32) for n in range(1, 10)]
    table = b"".join(wire.encode(region) for region in step[:regions])
    refused(ready(), R.SET_MEM_TABLE, payload=count.to_bytes(4, "little") + bytes(4) + table, fds=fds)


def test_padding_is_not_looked_at():
    """S74: the padding of a table, of a region, of an address."""
    payload = wire.encode(m.MemTable((REGION2,)))
    ready().ok(R.SET_MEM_TABLE, payload=payload[:4] + b"\xff" * 4 + payload[8:], fds=1)
    payload = wire.encode(m.SingleRegion(REGION2))
    ready().ok(R.ADD_MEM_REG, payload=b"\xff" * 8 + payload[8:], fds=1)


def test_a_table_of_eight():
    """S70: 8 regions are the most, and replace what was there."""
    peer = ready()
    table = m.MemTable(tuple(moved(REGION, gpa=n << 32, uva=n << 32) for n in range(1, 9)))
    action = peer.ok(R.SET_MEM_TABLE, table, 8).action
    assert action.regions == table.regions == peer.session.regions
    assert len(action.fds) == 8


def test_slots_run_out():
    """S83: the slots that GET_MAX_MEM_SLOTS promised and not one more; REM_MEM_REG gives one back."""
    peer = STATES["negotiated"]()
    regions = [moved(REGION, gpa=n << 32, uva=n << 32) for n in range(1, 6)]
    for region in regions[:4]:
        peer.ok(R.ADD_MEM_REG, m.SingleRegion(region), 1)
    refused(peer, R.ADD_MEM_REG, m.SingleRegion(regions[4]), 1, says="all 4 slots are taken")
    gone = peer.ok(R.REM_MEM_REG, m.SingleRegion(moved(regions[0], mmap_offset=99)), 1)
    assert gone.action == act.RemoveRegion(regions[0])
    refused(peer, R.REM_MEM_REG, m.SingleRegion(regions[0]), says="no region has")
    refused(peer, R.REM_MEM_REG, m.SingleRegion(moved(regions[1], length=4096)), says="no region has")
    refused(peer, R.REM_MEM_REG, m.SingleRegion(regions[1]), 2, says="2 fds")
    peer.ok(R.ADD_MEM_REG, m.SingleRegion(regions[4]), 1)
    assert peer.session.regions == (*regions[1:4], regions[4])


# Configuration space.


@pytest.mark.parametrize("request_", [R.GET_CONFIG, R.SET_CONFIG], ids=lambda r: r.name)
@pytest.mark.parametrize(
    "config",
    [
        m.Config(0, 0, 0, b""),
        m.Config(256 + 256, 4, 0, bytes(4)),
        m.Config(254, 4, 0, bytes(4)),
        m.Config(0xFFFFFFFF, 4, 0, bytes(4)),
        m.Config(0xFFFFFFFC, 4, 0, bytes(4)),
        m.Config(0x1FD, 4, 0, bytes(4)),
        m.Config(0, 4, 2, bytes(4)),
        m.Config(0, 4, 0xFFFFFFFF, bytes(4)),
    ],
    ids="S110-S114-{0.offset:#x}+{0.size}-flags-{0.flags:#x}".format,
)
def test_configuration_that_is_none(request_, config):
    """S110 to S116: no bytes, a wrap, beyond 256, unknown flags: no payload, or ACK != 0."""
    ack = ready().send(request_, config, need_reply=True)
    assert ack.outcome == "refused"
    assert ack.payload == (b"" if request_ is R.GET_CONFIG else b"\1" + bytes(7))
    assert ready().send(request_, config).outcome == ("refused" if request_ is R.GET_CONFIG else "closed")


@pytest.mark.parametrize("size", [1, 3, 5, 257, 0xFFFFFFFF], ids="S113-{}".format)
def test_a_size_that_is_not_the_payloads(size):
    """S112, S113: the size field and the bytes that follow must agree."""
    payload = bytes(4) + size.to_bytes(4, "little") + bytes(4) + bytes(4)
    ack = ready().send(R.GET_CONFIG, payload=payload)
    assert (ack.outcome, ack.payload) == ("refused", b"")
    refused(ready(), R.SET_CONFIG, payload=payload)


def test_configuration_beyond_the_space():
    """S115: reading past the end gives zeros, as many as asked for; there is nothing to write there (S116)."""
    peer = ready()
    assert peer.ok(R.GET_CONFIG, m.Config(0, 256, 0, bytes(256))).action == act.GetConfig(0, 256)
    refused(peer, R.SET_CONFIG, m.Config(60, 1, 0, b"\1"), says="ends at 60")
    assert peer.ok(R.SET_CONFIG, m.Config(59, 1, 1, b"\1")).action == act.SetConfig(59, 1, b"\1")
    assert peer.ok(R.SET_CONFIG, m.Config(0x120, 1, 0, b"\1")).action == act.SetConfig(32, 0, b"\1")


# Order.


@pytest.mark.parametrize("missing", ["features", "memory", "num", "addr"], ids="S130-{}".format)
def test_a_kick_too_early(missing):
    """S130: before features, memory, size or addresses."""
    peer = STATES["fresh"]()
    peer.ok(R.SET_PROTOCOL_FEATURES, m.U64(ALL_PROTOCOL))
    if missing != "features":
        peer.ok(R.SET_FEATURES, m.U64(FEATURES_30))
    peer.memory()
    if missing != "num":
        peer.ok(R.SET_VRING_NUM, m.VringState(0, 256))
    if missing != "addr":
        peer.ok(R.SET_VRING_ADDR, addr(0))
    if missing == "memory":
        peer.ok(R.REM_MEM_REG, m.SingleRegion(REGION))
    words = {"features": "SET_FEATURES", "memory": "memory", "num": "SET_VRING_NUM", "addr": "SET_VRING_ADDR"}
    refused(peer, R.SET_VRING_KICK, m.VringFd(0), 1, says=f"before {'any ' * (missing == 'memory')}{words[missing]}")


def test_orders_that_are_allowed():
    """S131: no SET_OWNER, SET_OWNER twice, ENABLE before KICK; only ADDR needs memory."""
    peer = Peer()
    peer.ok(R.SET_VRING_ENABLE, m.VringState(0, 1))
    peer.ok(R.SET_VRING_NUM, m.VringState(0, 256))
    peer.ok(R.SET_VRING_BASE, m.VringState(0, 1))
    assert peer.send(R.SET_VRING_ADDR, addr(0)).outcome == "closed"
    peer.memory()
    peer.ok(R.SET_VRING_ADDR, addr(0))
    peer.ok(R.SET_FEATURES, m.U64(FEATURES_30))
    peer.start()
    for _ in range(2):
        peer.ok(R.SET_OWNER)
    assert peer.session.vrings[0].enabled


def test_get_vring_base_answers_always():
    """S132, S134: twice, on a disabled ring, on one that was never set up: 0."""
    peer = STATES["started"]()
    assert peer.ok(R.GET_VRING_BASE, m.VringState(3, 0)).payload == wire.encode(m.VringState(3, 0))
    assert peer.ok(R.GET_VRING_BASE, m.VringState(0, 0)).action == act.StopRing(0)
    again = peer.ok(R.GET_VRING_BASE, m.VringState(0, 5))
    assert again.action == act.Nothing(m.VringState(0, 77))
    assert again.payload == wire.encode(m.VringState(0, 77))
    peer.ok(R.SET_VRING_BASE, m.VringState(3, 9))
    assert peer.ok(R.GET_VRING_BASE, m.VringState(3, 0)).payload == wire.encode(m.VringState(3, 9))


def test_a_stopped_ring_starts_again():
    """ "Ring states": its size and addresses are kept; enabled is kept apart."""
    peer = STATES["enabled"]()
    peer.ok(R.GET_VRING_BASE, m.VringState(0, 0))
    assert peer.session.vrings[0].enabled
    peer.ok(R.SET_VRING_BASE, m.VringState(0, 3))
    peer.start()
    assert peer.session.vrings[0].started


def test_a_second_kick_changes_the_descriptor():
    """S140: the action tells a start from a change."""
    peer = ready()
    assert not peer.ok(R.SET_VRING_KICK, m.VringFd(0), 1).action.started
    assert peer.ok(R.SET_VRING_KICK, m.VringFd(0), 1).action.started


@pytest.mark.parametrize("bit", [14, 26, 33, 34, 40, 41, 63], ids="S135-{}".format)
def test_features_that_were_not_offered(bit):
    """S135: one such bit refuses the whole set."""
    refused(ready(), R.SET_FEATURES, m.U64(FEATURES_30 | 1 << bit), says=f"{1 << bit:#x} was not offered")


def test_features_while_a_ring_runs():
    """S135: the same again is fine, another set is refused; without VERSION_1 is legacy, and accepted."""
    peer = STATES["enabled"]()
    same = peer.ok(R.SET_FEATURES, m.U64(FEATURES_30), need_reply=True)
    assert same.action == act.SetFeatures(FEATURES_30, enable_all=False)
    refused(peer, R.SET_FEATURES, m.U64(FEATURES_30 & ~F.EVENT_IDX), says="while a ring is started")
    peer.ok(R.GET_VRING_BASE, m.VringState(0, 0))
    peer.ok(R.SET_FEATURES, m.U64(F.INDIRECT_DESC | F.PROTOCOL_FEATURES))
    assert peer.session.features == F.INDIRECT_DESC | F.PROTOCOL_FEATURES


@pytest.mark.parametrize("bit", [1, 6, 8, 12, 14, 17, 22, 23, 63], ids="S136-{}".format)
def test_protocol_features_that_were_not_offered(bit):
    """S136: refused, and what was negotiated stays."""
    refused(ready(), R.SET_PROTOCOL_FEATURES, m.U64(ALL_PROTOCOL | 1 << bit), says="was not offered")


def test_protocol_features_while_a_ring_runs():
    """S136: QEMU tells them again for each queue pair; another set is refused while a ring runs."""
    peer = STATES["started"]()
    peer.ok(R.SET_PROTOCOL_FEATURES, m.U64(ALL_PROTOCOL))
    refused(peer, R.SET_PROTOCOL_FEATURES, m.U64(ALL_PROTOCOL & ~P.CONFIG), says="while a ring is started")


@pytest.mark.parametrize("state", STATES)
def test_a_reset_in_each_state(state):
    """S137: rings stopped and disabled, features and status forgotten; memory and protocol features stay."""
    for request, message in ((R.RESET_DEVICE, m.Empty()), (R.SET_STATUS, m.U64(0)), (R.RESET_OWNER, m.Empty())):
        peer = STATES[state]()
        session = peer.session
        session.needs_reset = True
        if request is R.SET_STATUS and not session.protocol_features:
            continue
        regions, protocol, features = session.regions, session.protocol_features, session.features
        ack = peer.ok(request, message)
        assert (session.regions, session.protocol_features) == (regions, protocol)
        if request is R.RESET_OWNER:
            assert ack.action == act.Nothing()
            assert session.features == features
            continue
        assert ack.action == act.ResetDevice()
        assert (session.features, session.features_set, session.status) == (0, False, 0)
        assert not session.needs_reset
        for ring in session.vrings:
            assert not ring.started
            assert not ring.enabled
            assert not ring.configured
        if session.protocol_features:
            peer.ok(R.SET_FEATURES, m.U64(FEATURES_30))
            peer.memory().configure().start().enable()


def test_a_status_that_cannot_be():
    """S138: impossible transitions are recorded, nine bits are none, FEATURES_OK needs features."""
    peer = STATES["negotiated"]()
    for status in (4, 15, 128, 1, 255):
        assert peer.ok(R.SET_STATUS, m.U64(status)).action == act.SetStatus(status)
        assert peer.ok(R.GET_STATUS).value == status
    refused(peer, R.SET_STATUS, m.U64(256), says="eight bits")
    early = Peer()
    early.ok(R.SET_PROTOCOL_FEATURES, m.U64(ALL_PROTOCOL))
    early.ok(R.SET_STATUS, m.U64(0x3B))
    assert early.ok(R.GET_STATUS).value == 0x33


def test_a_broken_device_says_so():
    """DEVICE_NEEDS_RESET (virtio 2.1.2) is shown until a reset."""
    peer = STATES["enabled"]()
    peer.ok(R.SET_STATUS, m.U64(15))
    peer.session.needs_reset = True
    assert peer.ok(R.GET_STATUS).value == 15 | 64
    peer.ok(R.SET_STATUS, m.U64(0))
    assert peer.ok(R.GET_STATUS).value == 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (R.SET_VRING_NUM, m.VringState(0, 128)),
        (R.SET_VRING_NUM, m.VringState(0, 256)),
        (R.SET_VRING_ADDR, addr(0)),
        (R.SET_VRING_BASE, m.VringState(0, 1)),
        (R.SET_VRING_BASE, m.VringState(0, 0)),
    ],
    ids=["S146-other", "S146-same", "S147", "S148-other", "S148-same"],
)
@pytest.mark.parametrize("state", ["started", "enabled"])
def test_geometry_is_frozen_while_a_ring_runs(state, request_, message):
    """S146 to S148: refused until GET_VRING_BASE; another ring is free."""
    peer = STATES[state]()
    refused(peer, request_, message, says="ring 0 is started")
    other = m.VringAddr(**(vars(message) | {"index": 1})) if request_ is R.SET_VRING_ADDR else m.VringState(1, 1)
    peer.ok(request_, other)
    peer.ok(R.GET_VRING_BASE, m.VringState(0, 0))
    peer.ok(request_, message)


def test_the_same_addresses_again_while_a_ring_runs():
    """S147: front-ends tell them again to switch logging; nothing new is nothing done."""
    peer = STATES["started"]()
    same = peer.session.vrings[0].addr
    assert peer.ok(R.SET_VRING_ADDR, same).action == act.Nothing()
    refused(peer, R.SET_VRING_ADDR, m.VringAddr(**(vars(same) | {"log_gpa": 4})), says="started")


# What only one kind of device has.


@pytest.mark.parametrize("mtu", [0, 67, 65536, 2**64 - 1], ids="mtu-{}".format)
def test_an_mtu_that_is_none(mtu):
    """NET_SET_MTU: "non-zero otherwise"; 68 to 65535 (virtio 5.1.4.1)."""
    refused(ready(), R.NET_SET_MTU, m.U64(mtu), says="68 and 65535")
    assert ready().ok(R.NET_SET_MTU, m.U64(9000)).action == act.SetMtu(9000)


def test_the_mac_of_a_rarp():
    """SEND_RARP: "The first 6 bytes of the payload contain the mac address"."""
    ack = ready().ok(R.SEND_RARP, payload=b"\x52\x54\x00\x12\x34\x56\xff\xff")
    assert ack.action == act.SendRarp(b"\x52\x54\x00\x12\x34\x56")


@pytest.mark.parametrize("request_", [r for r, rule in RULES.items() if not rule.served], ids=lambda r: r.name)
def test_what_is_not_served_says_why(request_):
    """S85, S90, S100, S125: log, in-flight, IOTLB, post-copy and the others name the feature that is missing."""
    ack = ready().send(request_, fds=1, payload=bytes(16), need_reply=True)
    assert ack.outcome != "done"
    needs = RULES[request_].needs
    assert (needs.name if needs else "not for this device") in str(ack.error)
