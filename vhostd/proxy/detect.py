"""Which device a connection is about: the protocol never says, but feature bits and requests give it away."""

import struct

from vhostd.spec import blk, net
from vhostd.spec.vhost_user import FrontendRequest
from vhostd.spec.virtio import DeviceId


def _mask(kind: type[blk.Feature] | type[net.Feature]) -> int:
    return sum(int(member) for member in kind)


# Bits that only one of the two has a name for.
_NET_ALONE = _mask(net.Feature) & ~_mask(blk.Feature)
_BLOCK_ALONE = _mask(blk.Feature) & ~_mask(net.Feature)
# Both have a name for these; every disk offers some, no network card does without some of its own.
_BLOCK_TOO = int(blk.Feature.BLK_SIZE | blk.Feature.FLUSH | blk.Feature.SEG_MAX)

BLOCK_CONFIG_LEN = 32  # to wce (5.2.4); front-ends ask for this and more, and for no more than 24 of a network card


def by_features(offered: int) -> DeviceId | None:
    """Return the device that offers these bits; None when they fit both."""
    if offered & _NET_ALONE:
        return DeviceId.NET
    if offered & (_BLOCK_ALONE | _BLOCK_TOO):
        return DeviceId.BLOCK
    return None


def by_request(code: int, payload: bytes) -> DeviceId | None:
    """Return the device that a front-end means by this request; None when it may mean any."""
    if code in {FrontendRequest.SEND_RARP, FrontendRequest.NET_SET_MTU}:
        return DeviceId.NET
    if code == FrontendRequest.GET_CONFIG and len(payload) >= 8:
        offset, size = struct.unpack_from("<II", payload)
        if offset == 0 and size >= BLOCK_CONFIG_LEN:
            return DeviceId.BLOCK
    return None
