"""Reads, writes, flushes, the serial, and what is unsupported (virtio 5.2.6)."""

import os

from vhostd.driver.buffers import POISON
from vhostd.driver.conformance.case import BLOCK, BlkFeature, Level, Mark, RingFeature, Row, case
from vhostd.driver.conformance.check import ALL_FEATURES, Check
from vhostd.spec import blk
from vhostd.spec.blk import SECTOR_LEN, Request, StatusByte
from vhostd.spec.vhost_user import ProtocolFeature

B = BlkFeature
OPERATION = "virtio 5.2.6"
DEVICE = "virtio 5.2.6.2"
USED = "virtio 2.7.8.2"
LENGTHS = {"512": 512, "1024": 1024, "4096": 4096, "64k": 65536, "128k": 131072}


@case("BLK-READ-01", OPERATION, kinds=BLOCK, rows=LENGTHS)
def read(check: Check, length: int) -> None:
    """VIRTIO_BLK_T_IN reads sectors, and its used length is data and status."""
    with check.guest() as guest:
        done = guest.block().request(Request.IN, check.scratch.first, read_len=length)
        check.equal(done.status, StatusByte.OK, "status")
        check.equal(done.data, check.scratch.known[:length], "the sectors' bytes,")
        check.equal(done.used_len, length + 1, "used length")


@case("BLK-READ-02", OPERATION, kinds=BLOCK, rows={str(n): n for n in (1, 3, 7, 63, 255)})
def read_from(check: Check, sector: int) -> None:
    """Sector is in units of 512 bytes, wherever it lies in a block."""
    with check.guest() as guest:
        done = guest.block().request(Request.IN, check.scratch.first + sector, read_len=512)
        check.equal(done.data, check.scratch.known[sector * 512 :][:512], "the sector's bytes,")


@case("BLK-READ-03", OPERATION, kinds=BLOCK)
def first_sector(check: Check) -> None:
    """The first sector is sector 0."""
    with check.guest() as guest:
        check.equal(guest.block().request(Request.IN, 0, read_len=512).status, StatusByte.OK, "status")


CUTS = {
    "one": [1025],
    "usual": [1024],
    "100+412": [100, 412],
    "bytes": [1, 1, 1],
    "512+513": [512, 513],
    "24+status": [1000],
    "1+1024": [1],
    "1024x1": [1] * 100,
}


@case("BLK-READ-04", f"virtio 2.7.4.1; {OPERATION}", kinds=BLOCK, rows=CUTS)
def read_into_any_cut(check: Check, writable: list[int]) -> None:
    """The device MUST NOT make assumptions about the arrangement of descriptors: data and status in any cut."""
    with check.guest(size=256) as guest:
        driver = guest.block()
        done = driver.complete(driver.submit(Request.IN, check.scratch.first, read_len=1024, writable=writable))
        check.equal(done.status, StatusByte.OK, "status")
        check.equal(done.data, check.scratch.known[:1024], "the sectors' bytes,")


HEADERS = {"8+8": [8, 8], "1x16": [1] * 16, "4+12": [4, 12], "15+1": [15, 1], "16": [16]}


@case("BLK-READ-05", f"virtio 2.7.4.1; {OPERATION}", kinds=BLOCK, rows=HEADERS)
def header_in_any_cut(check: Check, readable: list[int]) -> None:
    """The device MUST NOT make assumptions about the arrangement of descriptors: the header in any cut."""
    with check.guest(size=256) as guest:
        driver = guest.block()
        done = driver.complete(driver.submit(Request.IN, check.scratch.first, read_len=512, readable=readable))
        check.equal(done.status, StatusByte.OK, "status")
        check.equal(done.data, check.scratch.known[:512], "the sector's bytes,")


@case("BLK-READ-06", OPERATION, kinds=BLOCK, rows={"0xffffffff": 0xFFFFFFFF, "1": 1})
def reserved_is_ignored(check: Check, value: int) -> None:
    """The header's reserved field says nothing to the device."""
    with check.guest() as guest:
        driver = guest.block()
        header = bytes(4) + value.to_bytes(4, "little") + check.scratch.first.to_bytes(8, "little")
        done = driver.complete(driver.submit(Request.IN, read_len=512, header=header))
        check.equal(done.data, check.scratch.known[:512], "the sector's bytes,")


