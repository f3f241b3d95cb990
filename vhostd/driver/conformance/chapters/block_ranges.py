"""Discard, write zeroes, secure erase, lifetime (virtio 5.2.6)."""

import struct

from vhostd.driver.blk import pack_segments
from vhostd.driver.conformance.case import BLOCK, BlkFeature, Mark, Row, case
from vhostd.driver.conformance.check import Check, Guest
from vhostd.spec import blk
from vhostd.spec.blk import ConfigOffset, Request, StatusByte
from vhostd.spec.vhost_user import ProtocolFeature

B = BlkFeature
OPERATION = "virtio 5.2.6"
DEVICE = "virtio 5.2.6.2"
WRITES = [Mark.WRITES]
CONFIG = ProtocolFeature.CONFIG

BOTH_KINDS = {
    "discard": Row(Request.DISCARD, features=int(B.DISCARD)),
    "write-zeroes": Row(Request.WRITE_ZEROES, features=int(B.WRITE_ZEROES)),
    "secure-erase": Row(Request.SECURE_ERASE, features=int(B.SECURE_ERASE)),
}
DISCARD_ZERO = {name: row for name, row in BOTH_KINDS.items() if name != "secure-erase"}


def _zeroed(check: Check, guest: Guest, sector: int, sectors: int) -> None:
    check.equal(guest.block().read(sector, sectors * 512), bytes(sectors * 512), "zeroes,")


@case("BLK-RANGE-01", OPERATION, kinds=BLOCK, marks=WRITES, rows=BOTH_KINDS)
def done(check: Check, kind: Request) -> None:
    """A range within the disk is answered with OK, its used length is 1, and its neighbours are as before."""
    with check.guest() as guest:
        at, known = check.scratch.first, check.scratch.known
        done = guest.block().request(kind, 0, pack_segments([(at + 8, 16)]))
        check.equal(done.status, StatusByte.OK, "status")
        check.equal(guest.block().read(at, 4096), known[:4096], "the sectors before it,")
        check.equal(guest.block().read(at + 24, 4096), known[24 * 512 :][:4096], "the sectors behind it,")
        if kind is Request.WRITE_ZEROES:
            _zeroed(check, guest, at + 8, 16)


@case("BLK-RANGE-02", "virtio 2.7.8.2", kinds=BLOCK, marks=WRITES, rows=BOTH_KINDS)
def used_length(check: Check, kind: Request) -> None:
    """The used length counts what was written: the status."""
    with check.guest() as guest:
        done = guest.block().request(kind, 0, pack_segments([(check.scratch.first, 8)]))
        check.equal(done.used_len, 1, "used length")


CUTS = {"16+16": [16], "16+8+8": [16, 8], "bytes": [1] * 32, "32": [32], "8+24": [8], "20+12": [20]}


@case("BLK-RANGE-03", "virtio 2.7.4.1", kinds=BLOCK, marks=WRITES, features=int(B.WRITE_ZEROES), rows=CUTS)
def segments_in_any_cut(check: Check, readable: list[int]) -> None:
    """The device MUST NOT make assumptions about the arrangement of descriptors: segments in any cut."""
    with check.guest(size=256) as guest:
        driver = guest.block()
        data = pack_segments([(check.scratch.first, 8)])
        done = driver.complete(driver.submit(Request.WRITE_ZEROES, 0, data, readable=readable))
        check.equal(done.status, StatusByte.OK, "status")
        _zeroed(check, guest, check.scratch.first, 8)


@case("BLK-RANGE-04", "virtio 2.7.4.1", kinds=BLOCK, marks=WRITES, features=int(B.DISCARD), rows=CUTS)
def discards_in_any_cut(check: Check, readable: list[int]) -> None:
    """The device MUST NOT make assumptions about the arrangement of descriptors: segments in any cut."""
    with check.guest(size=256) as guest:
        driver = guest.block()
        data = pack_segments([(check.scratch.first, 8)])
        done = driver.complete(driver.submit(Request.DISCARD, 0, data, readable=readable))
        check.equal(done.status, StatusByte.OK, "status")


