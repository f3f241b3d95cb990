"""Rows of the illumos contract that a disk can be asked about, one probe each, on every back-end.

FINDINGS says what a back-end other than ours does with a row, in words. A probe that ends otherwise than it says fails:
then the finding is gone, or it is another.
"""

import itertools
import os
import re
import struct
import time

import pytest

from tests.protocol.conftest import pattern
from vhostd.driver.illumos import GuestCorrupted, GuestHangs, IllumosGuest, boot
from vhostd.driver.illumos.memory import Zone
from vhostd.driver.illumos.ring import Chain
from vhostd.errors import DeviceError
from vhostd.spec.blk import Request

FINDINGS = {
    # The eventfd alone makes it look at a ring.
    ("qemu-storage-daemon", "illumos_E7.3"): "GuestHangs: illumos_E4: no interrupt came",
    ("qemu-storage-daemon", "illumos_E1"): "DeviceGone: .*closed the connection",  # "legacy devices aren't supported"
    # Its name and a NUL are all it writes of the 20 bytes, and it says it wrote them.
    ("qemu-storage-daemon", "illumos_R2.35"): "19 bytes: 76686f73745f757365725f626c6b00a5a5a5a5",
    ("qemu-storage-daemon", "illumos_10012"): "AssertionError: the serial number is b'vhost_user_blk'",
}
ROWS = {}


def row(name, **knobs):
    """Register a probe under its row; `knobs` are the guest's."""

    def add(probe):
        ROWS[name] = (probe, knobs)
        return probe

    return add


@pytest.mark.parametrize("name", ROWS_IN_ORDER := [
    "illumos_E1", "illumos_E4", "illumos_E7.1", "illumos_E7.3", "illumos_10012", "illumos_11329", "illumos_D9",
    "illumos_D12", "illumos_R2.4", "illumos_R2.11", "illumos_R2.12", "illumos_R2.14", "illumos_R2.18", "illumos_R2.25",
    "illumos_R2.35", "illumos_R2.40", "illumos_R2.60", "illumos_R2.61", "illumos_R2.66",
])  # fmt: skip
def test_a_row(disk, maker, name):
    """The probe's docstring says what the row asks for."""
    probe, knobs = ROWS[name]
    finding = FINDINGS.get((maker, name))
    words = {"device": "block", "generation": 2026, "transport": "modern", **knobs}
    try:
        with boot(disk.socket, IllumosGuest(**words)) as attached:
            probe(attached, disk)
    except (DeviceError, AssertionError) as error:
        said = f"{type(error).__name__}: {error}"
        assert finding is not None, f"{maker} breaks {name}: {said}"
        assert re.search(finding, said, re.S), f"{maker} breaks {name} in another way than was found before: {said}"
    else:
        assert finding is None, f"{maker} keeps {name} now: good news, take the finding out"


def test_every_row_has_a_probe():
    assert list(ROWS) and set(ROWS) == set(ROWS_IN_ORDER)
    assert {name for _, name in FINDINGS} <= set(ROWS)


class Raw:
    """A chain of any form, on the guest's ring."""

    def __init__(self, attached):
        self.attached = attached
        self.ring = attached.rings[0]
        self.memory = attached.memory
        for slot in attached.disk._pool:  # the pool's chains keep every descriptor there is
            if slot.chain is not None:
                slot.chain.free()
                slot.chain = None

    def buffer(self, data):
        gpa = self.memory.alloc(Zone.DATA, len(data), 4096)
        self.memory.arena.write(gpa, data)
        return gpa

    def run(self, readable, writable, *, poison=0xA5, indirect=None):
        """Send pieces of bytes and take writable pieces of these lengths; (used length, what each holds)."""
        before, self.ring.indirect = self.ring.indirect, self.ring.indirect if indirect is None else indirect
        chain = Chain(self.ring, len(readable) + len(writable))
        self.ring.indirect = before
        places = []
        for data in readable:
            self._append(chain, self.buffer(data), len(data), write=False)
        for length in writable:
            places.append((self.buffer(bytes([poison]) * length), length))
            self._append(chain, *places[-1], write=True)
        self.ring.submit(chain)
        self.ring.flush()
        deadline = time.monotonic() + 5
        found = self.ring.wait("illumos_E4", deadline)
        assert found[0][0] is chain
        chain.free()
        return found[0][1], [self.memory.arena.read(gpa, length) for gpa, length in places]

    @staticmethod
    def _append(chain, gpa, length, *, write):
        if chain.table is None:
            chain.numbers.append(chain.queue.number())
            chain.head = chain.numbers[0]
        chain.entries.append((gpa, length, 2 if write else 0))


def header(kind, sector=0):
    return struct.pack("<IIQ", kind, 0, sector)