@case("BLK-WRITE-01", OPERATION, kinds=BLOCK, lacks=int(B.RO), marks=[Mark.WRITES], rows=LENGTHS)
def write(check: Check, length: int) -> None:
    """VIRTIO_BLK_T_OUT writes sectors: they read back as written, and their neighbours are as before."""
    with check.guest() as guest:
        driver, at = guest.block(), check.scratch.first
        data = os.urandom(length)
        done = driver.request(Request.OUT, at + 8, data)
        check.equal(done.status, StatusByte.OK, "status")
        check.equal(driver.read(at + 8, length), data, "what was written,")
        check.equal(driver.read(at, 4096), check.scratch.known[:4096], "the sectors before it,")


@case("BLK-WRITE-02", USED, kinds=BLOCK, lacks=int(B.RO), marks=[Mark.WRITES], rows={"512": 512, "4096": 4096})
def write_used_length(check: Check, length: int) -> None:
    """The used length of a write is 1: the device wrote the status and no more."""
    with check.guest() as guest:
        check.equal(guest.block().request(Request.OUT, check.scratch.first, bytes(length)).used_len, 1, "used length")


WRITE_CUTS = {
    "16": [16],
    "8+8": [8, 8],
    "bytes": [1] * 16,
    "one": [1040],
    "10+100": [10, 100],
    "16+511": [16, 511],
    "4": [4],
    "528": [528],
}


@case(
    "BLK-WRITE-03", f"virtio 2.7.4.1; {OPERATION}", kinds=BLOCK, lacks=int(B.RO), marks=[Mark.WRITES], rows=WRITE_CUTS
)
def write_in_any_cut(check: Check, readable: list[int]) -> None:
    """The device MUST NOT make assumptions about the arrangement of descriptors: header and data in any cut."""
    with check.guest(size=256) as guest:
        driver, data = guest.block(), os.urandom(1024)
        done = driver.complete(driver.submit(Request.OUT, check.scratch.first, data, readable=readable))
        check.equal(done.status, StatusByte.OK, "status")
        check.equal(driver.read(check.scratch.first, 1024), data, "what was written,")


@case("BLK-WRITE-04", OPERATION, kinds=BLOCK, lacks=int(B.RO), marks=[Mark.WRITES])
def last_sector(check: Check) -> None:
    """The last sector can be written and read."""
    with check.guest() as guest:
        driver, last = guest.block(), check.scratch.first + check.scratch.sectors - 1
        driver.write(last, b"z" * 512)
        check.equal(driver.read(last, 512), b"z" * 512, "what was written,")


@case("BLK-WRITE-05", OPERATION, kinds=BLOCK, lacks=int(B.RO), marks=[Mark.WRITES], queues=2)
def seen_by_other_queues(check: Check) -> None:
    """What was written on one queue is read on another once the write has completed."""
    with check.guest(queues=2) as guest:
        for n in range(8):
            data = os.urandom(512)
            guest.block(n % 2).write(check.scratch.first + n, data)
            check.equal(guest.block(1 - n % 2).read(check.scratch.first + n, 512), data, "what was written,")


@case("BLK-WRITE-06", OPERATION, kinds=BLOCK, lacks=int(B.RO), marks=[Mark.WRITES])
def sectors_do_not_tear(check: Check) -> None:
    """Writes and reads of one sector in flight together leave one of them, whole."""
    with check.guest(size=256) as guest:
        driver, at = guest.block(), check.scratch.first
        old = check.scratch.known[:512]
        flying = []
        for n in range(16):
            flying += [driver.submit(Request.OUT, at, bytes([n]) * 512), driver.submit(Request.IN, at, read_len=512)]
        for pending in flying:
            data = driver.complete(pending).data
            check.expect(not data or data == old or len(set(data)) == 1, "a whole sector", "a mix of two")


