"""ILLUMOS R2.2, R2.13: each device type's numbers are its own, and those of somebody else who read the document."""

import re
from pathlib import Path

import pytest

from vhostd.spec import blk, net, virtio

UAPI = Path("/usr/include/linux")


def defined(header, prefix):
    """The numbers that a header of the kernel gives to names that begin so."""
    text = (UAPI / header).read_text()
    found = re.findall(rf"^#define\s+{prefix}(\w+)\s+(0x[0-9a-fA-F]+|\d+)\b", text, re.MULTILINE)
    return {name: int(value, 0) for name, value in found}


def both(header, prefix, ours, least):
    """What both name: (our value, theirs, the name), at least so many."""
    common = [(ours[name], value, name) for name, value in defined(header, prefix).items() if name in ours.__members__]
    assert len(common) >= least
    return common


@pytest.mark.parametrize(
    ("header", "prefix", "ours", "least"),
    [
        ("virtio_blk.h", "VIRTIO_BLK_F_", blk.Feature, 13),
        ("virtio_net.h", "VIRTIO_NET_F_", net.Feature, 25),
        ("virtio_config.h", "VIRTIO_F_", virtio.Feature, 5),
        ("virtio_ring.h", "VIRTIO_RING_F_", virtio.Feature, 2),
    ],
)
def test_feature_bits(header, prefix, ours, least):
    """Bit numbers there, masks here."""
    for mask, bit, name in both(header, prefix, ours, least):
        assert mask == 1 << bit, name


@pytest.mark.parametrize(
    ("header", "prefix", "ours", "least"),
    [
        ("virtio_blk.h", "VIRTIO_BLK_T_", blk.Request, 7),
        ("virtio_blk.h", "VIRTIO_BLK_S_", blk.StatusByte, 3),
        ("virtio_net.h", "VIRTIO_NET_HDR_GSO_", net.GsoType, 4),
        ("virtio_net.h", "VIRTIO_NET_HDR_F_", net.HeaderFlag, 3),
        ("virtio_net.h", "VIRTIO_NET_S_", net.Status, 2),
        ("virtio_config.h", "VIRTIO_CONFIG_S_", virtio.Status, 5),
    ],
)
def test_values(header, prefix, ours, least):
    for value, theirs, name in both(header, prefix, ours, least):
        assert value == theirs, name


def test_lengths():
    """5.2.6: what a GET_ID's string and a sector are."""
    theirs = defined("virtio_blk.h", "VIRTIO_BLK_")
    assert theirs["ID_BYTES"] == blk.ID_LEN