@row("illumos_E1", transport="legacy")
def _(attached, disk):
    """E.1: a legacy driver, of contiguous rings and without VERSION_1, is served."""
    assert attached.disk.read(0, 512) == pattern(0, 512)


@row("illumos_E4")
def _(attached, disk):
    """E.4: the device signals after every update of used.idx; the handler never looks again."""
    for n in range(300):
        assert attached.disk.read(n, 512) == pattern(512 * n, 512)


@row("illumos_E7.1")
def _(attached, disk):
    """E.7.1: after SET_VRING_CALL on a running ring there is one signal if anything was completed."""
    driver, ring = attached.disk, attached.rings[0]
    for _ in range(5):
        page = attached.memory.buffer(Zone.DATA, 512)
        before = ring.used_idx
        job = driver.submit(Request.IN, 0, list(page.pieces))
        deadline = time.monotonic() + 5
        while ring.used_idx == before:
            assert time.monotonic() < deadline
        ring.interrupted(0.05)
        attached.platform.vectors(attached.rings)
        driver.wait(job, 2)


@row("illumos_E7.3")
def _(attached, disk):
    """E.7.3: entries that are there when the ring is started are found without a kick."""
    driver, ring, front = attached.disk, attached.rings[0], attached.platform._frontend
    base = None
    for _ in range(5):
        front.enable(0, enabled=False)
        base = front.get_base(0)
        ring.kicking = False
        page = attached.memory.buffer(Zone.DATA, 512)
        job = driver.submit(Request.IN, 8, list(page.pieces))
        front.set_base(0, base)
        front.set_kick(0, ring.kick_fd)
        front.set_call(0, ring.call_fd)
        front.enable(0)
        driver.wait(job, 2)
        assert attached.memory.read(page.pieces) == pattern(4096, 512)


@row("illumos_10012")
def _(attached, disk):
    """10012: a serial number of characters that are kept, which another disk does not have."""
    serial = attached.disk.serial
    assert serial, "there is none"
    assert attached.disk.serial_raw == serial.ljust(20, b"\0")
    assert serial != b"vhost_user_blk", f"the serial number is {serial}, as every disk's"


@row("illumos_11329")
def _(attached, disk):
    """11329: direct and indirect chains may be mixed in one ring, whatever was negotiated."""
    raw = Raw(attached)
    for n in range(40):
        used, (data, status) = raw.run([header(0, n)], [512, 1], indirect=bool(n % 2))
        assert (used, data, status) == (513, pattern(512 * n, 512), b"\0")


@row("illumos_D9")
def _(attached, disk):
    """D9: SEG_MAX times SIZE_MAX is sound, which attach has checked; a descriptor may be longer than SIZE_MAX."""
    used, (data, status) = Raw(attached).run([header(0)], [65536, 1])
    assert (used, data, status) == (65537, pattern(0, 65536), b"\0")


@row("illumos_D12")
def _(attached, disk):
    """D12: discard has no flags but those of the document; ranges outside and none at all are refused."""
    raw = Raw(attached)
    before = disk.digest()
    for flags in (2, 4, 0x80000000):
        _, (status,) = raw.run([header(11), struct.pack("<QII", 0, 8, flags)], [1])
        assert status == b"\2", f"flags {flags:#x}: status {status.hex()}"
    for sector, count in ((attached.disk.disk.capacity, 8), (2**64 - 8, 16), (attached.disk.disk.capacity - 8, 16)):
        _, (status,) = raw.run([header(11), struct.pack("<QII", sector, count, 0)], [1])
        assert status == b"\1", f"{count} sectors from {sector}: status {status.hex()}"
    assert disk.digest() == before


@row("illumos_R2.4")
def _(attached, disk):
    """R2.4: bytes frame a request: any split of header, data and status."""
    raw = Raw(attached)
    for cuts in ([16], [8, 8], [1, 15], [4, 4, 8], [1] * 16):
        at = list(itertools.accumulate(cuts, initial=0))
        pieces = [header(0, 4)[a:b] for a, b in itertools.pairwise(at)]
        for lengths in ([512, 1], [513], [100, 412, 1], [511, 2], [1, 511, 1]):
            used, parts = raw.run(pieces, lengths)
            whole = b"".join(parts)
            assert (used, whole[:512], whole[512:]) == (513, pattern(2048, 512), b"\0"), (cuts, lengths)


