"""illumos_E1, illumos_D9, illumos_A6: what the driver asks for, what it reads, and what it does not take."""

import struct

import pytest

from tests.support.paper import LEGACY, Paper, card_config, disk_config, serves_id
from vhostd.driver.illumos import GuestHangs, IllumosGuest, NoAttach, attach
from vhostd.driver.illumos.startup import learn_disk, learn_limits
from vhostd.spec import blk, net
from vhostd.spec.virtio import Feature

EVERYTHING = (1 << 64) - 1


def learn(platform, guest, features):
    """What a block driver reads, before and after it has made its queue."""
    return learn_disk(platform, guest, features, learn_limits(platform, guest, features))


@pytest.mark.parametrize(
    ("device", "generation", "transport", "mask"),
    [
        ("block", 2019, "legacy", 0x10000666),
        ("block", 2019, "modern", 0x110000666),
        ("block", 2026, "legacy", 0x10002666),
        ("block", 2026, "modern", 0x110002666),
        ("net", 2019, "legacy", 0x10002869),
        ("net", 2019, "modern", 0x110002869),
        ("net", 2026, "legacy", 0x10473869),
        ("net", 2026, "modern", 0x8000000110473869),
    ],
)
def test_illumos_A6_masks(device, generation, transport, mask):
    """A.6: what is acknowledged of a device that offers everything; nothing that was not offered."""
    guest = IllumosGuest(device, generation, transport)
    assert guest.choose(EVERYTHING) == mask
    assert guest.choose(0) == 0
    assert IllumosGuest(device, generation, transport, indirect=False).choose(EVERYTHING) == mask & ~(1 << 28)


def test_illumos_A6_pairs_need_a_control_queue():
    """A.6: MQ is dropped if CTRL_VQ is not offered."""
    guest = IllumosGuest("net", 2026, "modern")
    assert not guest.choose(EVERYTHING & ~int(net.Feature.CTRL_VQ)) & net.Feature.MQ


@pytest.mark.parametrize(
    ("words", "seg_max", "size_max"),
    [
        ({}, 126, 4096),
        ({"seg_max": 0}, 1, 4096),
        ({"seg_max": 0xFFFFFFFF}, 1, 4096),
        ({"size_max": 0xFFFFFFFF}, 126, 4096),
        ({"size_max": 1 << 20}, 126, 1 << 20),
        ({"seg_max": 254, "size_max": 1 << 20}, 254, 1 << 20),
    ],
)
def test_illumos_R2_17_values_that_are_absent(words, seg_max, size_max):
    """R2.14, R2.17: 0 and all-ones are no limits."""
    guest = IllumosGuest("block", 2026, "modern")
    disk = learn(Paper(config=disk_config(**words)), guest, guest.choose(EVERYTHING))
    assert (disk.seg_max, disk.size_max) == (seg_max, size_max)
    assert disk.transfer_max == seg_max * size_max


def test_illumos_R2_14_without_SEG_MAX():
    """A.5: 128 is the default; and DISCARD needs all three of its limits."""
    guest = IllumosGuest("block", 2026, "modern", seg_max=False)
    config = disk_config(discard=(100, 0, 8))
    disk = learn(Paper(config=config), guest, guest.choose(EVERYTHING))
    assert disk.seg_max == 128
    assert disk.discard is None


@pytest.mark.parametrize(
    "words",
    [
        {"seg_max": 1 << 12, "size_max": 1 << 20},  # the product is 0 in 32 bits
        {"seg_max": 1, "size_max": 4097},
        {"seg_max": 3, "size_max": 1000},
        {"block_len": 4096, "size_max": 2048, "seg_max": 1},
        {"block_len": 0},
        {"block_len": 768},
        {"block_len": 4096, "capacity": 9},
    ],
    ids=str,
)
def test_illumos_D9_no_medium(words):
    """D9: offers of which the driver's own sums make an absent medium."""
    guest = IllumosGuest("block", 2026, "modern")
    with pytest.raises(NoAttach, match="illumos_D9"):
        learn(Paper(config=disk_config(**words)), guest, guest.choose(EVERYTHING))


def test_illumos_R2_17_a_capacity_of_all_ones():
    guest = IllumosGuest("block", 2019, "legacy")
    with pytest.raises(NoAttach, match="all ones"):
        learn(Paper(config=disk_config(capacity=2**64 - 1)), guest, guest.choose(LEGACY))


def test_illumos_R2_51_a_capacity_that_changes_while_it_is_read():
    """R2.51: two halves, until two whole reads agree: never a mixed value, and not for ever."""
    paper = Paper(config=disk_config(capacity=0x1_0000_0000 - 8))
    reads = []

    def grow(offset):
        reads.append(offset)
        if reads.count(4) == 1:  # between the two halves of the first read
            paper.space = disk_config(capacity=0x1_0000_0008)

    paper.on_config = grow
    guest = IllumosGuest("block", 2019, "legacy")
    disk = learn(paper, guest, guest.choose(LEGACY))
    assert disk.capacity == 0x1_0000_0008

    def never(offset):
        reads.append(offset)
        paper.space = disk_config(capacity=8 * len(reads))

    paper.on_config = never
    with pytest.raises(NoAttach, match=r"R2\.51"):
        learn(paper, guest, guest.choose(LEGACY))


