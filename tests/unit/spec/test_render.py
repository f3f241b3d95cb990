"""spec/render: numbers as the documents' words, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.spec import blk, net, render, virtio
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import DeviceId, Status

KINDS = [
    (ProtocolFeature,),
    (Status,),
    render.feature_kinds(None),
    render.feature_kinds(DeviceId.BLOCK),
    render.feature_kinds(DeviceId.NET),
]


@given(value=st.integers(0, (1 << 64) - 1), kinds=st.sampled_from(KINDS))
def test_what_is_written_is_read_back(value, kinds):
    """ILLUMOS R1.2-F: any 64 bits, known and unknown."""
    text = render.flags(value, *kinds)
    assert render.parse_flags(text, *kinds) == value
    assert render.parse_flags(text.lower(), *kinds) == value
    assert not any(part.isdecimal() for part in text.split("|")) or text == "0"


def test_names_unknown_bits_and_nothing():
    assert render.flags(0x1 | 0x8 | 0x4000_0000, ProtocolFeature) == "MQ|REPLY_ACK|0x40000000"
    assert render.flags(0, ProtocolFeature) == "0"
    assert render.flags(0x30, Status) == "0x30"
    assert render.features(1 << 32 | 1 << 12 | 1 << 9, DeviceId.BLOCK) == "FLUSH|MQ|VERSION_1"
    assert render.features(1 << 32 | 1 << 12, None) == "VERSION_1|0x1000"


def test_no_bit_has_two_names_in_one_device():
    """virtio 6: a device's bits and everybody's do not meet, so that a name says which bit it is."""
    for device, own in render.DEVICE_FEATURES.items():
        assert not {int(m) for m in own} & {int(m) for m in virtio.Feature}, device
        assert not {m.name for m in own} & {m.name for m in virtio.Feature}, device
    assert set(render.DEVICE_FEATURES.values()) == {blk.Feature, net.Feature}


def test_a_word_that_is_no_flag_is_refused_by_name():
    with pytest.raises(ValueError, match="no flag 'MZ'; there are MQ"):
        render.parse_flags("MQ|MZ", ProtocolFeature)


def test_enumerated_values_and_sizes():
    assert render.name(5, FrontendRequest) == "SET_MEM_TABLE"
    assert render.name(999, FrontendRequest) == "0x3e7"
    assert [render.size(n) for n in (0, 1, 1023, 1024, 1536, 2 << 30, 1 << 60)] == [
        "0B", "1B", "1023B", "1KiB", "1536B", "2GiB", "1EiB",
    ]  # fmt: skip
