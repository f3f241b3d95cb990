"""Guest memory: what is mapped, what is refused, what stays mapped while someone looks (HOSTILE S39, S61-S82)."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.errors import GuestMemoryError, RemoteProtocolError
from vhostd.fds import Fd
from vhostd.queues.memory import Fault, GuestMemory, Region

PAGE = os.sysconf("SC_PAGESIZE")


def memfd(length, fill=b""):
    fd = Fd(os.memfd_create("guest"))
    os.ftruncate(fd.number, length)
    if fill:
        os.pwrite(fd.number, fill, 0)
    return fd


def maps():
    return Path("/proc/self/maps").read_text().count("memfd:guest")


@pytest.fixture
def fault():
    return Fault()


@pytest.mark.parametrize(
    ("gpa", "length", "uva", "offset"),
    [
        pytest.param(0, 0, 0, 0, id="S61-empty"),
        pytest.param(0, 8192, 0, 0, id="S62-larger-than-file"),
        pytest.param(0, 4096, 0, 4096, id="S62-offset-at-end"),
        pytest.param(0, 4096, 0, 1, id="S62-one-byte-over"),
        pytest.param((1 << 64) - 4095, 4096, 0, 0, id="S63-gpa"),
        pytest.param(0, 4096, (1 << 64) - 4095, 0, id="S63-uva"),
        pytest.param(0, 4096, 0, (1 << 64) - 4095, id="S63-offset"),
        pytest.param(0, 1 << 62, 0, 0, id="S63-2^62"),
        pytest.param(0, 1 << 63, 0, 0, id="S63-2^63"),
        pytest.param(0, (1 << 64) - 1, 0, 0, id="S63-max"),
    ],
)
def test_a_region_that_cannot_be(fault, gpa, length, uva, offset):
    """vhost-user, "Memory region description"; nothing stays mapped."""
    before = maps()
    with memfd(4096) as fd, pytest.raises(RemoteProtocolError, match="memory region"):
        Region(fd.number, gpa, length, uva, offset, fault)
    assert maps() == before


def test_the_last_byte_of_the_address_space_may_be_mapped(fault):
    """S63: 2^64 is the end, not one too many."""
    with memfd(4096) as fd:
        region = Region(fd.number, (1 << 64) - 4096, 4096, 0, 0, fault)
        memory = GuestMemory([region], fault)
        assert memory.read((1 << 64) - 1, 1) == b"\0"
        with pytest.raises(GuestMemoryError):
            memory.read((1 << 64) - 1, 2)
        region.close()


def unusable():
    read, write = os.pipe()
    os.close(write)
    left, right = socket.socketpair()
    right.close()
    return {
        "pipe": read,
        "socket": left.detach(),
        "eventfd": os.eventfd(0),
        "null": os.open("/dev/null", os.O_RDWR),
        "zero": os.open("/dev/zero", os.O_RDWR),
        "directory": os.open("/tmp", os.O_RDONLY),
    }


@pytest.mark.parametrize("kind", ["pipe", "socket", "eventfd", "null", "zero", "directory"], ids=lambda k: f"S39-{k}")
def test_what_is_no_memory_file_is_refused(fault, kind):
    """HOSTILE S39."""
    fds = unusable()
    try:
        with pytest.raises(RemoteProtocolError, match="memory region"):
            Region(fds[kind], 0, 4096, 0, 0, fault)
    finally:
        for fd in fds.values():
            os.close(fd)


def test_S39_a_file_open_for_reading_only(fault, tmp_path):
    """HOSTILE S39: guest memory is written to."""
    path = tmp_path / "ro"
    path.write_bytes(b"\0" * 4096)
    with Fd(os.open(path, os.O_RDONLY)) as fd, pytest.raises(RemoteProtocolError, match="read and written"):
        Region(fd.number, 0, 4096, 0, 0, fault)


@pytest.mark.parametrize("offset", [0, 1, 512, 4096, 5000], ids=lambda n: f"S64-{n}")
def test_an_offset_need_not_be_aligned(fault, offset):
    """vhost-user puts no alignment on it."""
    with memfd(3 * PAGE) as fd:
        os.pwrite(fd.number, b"here", offset)
        region = Region(fd.number, 0x1000, 100, 0, offset, fault)
        assert bytes(memoryview(region)[:4]) == b"here"
        assert len(memoryview(region)) == 100
        region.close()


def test_S65_regions_that_overlap_in_guest_addresses(fault):
    """vhost-user, "Memory region description"."""
    with memfd(8192) as fd:
        regions = [Region(fd.number, 0, 8192, 0, 0, fault), Region(fd.number, 4096, 4096, 1 << 20, 0, fault)]
        with pytest.raises(RemoteProtocolError, match="overlap"):
            GuestMemory(regions, fault)
        for region in regions:
            region.close()


def test_S67_a_file_mapped_twice_is_one_memory(fault):
    """HOSTILE S67: aliasing is the guest's business."""
    with memfd(4096) as fd:
        a = Region(fd.number, 0, 4096, 0, 0, fault)
        b = Region(fd.number, 4096, 4096, 4096, 0, fault)
        with memoryview(a) as view:
            view[:2] = b"hi"
        assert GuestMemory([a, b], fault).read(4096, 2) == b"hi"
        a.close()
        b.close()