@case(
    "BLK-RANGE-05",
    DEVICE,
    kinds=BLOCK,
    marks=WRITES,
    rows={
        f"{name}.{flag:#x}": Row((row.value, flag), features=row.features)
        for name, row in BOTH_KINDS.items()
        for flag in (2, 4, 0x8000_0000)
    },
)
def reserved_flags(check: Check, row: tuple[Request, int]) -> None:
    """The device MUST set the status to VIRTIO_BLK_S_UNSUPP if a reserved flag of a segment is set."""
    kind, flags = row
    with check.guest() as guest:
        done = guest.block().request(kind, 0, pack_segments([(check.scratch.first, 8)], flags))
        check.equal(done.status, StatusByte.UNSUPP, "status")
        check.equal(guest.block().read(check.scratch.first, 4096), check.scratch.known[:4096], "the sectors as before,")


@case("BLK-DISCARD-01", DEVICE, kinds=BLOCK, marks=WRITES, features=int(B.DISCARD))
def unmap_on_discard(check: Check) -> None:
    """The device MUST set the status to VIRTIO_BLK_S_UNSUPP for a discard whose unmap flag is set."""
    with check.guest() as guest:
        done = guest.block().discard((check.scratch.first, 8), flags=blk.WRITE_ZEROES_UNMAP)
        check.equal(done.status, StatusByte.UNSUPP, "status")


@case("BLK-ZEROES-01", f"{OPERATION}, {DEVICE}", kinds=BLOCK, marks=WRITES, features=int(B.WRITE_ZEROES))
def unmap_on_write_zeroes(check: Check) -> None:
    """With the unmap flag a write zeroes request may deallocate: the range reads as zeroes in any case."""
    with check.guest() as guest:
        done = guest.block().write_zeroes((check.scratch.first, 64), flags=blk.WRITE_ZEROES_UNMAP)
        check.equal(done.status, StatusByte.OK, "status")
        _zeroed(check, guest, check.scratch.first, 64)


@case(
    "BLK-ZEROES-02",
    OPERATION,
    kinds=BLOCK,
    marks=WRITES,
    features=int(B.WRITE_ZEROES),
    rows={str(n): n for n in (1, 7, 8, 128)},
)
def any_number_of_sectors(check: Check, sectors: int) -> None:
    """A range may begin and end at any sector."""
    with check.guest() as guest:
        at, known = check.scratch.first, check.scratch.known
        check.equal(guest.block().write_zeroes((at + 3, sectors)).status, StatusByte.OK, "status")
        _zeroed(check, guest, at + 3, sectors)
        check.equal(guest.block().read(at, 1536), known[:1536], "the sectors before it,")
        end = at + 3 + sectors
        check.equal(guest.block().read(end, 512), known[(3 + sectors) * 512 :][:512], "the sector behind it,")


@case("BLK-RANGE-06", DEVICE, kinds=BLOCK, protocol=CONFIG, rows=DISCARD_ZERO, marks=WRITES)
def behind_the_end(check: Check, kind: Request) -> None:
    """A range that ends behind the capacity fails with VIRTIO_BLK_S_IOERR."""
    capacity = int.from_bytes(check.target.offer.config[:8], "little")
    with check.guest() as guest:
        for sector, count in ((capacity, 1), (capacity - 1, 2), (2**55, 8)):
            done = guest.block().request(kind, 0, pack_segments([(sector, count)]))
            check.equal(done.status, StatusByte.IOERR, "status")
        guest.works(1)


LIMITS = {
    "discard": Row((Request.DISCARD, ConfigOffset.MAX_DISCARD_SEG), features=int(B.DISCARD)),
    "write-zeroes": Row((Request.WRITE_ZEROES, ConfigOffset.MAX_WRITE_ZEROES_SEG), features=int(B.WRITE_ZEROES)),
}


@case("BLK-RANGE-07", "virtio 5.2.4, 5.2.6", kinds=BLOCK, protocol=CONFIG, rows=LIMITS, marks=WRITES)
def as_many_segments_as_told(check: Check, row: tuple[Request, int]) -> None:
    """A request of as many segments as the configuration space tells is carried out."""
    kind, offset = row
    (limit,) = struct.unpack_from("<I", check.target.offer.config, offset)
    count = min(limit, 16)
    with check.guest(size=256) as guest:
        at = check.scratch.first
        done = guest.block().request(kind, 0, pack_segments((at + 16 * n, 8) for n in range(count)))
        check.equal(done.status, StatusByte.OK, "status")
        if kind is Request.WRITE_ZEROES:
            for n in range(count):
                _zeroed(check, guest, at + 16 * n, 8)