@row("illumos_R2.11")
def _(attached, disk):
    """R2.11: what does not lie on the disk is status 1, however the sum wraps; nothing is written."""
    raw, capacity = Raw(attached), attached.disk.disk.capacity
    before = disk.digest()
    for sector in (capacity, capacity - 1, 2**55, (2**63) // 512, 2**64 - 1, 2**64 - 2):
        for kind in (0, 1):
            data = [header(kind, sector)] + ([bytes(1024)] if kind else [])
            _, parts = raw.run(data, [1] if kind else [1024, 1])
            assert parts[-1] == b"\1", f"{1024} bytes from {sector:#x}: status {parts[-1].hex()}"
    assert disk.digest() == before


@row("illumos_R2.12", poison=True)
def _(attached, disk):
    """R2.12: only 0, 1 and 2 are ever written; 2 is for types there are not."""
    raw = Raw(attached)
    for kind in (2, 3, 5, 7, 9, 255, 0xFFFFFFFF):
        _, parts = raw.run([header(kind)], [512, 1])
        assert parts[-1] == b"\2", f"type {kind}: status {parts[-1].hex()}"
    attached.disk.flush()


@row("illumos_R2.14")
def _(attached, disk):
    """R2.14: SEG_MAX counts data only: SEG_MAX + 2 are served, 130 in any case, and one more leaves it alive."""
    raw, most = Raw(attached), attached.disk.disk.seg_max
    for count in (most - 1, most, max(most, 128)):
        used, parts = raw.run([header(0)], [512] * count + [1])
        assert (used, parts[-1]) == (512 * count + 1, b"\0"), count
        assert b"".join(parts[:-1]) == pattern(0, 512 * count)
    raw.run([header(0)], [512] * (most + 1) + [1])
    assert attached.disk.read(0, 512) == pattern(0, 512)


@row("illumos_R2.18")
def _(attached, disk):
    """R2.18: no data address is too crooked."""
    memory, driver = attached.memory, attached.disk
    block = memory.alloc(Zone.DATA, 8192, 4096)
    for offset in range(64):
        job = driver.submit(Request.IN, 1, [(block + offset, 512)])
        driver.wait(job)
        assert memory.arena.read(block + offset, 512) == pattern(512, 512)


@row("illumos_R2.25")
def _(attached, disk):
    """R2.25: the used length is what was written: data and status."""
    raw = Raw(attached)
    data = os.urandom(512)
    last = attached.disk.disk.capacity - 8
    for name, readable, writable, want in (
        ("read", [header(0)], [4096, 1], 4097),
        ("write", [header(1, last), data], [1], 1),
        ("flush", [header(4)], [1], 1),
        ("GET_ID", [header(8)], [20, 1], 21),
        ("discard", [header(11), struct.pack("<QII", last, 8, 0)], [1], 1),
        ("unknown", [header(99)], [1], 1),
    ):
        used, _ = raw.run(readable, writable)
        assert used == want, f"{name}: used length {used} instead of {want}"


@row("illumos_R2.35")
def _(attached, disk):
    """R2.35, 10012 device 4: GET_ID fills what there is up to 20 bytes, says so, and leaves the rest."""
    raw = Raw(attached)
    whole = attached.disk.serial_raw
    for length in (1, 19, 20, 21, 25, 64):
        used, (data, status) = raw.run([header(8)], [length, 1])
        wrote = min(length, 20)
        assert status == b"\0", f"{length} bytes: status {status.hex()}"
        assert data == whole[:wrote] + b"\xa5" * (length - wrote), f"{length} bytes: {data.hex()}"
        # 2.7.8.2: bytes from the beginning without a gap; what is left free before the status is one.
        want = wrote + 1 if length <= 20 else wrote
        assert used == want, f"{length} bytes: used length {used}"
    used, parts = raw.run([header(8)], [1] * 21)
    assert (used, b"".join(parts)) == (21, whole + b"\0")


@row("illumos_R2.40")
def _(attached, disk):
    """R2.40: when the rings are stopped, what was in flight is over: memory stays as its next owner leaves it."""
    for n in range(100):
        page = attached.memory.buffer(Zone.DATA, 65536)
        attached.disk.submit(Request.IN, 8 * n, list(page.pieces))
    attached.reset(0.05)


@row("illumos_R2.60", fence=False)
def _(attached, disk):
    """R2.60: a driver whose index comes out after it read the flag is not forgotten."""
    for n in range(100):
        assert attached.disk.read(n, 512) == pattern(512 * n, 512)


@row("illumos_R2.61")
def _(attached, disk):
    """R2.61: the length of an indirect table is in bytes; one of 16 and one of many entries."""
    raw = Raw(attached)
    used, parts = raw.run([header(0)], [8] * 64 + [1])
    assert (used, b"".join(parts)) == (513, pattern(0, 512) + b"\0")


@row("illumos_R2.66")
def _(attached, disk):
    """R2.66: zero is a value: sector 0, queue 0, base 0, head 0."""
    assert attached.disk.read(0, 512) == pattern(0, 512)
    assert 0 in {chain.head for chain in [slot.chain for slot in attached.disk._pool]}
    assert GuestCorrupted is not GuestHangs