def test_a_view_keeps_its_mapping(fault):
    """queues: no view outlives its mapping."""
    before = maps()
    with memfd(4096, b"data") as fd:
        region = Region(fd.number, 0, 4096, 0, 0, fault)
    view = GuestMemory([region], fault).view(0, 4)
    region.close()
    assert region.mapped
    assert bytes(view) == b"data"
    with pytest.raises(BufferError):
        memoryview(region)
    view.release()
    assert not region.mapped
    assert maps() == before


def test_closing_twice_does_nothing(fault):
    """ILLUMOS R2.58."""
    with memfd(4096) as fd:
        region = Region(fd.number, 0, 4096, 0, 0, fault)
    region.close()
    region.close()


@pytest.mark.parametrize("touch", [0, 4096, 3 * PAGE - 1], ids=["S78-first", "S80-second", "S80-last"])
def test_a_truncated_file_reads_as_zeroes_and_raises_the_flag(fault, touch):
    """HOSTILE 7.5: SIGBUS in a region marks the device broken, and nothing else."""
    with memfd(3 * PAGE, b"x" * (3 * PAGE)) as fd:
        region = Region(fd.number, 0, 3 * PAGE, 0, 0, fault)
        os.ftruncate(fd.number, 0)
        assert memoryview(region)[touch] == 0
        assert fault.raised
        fault.clear()
        region.close()


def test_S80_a_hole_punched_is_no_fault(fault):
    """HOSTILE S80: a hole is zeroes."""
    from vhostd.backends.block.host import fallocate

    with memfd(2 * PAGE, b"x" * (2 * PAGE)) as fd:
        region = Region(fd.number, 0, 2 * PAGE, 0, 0, fault)
        assert fallocate(fd.number, 3, 0, PAGE) == 0
        assert memoryview(region)[0] == 0
        assert memoryview(region)[PAGE] == ord("x")
        assert not fault.raised
        region.close()


@given(st.integers(0, 1 << 64), st.integers(-1, 1 << 64))
def test_a_range_translates_only_when_all_of_it_is_mapped(gpa, length):
    """Property: address and length are checked together, in unbounded integers on the test's side."""
    fault = Fault()
    spans = [(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x2000), ((1 << 64) - 0x1000, 0x1000)]
    with memfd(0x2000) as fd:
        regions = [Region(fd.number, start, size, start, 0, fault) for start, size in spans]
    memory = GuestMemory(regions, fault)
    inside = length > 0 and any(start <= gpa and gpa + length <= start + size for start, size in spans)
    for translate in (memory.translate, memory.translate_uva):
        if inside:
            assert translate(gpa, length) > 0
        else:
            with pytest.raises(GuestMemoryError):
                translate(gpa, length)
    for region in regions:
        region.close()


@given(st.sampled_from([0x1000, 0x1FFF, 0x2000, 0x2FFF, 0x8000, 0x9FFF]), st.integers(0, 0x3000))
def test_a_copy_crosses_adjacent_regions_and_no_hole(gpa, length):
    """HOSTILE R40, R45."""
    fault = Fault()
    spans = [(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x2000)]
    mapped = {a for start, size in spans for a in range(start, start + size)}
    with memfd(0x2000) as fd:
        regions = [Region(fd.number, start, size, start, 0, fault) for start, size in spans]
    memory = GuestMemory(regions, fault)
    if all(a in mapped for a in range(gpa, gpa + length)):
        assert len(memory.read(gpa, length)) == length
    else:
        with pytest.raises(GuestMemoryError):
            memory.read(gpa, length)
    for region in regions:
        region.close()