@case(
    "BLK-RO-01",
    DEVICE,
    kinds=BLOCK,
    features=int(B.RO),
    rows={"out": Request.OUT, "discard": Request.DISCARD, "write-zeroes": Request.WRITE_ZEROES},
)
def read_only(check: Check, kind: Request) -> None:
    """A device MUST NOT write, and fails such requests with VIRTIO_BLK_S_IOERR, if VIRTIO_BLK_F_RO is offered."""
    area = check.scratch
    data = os.urandom(512) if kind is Request.OUT else area.first.to_bytes(8, "little") + b"\1" + bytes(7)
    with check.guest() as guest:
        done = guest.block().request(kind, area.first, data)
        check.expect(done.status in {StatusByte.IOERR, StatusByte.UNSUPP}, "IOERR", f"status {done.status}")
        check.equal(guest.block().read(area.first, 512), area.known[:512], "the sector as it was,")


@case("BLK-FLUSH-01", OPERATION, kinds=BLOCK, features=int(B.FLUSH))
def flush(check: Check) -> None:
    """VIRTIO_BLK_T_FLUSH is answered with OK, and a used length of 1."""
    with check.guest() as guest:
        done = guest.block().request(Request.FLUSH)
        check.equal(done.status, StatusByte.OK, "status")
        check.equal(done.used_len, 1, "used length")


@case("BLK-FLUSH-02", DEVICE, kinds=BLOCK, features=int(B.FLUSH), lacks=int(B.RO), marks=[Mark.WRITES])
def writes_before_a_flush(check: Check) -> None:
    """A flush after writes is answered once they are done: they read back."""
    with check.guest(size=256) as guest:
        driver = guest.block()
        flying = [driver.submit(Request.OUT, check.scratch.first + n, bytes([n]) * 512, kick=False) for n in range(16)]
        flying.append(driver.submit(Request.FLUSH, kick=False))
        guest.queue.kick()
        for pending in flying:
            check.equal(driver.complete(pending).status, StatusByte.OK, "status")
        for n in range(16):
            check.equal(driver.read(check.scratch.first + n, 512), bytes([n]) * 512, "what was written,")


@case("BLK-FLUSH-03", f"virtio 2.7.4.1; {OPERATION}", kinds=BLOCK, features=int(B.FLUSH), rows={"64": 64, "2": 2})
def status_is_the_last_byte(check: Check, length: int) -> None:
    """The status is the final byte that the device may write, however long its descriptor is."""
    with check.guest() as guest:
        driver = guest.block()
        check.equal(driver.complete(driver.submit(Request.FLUSH, status_len=length)).status, StatusByte.OK, "status")


@case("BLK-FLUSH-04", OPERATION, kinds=BLOCK, features=int(B.FLUSH))
def flushes_together(check: Check) -> None:
    """Several flushes in flight are each answered."""
    with check.guest() as guest:
        driver = guest.block()
        for pending in [driver.submit(Request.FLUSH) for _ in range(8)]:
            check.equal(driver.complete(pending).status, StatusByte.OK, "status")


@case("BLK-ID-01", f"{OPERATION}", kinds=BLOCK)
def serial(check: Check) -> None:
    """VIRTIO_BLK_T_GET_ID gives an ASCII string of at most 20 bytes, without a NUL only when it has all 20."""
    with check.guest() as guest:
        done = guest.block().request(Request.GET_ID, read_len=20)
        check.equal(done.status, StatusByte.OK, "status")
        text, nul, rest = done.data.partition(b"\0")
        check.expect(text.isascii() and bytes([POISON]) not in text, "an ASCII string", f"{text!r}")
        check.expect(nul or len(text) == 20, "a NUL behind a shorter string", f"{done.data!r}")
        check.expect(not rest.strip(b"\0"), "NUL up to 20 bytes", f"{rest!r} behind it")


