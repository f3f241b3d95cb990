"""A disk's configuration space and what it promises (virtio 5.2.4, 5.2.5)."""

import struct

from vhostd.driver.conformance.case import BLOCK, BlkFeature, Level, Mark, case
from vhostd.driver.conformance.check import Check
from vhostd.spec.blk import SECTOR_LEN, ConfigOffset, Request, StatusByte
from vhostd.spec.vhost_user import ProtocolFeature

P = ProtocolFeature
CONFIG = P.CONFIG
LAYOUT = "virtio 5.2.4"
O = ConfigOffset  # noqa: E741 - offsets, in every line below


def _u(check: Check, offset: int, form: str) -> int:
    (value,) = struct.unpack_from("<" + form, check.target.offer.config, offset)
    return int(value)


@case("BLK-CONF-01", LAYOUT, kinds=BLOCK, protocol=CONFIG)
def capacity(check: Check) -> None:
    """Capacity is the disk's length in sectors of 512 bytes; its last sector can be read."""
    sectors = _u(check, O.CAPACITY, "Q")
    check.expect(sectors > 0, "a capacity greater than 0", "0")
    with check.guest() as guest:
        done = guest.block().request(Request.IN, sectors - 1, read_len=SECTOR_LEN)
        check.equal(done.status, StatusByte.OK, "status")


@case("BLK-CONF-02", LAYOUT, kinds=BLOCK, protocol=CONFIG, features=int(BlkFeature.BLK_SIZE))
def blk_size(check: Check) -> None:
    """blk_size is the optimal block size in bytes: a power of 2, at least 512."""
    size = _u(check, O.BLK_SIZE, "I")
    check.expect(size >= 512 and not size & size - 1, "a power of 2 from 512 on", str(size))