@case("BLK-RANGE-08", DEVICE, kinds=BLOCK, protocol=CONFIG, rows=LIMITS, marks=WRITES)
def more_segments_than_told(check: Check, row: tuple[Request, int]) -> None:
    """A request of more segments than the configuration space tells fails and changes nothing."""
    kind, offset = row
    (limit,) = struct.unpack_from("<I", check.target.offer.config, offset)
    check.offers(limit < 1024, "a limit that can be passed")
    with check.guest(size=256) as guest:
        at = check.scratch.first
        done = guest.block().request(kind, 0, pack_segments((at + n % 256, 1) for n in range(limit + 1)))
        check.expect(done.status != StatusByte.OK, "a status other than OK", "OK")
        check.equal(guest.block().read(at, 4096), check.scratch.known[:4096], "the sectors as before,")


@case("BLK-RANGE-09", DEVICE, kinds=BLOCK, protocol=CONFIG, rows=LIMITS, marks=WRITES)
def more_sectors_than_told(check: Check, row: tuple[Request, int]) -> None:
    """A segment of more sectors than the configuration space tells fails."""
    kind, offset = row
    (limit,) = struct.unpack_from("<I", check.target.offer.config, offset - 4)
    capacity = int.from_bytes(check.target.offer.config[:8], "little")
    check.offers(limit < capacity and limit < check.scratch.sectors, "a limit below the scratch area")
    with check.guest() as guest:
        done = guest.block().request(kind, 0, pack_segments([(check.scratch.first, limit + 1)]))
        check.expect(done.status != StatusByte.OK, "a status other than OK", "OK")


@case(
    "BLK-RANGE-10",
    OPERATION,
    kinds=BLOCK,
    marks=WRITES,
    rows={
        f"{name}.{n}": Row((row.value, n), features=row.features)
        for name, row in DISCARD_ZERO.items()
        for n in (0, 15, 17)
    },
)
def no_whole_segments(check: Check, row: tuple[Request, int]) -> None:
    """Data that is no multiple of a segment's 16 bytes, or none, is no request: it fails and changes nothing."""
    kind, length = row
    data = pack_segments([(check.scratch.first, 8), (check.scratch.first, 8)])[:length]
    with check.guest() as guest:
        done = guest.block().request(kind, 0, data)
        check.expect(done.status != StatusByte.OK, "a status other than OK", "OK")
        check.equal(guest.block().read(check.scratch.first, 4096), check.scratch.known[:4096], "the sectors as before,")


@case("BLK-LIFE-01", OPERATION, kinds=BLOCK, features=int(B.LIFETIME))
def lifetime(check: Check) -> None:
    """VIRTIO_BLK_T_GET_LIFETIME gives three le16: pre_eol_info 0 to 3, and two estimates of 0 to 11."""
    with check.guest() as guest:
        done = guest.block().request(Request.GET_LIFETIME, read_len=6)
        check.equal(done.status, StatusByte.OK, "status")
        eol, first, second = struct.unpack("<HHH", done.data)
        check.expect(eol <= 3 and first <= 11 and second <= 11, "values in range", f"{eol}, {first}, {second}")


ZONED = int(B.ZONED)


@case("BLK-ZONE-01", OPERATION, kinds=BLOCK, features=ZONED)
def zones_are_reported(check: Check) -> None:
    """VIRTIO_BLK_T_ZONE_REPORT gives a header with nr_zones and a descriptor of 64 bytes for each zone."""
    with check.guest() as guest:
        done = guest.block().request(Request.ZONE_REPORT, 0, read_len=4096)
        check.equal(done.status, StatusByte.OK, "status")
        (zones,) = struct.unpack_from("<Q", done.data)
        check.expect(zones >= 1, "at least one zone", str(zones))


@case(
    "BLK-ZONE-02", OPERATION, kinds=BLOCK, features=ZONED, rows={"open": Request.ZONE_OPEN, "close": Request.ZONE_CLOSE}
)
def a_sector_inside_a_zone(check: Check, kind: Request) -> None:
    """A zone request whose sector is not the start of a zone fails."""
    with check.guest() as guest:
        done = guest.block().request(kind, 1)
        check.expect(done.status != StatusByte.OK, "a status other than OK", "OK")
