"""The configuration space by fields: those that lie wholly in what was read or written; the rest in hex."""

import struct
from collections.abc import Callable

from vhostd.proxy.record import Fields
from vhostd.spec import blk, net, render
from vhostd.spec.virtio import DeviceId

_B, _N = blk.ConfigOffset, net.ConfigOffset

# A field: where it lies, its layout, and how it reads when not as a number (5.2.4, 5.1.4).
_Row = tuple[int, str, str, Callable[..., int | str] | None]


LAYOUTS: dict[DeviceId, tuple[_Row, ...]] = {
    DeviceId.BLOCK: (
        (_B.CAPACITY, "Q", "capacity", lambda n: render.size(n * blk.SECTOR_LEN)),
        (_B.SIZE_MAX, "I", "size_max", None),
        (_B.SEG_MAX, "I", "seg_max", None),
        (_B.GEOMETRY, "HBB", "geometry", lambda c, h, s: f"{c}/{h}/{s}"),
        (_B.BLK_SIZE, "I", "blk_size", None),
        (_B.TOPOLOGY, "BBHI", "topology", lambda p, a, m, o: f"physical 2^{p}, alignment {a}, min {m}, opt {o}"),
        (_B.WRITEBACK, "B", "writeback", lambda n: {0: "off", 1: "on"}.get(n, f"{n:#x}")),
        (_B.NUM_QUEUES, "H", "num_queues", None),
        (_B.MAX_DISCARD_SECTORS, "I", "max_discard_sectors", None),
        (_B.MAX_DISCARD_SEG, "I", "max_discard_seg", None),
        (_B.DISCARD_SECTOR_ALIGNMENT, "I", "discard_sector_alignment", None),
        (_B.MAX_WRITE_ZEROES_SECTORS, "I", "max_write_zeroes_sectors", None),
        (_B.MAX_WRITE_ZEROES_SEG, "I", "max_write_zeroes_seg", None),
        (_B.WRITE_ZEROES_MAY_UNMAP, "B", "write_zeroes_may_unmap", lambda n: {0: "no", 1: "yes"}.get(n, f"{n:#x}")),
    ),
    DeviceId.NET: (
        (_N.MAC, "6s", "mac", lambda mac: mac.hex(":")),
        (_N.STATUS, "H", "status", lambda n: render.flags(n, net.Status)),
        (_N.MAX_VIRTQUEUE_PAIRS, "H", "max_virtqueue_pairs", None),
        (_N.MTU, "H", "mtu", None),
    ),
}


def fields(device: DeviceId | None, offset: int, data: bytes) -> Fields:
    """Return the fields in `data`, which lies at `offset`; `bytes` is what belongs to none, when it is not zero."""
    found: Fields = {}
    left = bytearray(data)
    for at, form, name, read in LAYOUTS[device] if device is not None else ():
        start, length = at - offset, struct.calcsize("<" + form)
        if start < 0 or start + length > len(data):
            continue
        values = struct.unpack_from("<" + form, data, start)
        found[name] = values[0] if read is None else read(*values)
        left[start : start + length] = bytes(length)
    if any(left):
        found["bytes"] = (left if found else data).hex()
    return found