@case("BLK-CONF-03", LAYOUT, kinds=BLOCK, protocol=CONFIG, features=int(BlkFeature.SEG_MAX))
def seg_max(check: Check) -> None:
    """seg_max is the maximum number of segments in a request: that many are served, with header and status beside."""
    limit = _u(check, O.SEG_MAX, "I")
    check.expect(limit > 0, "at least 1", "0")
    count = min(limit, 126, len(check.scratch.known) // SECTOR_LEN)
    with check.guest(size=256) as guest:
        driver = guest.block()
        length = count * SECTOR_LEN
        writable = [SECTOR_LEN] * count
        done = driver.complete(driver.submit(Request.IN, check.scratch.first, read_len=length, writable=writable))
        check.equal(done.status, StatusByte.OK, "status")
        check.equal(done.data, check.scratch.known[:length], "the sectors' bytes,")


@case("BLK-CONF-04", LAYOUT, kinds=BLOCK, protocol=CONFIG, features=int(BlkFeature.SIZE_MAX))
def size_max(check: Check) -> None:
    """size_max is the maximum size of any single segment: at least a page."""
    check.expect(_u(check, O.SIZE_MAX, "I") >= 4096, "at least 4096", str(_u(check, O.SIZE_MAX, "I")))


@case("BLK-CONF-05", LAYOUT, kinds=BLOCK, protocol=CONFIG | P.MQ, features=int(BlkFeature.MQ))
def num_queues(check: Check) -> None:
    """num_queues is the number of request queues, the same that GET_QUEUE_NUM tells."""
    check.equal(_u(check, O.NUM_QUEUES, "H"), check.target.offer.queues, "num_queues")


@case("BLK-CONF-06", LAYOUT, kinds=BLOCK, protocol=CONFIG, features=int(BlkFeature.DISCARD))
def discard_limits(check: Check) -> None:
    """With DISCARD the limits of a discard request are told, each greater than 0."""
    sectors, segments = _u(check, O.MAX_DISCARD_SECTORS, "I"), _u(check, O.MAX_DISCARD_SEG, "I")
    check.expect(sectors and segments, "limits greater than 0", f"{sectors} sectors, {segments} segments")


@case("BLK-CONF-07", LAYOUT, kinds=BLOCK, protocol=CONFIG, features=int(BlkFeature.DISCARD))
def discard_alignment(check: Check) -> None:
    """discard_sector_alignment is in sectors; the operating system may use it to split requests."""
    alignment = _u(check, O.DISCARD_SECTOR_ALIGNMENT, "I")
    check.expect(alignment <= _u(check, O.MAX_DISCARD_SECTORS, "I"), "no more than max_discard_sectors", str(alignment))


@case("BLK-CONF-08", LAYOUT, kinds=BLOCK, protocol=CONFIG, features=int(BlkFeature.WRITE_ZEROES))
def write_zeroes_limits(check: Check) -> None:
    """With WRITE_ZEROES the limits of a write zeroes request are told, each greater than 0."""
    sectors, segments = _u(check, O.MAX_WRITE_ZEROES_SECTORS, "I"), _u(check, O.MAX_WRITE_ZEROES_SEG, "I")
    check.expect(sectors and segments, "limits greater than 0", f"{sectors} sectors, {segments} segments")


@case("BLK-CONF-09", LAYOUT, kinds=BLOCK, protocol=CONFIG, features=int(BlkFeature.WRITE_ZEROES))
def may_unmap(check: Check) -> None:
    """write_zeroes_may_unmap is 0 or 1."""
    check.expect(_u(check, O.WRITE_ZEROES_MAY_UNMAP, "B") in {0, 1}, "0 or 1", "another value")


@case(
    "BLK-CONF-10",
    "virtio 5.2.5.2, 5.2.4",
    kinds=BLOCK,
    protocol=CONFIG,
    features=int(BlkFeature.CONFIG_WCE),
    level=Level.SHOULD,
)
def writeback_is_truthful(check: Check) -> None:
    """With CONFIG_WCE writeback is 1 while the cache is in write-back mode: the mode of a disk that offers FLUSH."""
    value = check.target.offer.config[O.WRITEBACK]
    check.expect(value == 1, "writeback 1 where FLUSH and CONFIG_WCE are offered and nobody has set it", str(value))


@case("BLK-CONF-11", LAYOUT, kinds=BLOCK, protocol=CONFIG, features=int(BlkFeature.TOPOLOGY))
def topology(check: Check) -> None:
    """The topology's exponent makes a physical block of at most 64 MiB, and its alignment lies inside it."""
    exponent, alignment = check.target.offer.config[O.TOPOLOGY], check.target.offer.config[O.TOPOLOGY + 1]
    check.expect(
        exponent <= 16 and alignment < 1 << exponent,
        "alignment_offset below 2**exponent",
        f"exponent {exponent}, alignment {alignment}",
    )


@case("BLK-CONF-12", LAYOUT, kinds=BLOCK, protocol=CONFIG)
def fields_not_offered(check: Check) -> None:
    """unused0 and the bytes behind write_zeroes_may_unmap are padding: 0."""
    config = check.target.offer.config
    check.equal(config[33:34] + config[57:60], bytes(4), "padding")


@case(
    "BLK-CONF-13",
    "virtio 5.2.5",
    kinds=BLOCK,
    features=int(BlkFeature.CONFIG_WCE | BlkFeature.FLUSH),
    protocol=CONFIG,
    marks=[Mark.WRITES],
)
def write_through_mode(check: Check) -> None:
    """In write-through mode writes and flushes work as in write-back mode."""
    with check.guest() as guest:
        before = guest.frontend.config(0, 33)[32:]
        try:
            for value in (0, 1):
                guest.frontend.set_config(32, bytes([value]))
                driver = guest.block()
                driver.write(check.scratch.first, bytes([value + 1]) * 4096)
                driver.flush()
                check.equal(driver.read(check.scratch.first, 4096), bytes([value + 1]) * 4096, "what was written,")
        finally:
            guest.frontend.set_config(32, before)