@case("BLK-ID-02", f"{OPERATION}; {USED}", kinds=BLOCK)
def serial_used_length(check: Check) -> None:
    """The used length of GET_ID counts what was written: 20 bytes and the status."""
    with check.guest() as guest:
        check.equal(guest.block().request(Request.GET_ID, read_len=20).used_len, 21, "used length")


@case("BLK-ID-03", OPERATION, kinds=BLOCK, rows={str(n): n for n in (1, 5, 19)})
def serial_into_less(check: Check, length: int) -> None:
    """Room for less than 20 bytes takes the first of them, and nothing behind it is touched."""
    with check.guest() as guest:
        whole = guest.block().request(Request.GET_ID, read_len=20).data
        done = guest.block().request(Request.GET_ID, read_len=length)
        check.equal(done.status, StatusByte.OK, "status")
        check.equal(done.data, whole[:length], "the first bytes of the serial,")


@case("BLK-ID-04", OPERATION, kinds=BLOCK, rows={str(n): n for n in (21, 64, 4096)})
def serial_into_more(check: Check, length: int) -> None:
    """Of a longer buffer only the first 20 bytes are the serial's; the rest is not written."""
    with check.guest() as guest:
        done = guest.block().request(Request.GET_ID, read_len=length)
        check.equal(done.status, StatusByte.OK, "status")
        check.equal(done.data[20:], bytes([POISON]) * (length - 20), "the bytes behind the serial as they were,")


@case("BLK-ID-05", OPERATION, kinds=BLOCK, level=Level.SHOULD)
def serial_stays(check: Check) -> None:
    """The serial is the same each time and on each connection."""
    seen = set()
    for _ in range(2):
        with check.guest() as guest:
            seen |= {guest.block().request(Request.GET_ID, read_len=20).data for _ in range(2)}
    check.equal(len(seen), 1, "so many serials,")


UNKNOWN = {hex(n): n for n in (5, 6, 7, 9, 12, 17, 100, 0x1234, 0x7FFF_FFFF)}


@case("BLK-UNSUPP-01", OPERATION, kinds=BLOCK, rows=UNKNOWN)
def unknown_types(check: Check, kind: int) -> None:
    """A request of a type the device does not know is answered with VIRTIO_BLK_S_UNSUPP, and the ring goes on."""
    with check.guest() as guest:
        check.equal(guest.block().request(kind).status, StatusByte.UNSUPP, "status")
        guest.works(1)


OPTIONAL: dict[str, Row] = {
    "discard": Row(Request.DISCARD, lacks=int(B.DISCARD)),
    "write-zeroes": Row(Request.WRITE_ZEROES, lacks=int(B.WRITE_ZEROES)),
    "secure-erase": Row(Request.SECURE_ERASE, lacks=int(B.SECURE_ERASE)),
    "lifetime": Row(Request.GET_LIFETIME, lacks=int(B.LIFETIME)),
    "zone-append": Row(Request.ZONE_APPEND, lacks=int(B.ZONED)),
    "zone-report": Row(Request.ZONE_REPORT, lacks=int(B.ZONED)),
    "zone-open": Row(Request.ZONE_OPEN, lacks=int(B.ZONED)),
    "zone-close": Row(Request.ZONE_CLOSE, lacks=int(B.ZONED)),
    "zone-finish": Row(Request.ZONE_FINISH, lacks=int(B.ZONED)),
    "zone-reset": Row(Request.ZONE_RESET, lacks=int(B.ZONED)),
    "zone-reset-all": Row(Request.ZONE_RESET_ALL, lacks=int(B.ZONED)),
    "scsi": Row(Request.SCSI_CMD, lacks=int(B.SCSI)),
}


@case("BLK-UNSUPP-02", OPERATION, kinds=BLOCK, rows=OPTIONAL)
def not_offered_types(check: Check, kind: int) -> None:
    """A request of a type whose feature is not offered is answered with VIRTIO_BLK_S_UNSUPP."""
    with check.guest() as guest:
        done = guest.block().request(kind, check.scratch.first, read_len=64)
        check.expect(done.status in {StatusByte.UNSUPP, StatusByte.IOERR}, "UNSUPP", f"status {done.status}")
        guest.works(1)