def test_illumos_E1_order_of_a_disk():
    """E.1: DRIVER_OK, then configuration, then vectors, then the first request ever."""
    paper = Paper(config=disk_config())
    serves_id(b"id".ljust(20, b"\0"))(paper)
    attach(IllumosGuest("block", 2026, "modern"), paper, paper.memory)
    words = [entry[0] for entry in paper.log]
    assert [word for word in words if word != "config"] == ["negotiated", "queue", "running", "vectors"]
    assert words[1:5] == ["config"] * 4
    offsets = [entry[1] for entry in paper.log if entry[0] == "config"]
    assert offsets == [12, 36, 40, 44, 4, 0, 20, 24, 8]


def test_illumos_E1_order_of_a_card():
    """E.1: queues 0, 1, ... of the pairs it uses, then the control queue at twice the pairs there could be."""
    paper = Paper(config=card_config(pairs=16))
    attached = attach_pairs(paper, 2)
    assert next(entry for entry in paper.log if entry[0] == "running")[2] == [0, 1, 2, 3, 32]
    assert ("pairs", 2) in paper.log
    assert attached.card.card.pairs == 2
    paper = Paper(EVERYTHING & ~int(net.Feature.MQ), card_config())
    attached = attach_pairs(paper, 4)
    assert [ring.index for ring in attached.rings] == [0, 1, 2]
    for bad in (0, 0x8001):
        with pytest.raises(NoAttach, match="illumos_D11"):
            attach_pairs(Paper(config=card_config(pairs=bad)), 2)


def attach_pairs(paper, pairs):
    guest = IllumosGuest("net", 2026, "modern", pairs=pairs, size=8)
    return attach(guest, paper, paper.memory)


def test_illumos_E2_modern_needs_VERSION_1():
    with pytest.raises(NoAttach, match="illumos_E2"):
        attach(IllumosGuest("block", 2026, "modern"), paper := Paper(LEGACY), paper.memory)


def test_illumos_10012_no_answer():
    """10012: GET_ID is given three seconds here; the kernel would sleep without limit."""
    paper = Paper(config=disk_config())
    with pytest.raises(GuestHangs, match="illumos_10012"):
        attach(IllumosGuest("block", 2019, "legacy"), paper, paper.memory)


@pytest.mark.parametrize(
    ("answer", "status", "serial"),
    [
        (b"abc-DEF_09".ljust(20, b"\0"), 0, b"abc-DEF_09"),
        (b"01234567890123456789", 0, b"01234567890123456789"),
        (b"ab cd".ljust(20, b"\0"), 0, b"ab"),
        (b" x".ljust(20, b"\0"), 0, None),
        (bytes(20), 0, None),
        (b"id".ljust(20, b"\0"), 1, None),
        (b"id".ljust(20, b"\0"), 2, None),
    ],
)
def test_illumos_10012_what_is_an_identity(answer, status, serial):
    """10012: the leading run of letters, digits, - and _; nothing, zeroes and errors are no identity."""
    paper = Paper(config=disk_config())
    serves_id(answer, status=status)(paper)
    attached = attach(IllumosGuest("block", 2026, "legacy"), paper, paper.memory)
    assert attached.disk.serial == serial


def test_illumos_F7_the_local_bit_of_a_random_address():
    """E.1 step 9: without MAC the bit lands in the second byte; the address is of no group."""
    for seed in range(50):
        paper = Paper(EVERYTHING & ~int(net.Feature.MAC), card_config())
        guest = IllumosGuest("net", 2019, "legacy", seed=seed, size=4)
        mac = attach(guest, paper, paper.memory).card.card.mac
        assert (mac[0] & 1, mac[1] & 2) == (0, 2)


@pytest.mark.parametrize(
    ("features", "tso"),
    [
        (net.Feature.CSUM | net.Feature.HOST_TSO4, False),
        (net.Feature.CSUM | net.Feature.HOST_TSO4 | net.Feature.HOST_ECN, True),
        (net.Feature.CSUM | net.Feature.GSO, True),
        (net.Feature.HOST_TSO4 | net.Feature.HOST_ECN, False),
    ],
)
def test_illumos_D2_when_large_segments_are_sent(features, tso):
    """D2: CSUM and (GSO or (HOST_TSO4 and HOST_ECN))."""
    paper = Paper(int(features), card_config())
    guest = IllumosGuest("net", 2019, "legacy", size=4)
    assert attach(guest, paper, paper.memory).card.card.tso4 is tso


def test_illumos_E7_header_length():
    """E.7.6: 12 bytes with VERSION_1, 10 without."""
    for offered, length in ((EVERYTHING, 12), (LEGACY, 10)):
        paper = Paper(offered, card_config())
        transport = "modern" if offered & Feature.VERSION_1 else "legacy"
        guest = IllumosGuest("net", 2019, transport, size=4)
        assert attach(guest, paper, paper.memory).card.card.header_len == length
    assert struct.calcsize("<BBHHHH") == 10
    assert blk.ID_LEN == 20