@case(
    "BLK-ERR-01",
    DEVICE,
    kinds=BLOCK,
    protocol=ProtocolFeature.CONFIG,
    rows={"end": 0, "over": -1, "2-32": 1 << 40, "2-63": 1 << 63},
)
def behind_the_end(check: Check, offset: int) -> None:
    """A read of sectors behind the capacity fails with VIRTIO_BLK_S_IOERR."""
    capacity = int.from_bytes(check.target.offer.config[:8], "little")
    with check.guest() as guest:
        done = guest.block().request(Request.IN, capacity + offset, read_len=1024)
        check.equal(done.status, StatusByte.IOERR, "status")
        guest.works(1)


@case("BLK-ERR-02", f"{OPERATION}: data is a multiple of 512", kinds=BLOCK, rows={str(n): n for n in (1, 511, 513)})
def no_whole_sectors(check: Check, length: int) -> None:
    """Data that is no multiple of 512 bytes is no request: it fails, and the status says so."""
    with check.guest() as guest:
        done = guest.block().request(Request.IN, check.scratch.first, read_len=length)
        check.equal(done.status, StatusByte.IOERR, "status")
        guest.works(1)


@case("BLK-ERR-03", USED, kinds=BLOCK)
def used_length_of_an_unknown_type(check: Check) -> None:
    """The used length counts what was written: 1 for a status alone."""
    with check.guest() as guest:
        check.equal(guest.block().request(0x1234).used_len, 1, "used length")


GAPS = {
    "get-id.4096": (Request.GET_ID, 4096),
    "unknown.512": (0x1234, 512),
    "in.511": (Request.IN, 511),
    "flush.64": (Request.FLUSH, 64),
}


@case("BLK-ERR-05", USED, kinds=BLOCK, rows=GAPS)
def used_lengths_have_no_gap(check: Check, row: tuple[int, int]) -> None:
    """The device MUST have written at least `len` bytes, from the first device-writable one on."""
    kind, room = row
    with check.guest() as guest:
        done = guest.block().request(kind, check.scratch.first, read_len=room)
        wrote = len(done.data.rstrip(bytes([POISON])))
        limit = room + 1 if wrote == room else wrote
        check.expect(
            done.used_len <= limit, f"a used length of at most {limit}: so many bytes were written", f"{done.used_len}"
        )


@case("BLK-ERR-04", "virtio 5.2.6, legacy: barrier", kinds=BLOCK, level=Level.SHOULD)
def barrier_bit(check: Check) -> None:
    """The barrier bit of old drivers is masked away by a device that does not offer VIRTIO_BLK_F_BARRIER."""
    with check.guest() as guest:
        done = guest.block().request(Request.IN | blk.TYPE_BARRIER, check.scratch.first, read_len=SECTOR_LEN)
        check.equal(done.status, StatusByte.OK, "status")


@case("BLK-WCE-01", DEVICE, kinds=BLOCK, lacks=int(B.RO), marks=[Mark.WRITES])
def without_flush(check: Check) -> None:
    """If the driver accepted neither FLUSH nor CONFIG_WCE, writes work and are durable when they complete."""
    with check.guest(features=ALL_FEATURES & ~int(B.FLUSH | B.CONFIG_WCE)) as guest:
        data = os.urandom(4096)
        guest.block().write(check.scratch.first, data)
        check.equal(guest.block().read(check.scratch.first, 4096), data, "what was written,")


DEPTHS = {"16": 16, "64": 64, "256": Row(256, features=int(RingFeature.INDIRECT_DESC))}


@case("BLK-DEPTH-01", OPERATION, kinds=BLOCK, rows=DEPTHS)
def in_flight(check: Check, depth: int) -> None:
    """Requests in flight are each answered with their own data, whatever order they complete in."""
    with check.guest(size=256) as guest:
        work = guest.work()
        for item in [work.submit(n, kick=n % 16 == 15) for n in range(depth)]:
            work.finish(item)
